"""All windows of questions in memory, without padding, and batches of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import Column, Tokens, prediction_batches, training_batches
from cocolm_tf.finetuning.models.windows import NOWHERE
from cocolm_tf.tokenization.normalization import as_string_tensor

_TOKENIZED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class WindowRows:
    """Windows on the host, without padding."""

    tokens: Tokens  # `truncated` counts questions that were cut off
    starts: np.ndarray  # of all token ids, the characters where they begin; see `Windows`
    ends: np.ndarray  # of all token ids, the characters after their last ones
    questions: np.ndarray  # [W], the number of each window's question
    labels: np.ndarray  # [W, 2] int32, the tokens that the answers begin and end with

    def __len__(self) -> int:
        return len(self.tokens)

    def learned_spans(self) -> dict[int, tuple[int, int]]:
        """The characters of each question's answer, if a window holds it whole, by its number."""
        # From the first to the last token of the answer, which may have more characters than it.
        lengths = self.tokens.lengths
        begins = np.cumsum(lengths) - lengths
        return {
            int(self.questions[window]): (
                int(self.starts[begins[window] + self.labels[window, 0]]),
                int(self.ends[begins[window] + self.labels[window, 1]]),
            )
            for window in np.flatnonzero(self.labels[:, 0])
        }


def window_rows(
    preprocessor: keras_hub.models.Preprocessor,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Any = None,
) -> WindowRows:
    """Makes the windows of questions, those of one question after those of another."""
    # `answers` are [N, 2], as for `CocoLMQuestionAnswerer.fit`; None where they are not known.
    answers = np.zeros([len(questions), 2], np.int32) if answers is None else np.asarray(answers)
    if not len(questions) == len(contexts) == len(answers):
        raise ValueError(
            f"{len(questions)} questions, {len(contexts)} contexts and {len(answers)} answers: "
            "each question has one of both."
        )
    graph, limit = preprocessor.tokenizer.graph_module(), preprocessor.max_question_length
    parts: dict[str, list[np.ndarray]] = {}
    truncated = 0
    for start in range(0, len(questions), _TOKENIZED_AT_ONCE):
        part = slice(start, start + _TOKENIZED_AT_ONCE)
        texts = as_string_tensor(list(questions[part]))
        windows = preprocessor.windows(texts, list(contexts[part]), answers[part])
        truncated += int((graph.tokenize(texts).row_lengths().numpy() > limit).sum())
        mask = windows.padding_mask.numpy()
        for name in ("token_ids", "starts", "ends"):
            parts.setdefault(name, []).append(getattr(windows, name).numpy()[mask])
        parts.setdefault("lengths", []).append(mask.sum(axis=1))
        parts.setdefault("questions", []).append(windows.rows.numpy() + start)
        labels = tf.stack([windows.start_positions, windows.end_positions], axis=1)
        parts.setdefault("labels", []).append(labels.numpy())
    arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    tokens = Tokens(
        arrays.pop("token_ids"), arrays.pop("lengths"), preprocessor.sequence_length, truncated
    )
    return WindowRows(tokens, **arrays)


def learning_batches(
    rows: WindowRows,
    batch_size: int,
    seed: int,
    buckets: int = 8,
) -> tuple[tf.data.Dataset, int]:
    """Endless shuffled batches for `CocoLMQuestionAnswerer.fit`, and how many an epoch has."""
    batches, steps = training_batches(rows.tokens, rows.labels, batch_size, seed, buckets)
    return batches.map(lambda x, y, weights: (x, _by_side(y), weights)), steps


def reading_batches(rows: WindowRows, batch_size: int) -> tuple[tf.data.Dataset, np.ndarray]:
    """Batches of windows, the shortest first, and the number of the window of each row."""
    # A batch has features with the places of the tokens, labels, and weights, 0 for the rows that
    # fill the last batch; the numbers leave those out.
    columns = {
        "starts": Column(rows.starts, NOWHERE),
        "ends": Column(rows.ends, NOWHERE),
        "labels": Column(rows.labels),
    }
    batches, order = prediction_batches(rows.tokens, batch_size, columns=columns)

    def labeled(features: dict[str, tf.Tensor], columns: dict[str, tf.Tensor]) -> tuple[Any, ...]:
        places = {name: columns[name] for name in ("starts", "ends")}
        return features | places, _by_side(columns["labels"]), columns["real"]

    return batches.map(labeled), order


def _by_side(labels: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"start": labels[:, 0], "end": labels[:, 1]}

"""Questions and their contexts to windows, rows of a fixed length, in the graph and in memory.

A context that is too long for one row is cut into overlapping windows, each beside the whole
question, as BERT does it for SQuAD.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import Column, Tokens, prediction_batches, training_batches
from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, PAD_TOKEN_ID, START_TOKEN_ID
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.offsets import TokenOffsets

# `<s> question </s> </s> context </s>`
NUM_SPECIAL_TOKENS = 4
# The place of a token that is not the context's.
NOWHERE = -1

_TOKENIZED_AT_ONCE = 256


class Windows(NamedTuple):
    """Rows for a model, and where their tokens come from."""

    token_ids: tf.Tensor  # [W, S] int32
    padding_mask: tf.Tensor  # [W, S] bool, true at real tokens
    rows: tf.Tensor  # [W] int32, the question that each window belongs to
    # [W, S] int32, the character of the context that a token begins at; -1 at other tokens
    starts: tf.Tensor
    ends: tf.Tensor  # [W, S] int32, the character after its last; -1 at other tokens
    # [W] int32, the token that the answer begins with; 0, `<s>`, where the window does not have the
    # whole answer
    start_positions: tf.Tensor
    end_positions: tf.Tensor  # [W] int32, the token that it ends with, likewise


def lay_out_windows(
    questions: tf.RaggedTensor,
    context: TokenOffsets,
    answers: tf.Tensor,
    *,
    sequence_length: int,
    stride: int,
    max_question_length: int,
) -> Windows:
    """Lays out tokens [B, (N)] as windows `<s> question </s> </s> part of the context </s>`."""
    # Windows are in the order of the questions, each of which has one at least. Windows of a
    # context begin `stride` tokens after each other, and the last one ends where the context does:
    # `check_window_sizes` says which answers are whole in one of them. `answers` are [B, 2], the
    # characters [start, end) of the context; an empty range where there is no answer, or it is not
    # known.
    questions = questions[:, :max_question_length]
    before = questions.row_lengths() + NUM_SPECIAL_TOKENS - 1
    room = sequence_length - before - 1
    lengths = context.ids.row_lengths()

    # Which windows there are: their question, and the context's tokens [first, last).
    counts = 1 + tf.maximum(-(-(lengths - room) // stride), 0)
    rows = tf.repeat(tf.range(tf.size(counts)), counts)
    first = tf.ragged.range(counts).flat_values * stride
    last = tf.minimum(first + tf.gather(room, rows), tf.gather(lengths, rows))
    offset = tf.gather(context.ids.row_starts(), rows)
    taken = tf.ragged.range(offset + first, offset + last)

    start, end = (tf.fill([tf.size(rows), 1], id) for id in (START_TOKEN_ID, END_TOKEN_ID))
    questions = tf.gather(questions, rows)
    ids = tf.ragged.map_flat_values(tf.gather, context.ids.flat_values, taken)
    token_ids = tf.concat([start, questions, end, end, ids, end], axis=1)
    before = tf.gather(before, rows)

    def places(of_context: tf.RaggedTensor) -> tf.Tensor:
        places = tf.ragged.map_flat_values(tf.gather, of_context.flat_values, taken)
        empty = tf.fill([tf.reduce_sum(before)], NOWHERE)
        empty = tf.RaggedTensor.from_row_lengths(empty, before, validate=False)
        return tf.concat([empty, places], axis=1).to_tensor(NOWHERE, shape=[None, sequence_length])

    first_token, last_token = (tf.gather(x, rows) for x in _answer_tokens(context, answers))
    is_whole = (first <= first_token) & (first_token <= last_token) & (last_token < last)
    shift = before - first
    return Windows(
        token_ids=token_ids.to_tensor(PAD_TOKEN_ID, shape=[None, sequence_length]),
        padding_mask=tf.sequence_mask(token_ids.row_lengths(), sequence_length),
        rows=rows,
        starts=places(context.starts),
        ends=places(context.ends),
        start_positions=tf.cast(tf.where(is_whole, first_token + shift, 0), tf.int32),
        end_positions=tf.cast(tf.where(is_whole, last_token + shift, 0), tf.int32),
    )


def check_window_sizes(
    sequence_length: int, stride: int, max_question_length: int, max_answer_length: int
) -> None:
    """Raises `ValueError` unless a window holds every answer of up to `max_answer_length` whole."""
    for name, value in (
        ("stride", stride),
        ("max_question_length", max_question_length),
        ("max_answer_length", max_answer_length),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    room = sequence_length - max_question_length - NUM_SPECIAL_TOKENS
    needed = stride + max_answer_length - 1
    if needed > room:
        raise ValueError(
            f"sequence_length={sequence_length} leaves {room} tokens for the context beside "
            f"max_question_length={max_question_length} and {NUM_SPECIAL_TOKENS} special tokens, "
            f"but stride={stride} and max_answer_length={max_answer_length} need {needed}."
        )


def _answer_tokens(context: TokenOffsets, answers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first and the last token, [B] int64, with a part of the answer; last < first if none."""
    starts, ends = context.starts.flat_values, context.ends.flat_values
    rows = context.starts.value_rowids()
    answers = tf.gather(tf.cast(answers, tf.int32), rows)
    # A lone "▁" has no characters, and is not part of an answer.
    is_part = tf.maximum(starts, answers[:, 0]) < tf.minimum(ends, answers[:, 1])
    positions = tf.ragged.range(context.starts.row_lengths()).flat_values
    first = tf.math.unsorted_segment_min(
        tf.where(is_part, positions, positions.dtype.max), rows, context.starts.nrows()
    )
    last = tf.math.unsorted_segment_max(
        tf.where(is_part, positions, -1), rows, context.starts.nrows()
    )
    return first, last


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
    if len(questions) != len(contexts) or (answers is not None and len(answers) != len(questions)):
        raise ValueError("there must be as many contexts, and answers, as questions.")
    answers = np.zeros([len(questions), 2], np.int32) if answers is None else np.asarray(answers)
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
    rows: WindowRows, batch_size: int, seed: int, buckets: int = 8
) -> tuple[tf.data.Dataset, int]:
    """Endless shuffled batches for `CocoLMQuestionAnswerer.fit`, and how many an epoch has."""
    batches, steps = training_batches(rows.tokens, rows.labels, batch_size, seed, buckets)
    return batches.map(lambda x, y, weights: (x, by_side(y), weights)), steps


def reading_batches(rows: WindowRows, batch_size: int) -> tuple[tf.data.Dataset, np.ndarray]:
    """Features with the places of their tokens, the shortest first, and each one's window."""
    # The numbers of the windows leave out the rows that fill the last batch.
    columns = {"starts": Column(rows.starts, NOWHERE), "ends": Column(rows.ends, NOWHERE)}
    batches, order = prediction_batches(rows.tokens, batch_size, columns=columns)

    def with_places(features: dict[str, tf.Tensor], columns: dict[str, tf.Tensor]) -> Any:
        return features | {name: columns[name] for name in ("starts", "ends")}

    return batches.map(with_places), order


def by_side(labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """The tokens [B, 2] that answers begin and end with, as the model's outputs are named."""
    return {"start": labels[:, 0], "end": labels[:, 1]}

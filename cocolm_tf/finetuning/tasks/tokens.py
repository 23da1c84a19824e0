"""Labels of words and spans: named entities, parts of speech, and other tags."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from sklearn import metrics

from cocolm_tf import files
from cocolm_tf.data.examples import stratified
from cocolm_tf.data.tags import (
    NO_SCHEME,
    Chunk,
    TaggedTexts,
    TagTask,
    chunks,
    read_tag_task,
    tags_of_chunks,
)
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import describe_lengths
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.metrics import chosen_first, span_scores, span_scores_by_label
from cocolm_tf.finetuning.models.token_classifier import (
    CocoLMTokenClassifier,
    CocoLMTokenClassifierPreprocessor,
)
from cocolm_tf.finetuning.models.token_rows import TokenRows
from cocolm_tf.finetuning.predictions import PREDICTIONS_DIRECTORY
from cocolm_tf.finetuning.tasks.task import (
    Prepared,
    Scores,
    Task,
    finite,
    load_encoder,
    part_lines,
    score_text,
    table_files,
)

_OF_SPANS = ("f1", "precision", "recall", "macro_f1", "accuracy")
_OF_WORDS = ("accuracy", "macro_f1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensTask(Task):
    """A run of a token classifier, on named entities, parts of speech or other tags.

    Args:
        data: The arguments of `cocolm_tf.data.tags.read_tag_task`, as `train_file`,
            `dev_file` and `test_file`.
        unit: What has a label in texts that come as strings, `word` or `token`; see
            `CocoLMTokenClassifierPreprocessor`.
        **kwargs: As for `Task`.

    Example:
    ```python
    data = {"train_file": "train.conll", "dev_file": "dev.conll"}
    TokensTask(preset="runs/first/preset", config=config.as_dict(), data=data)
    ```
    """

    family: ClassVar[str] = "tokens"

    data: dict[str, Any]
    unit: str = "word"

    def read(self) -> TagTask:
        return read_tag_task(**self.data)

    def metrics_of(self, data: TagTask) -> tuple[str, ...]:
        return chosen_first(
            self.metric, _OF_WORDS if data.scheme == NO_SCHEME else _OF_SPANS, data.name
        )

    def files_read(self) -> list[str]:
        return table_files(**self.data)

    def prepare(self, config: FinetuningConfig) -> "PreparedTokens":
        return PreparedTokens(self, config)


class PreparedTokens(Prepared):
    """A token classifier that is ready to train."""

    hub_task = "token-classification"
    unit = "windows"
    task: TokensTask

    def __init__(self, task: TokensTask, config: FinetuningConfig) -> None:
        super().__init__(task, config)
        if config.trainer.label_smoothing:
            raise UserError("trainer.label_smoothing must be 0: tags of words have none.")
        self._data = data = task.read()
        self._metrics = task.metrics_of(data)
        train = data.train
        if task.train_fraction < 1:
            # Where words have labels of their own, all texts count alike.
            has_spans = np.int32([any(one != "O" for one in labels) for labels in train.labels])
            train = train.select(stratified(has_spans, task.train_fraction, task.seed))
        self.model = build_token_classifier(task, config, data)
        self._parts: dict[str, TaggedTexts] = {"train": train, **data.dev}
        self._rows: dict[str, TokenRows] = {}
        self._labels: dict[str, np.ndarray] = {}
        self.report: dict[str, Any] = {}
        for part in list(self._parts):
            self._tokenize(part)
        self.name, self.metric = data.name, self._metrics[0]
        self.summary = "\n".join([f"{data.name}:", *map(_part_line, self.report.items())])

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        # An example is a window.
        batches, steps = self.model.learning_batches(
            self._rows["train"], self._labels["train"], *self.batching
        )
        return batches, steps, len(self._rows["train"].tokens)

    def compile_arguments(self) -> dict[str, Any]:
        # No accuracy of steps: `measure` has better metrics.
        return {"weighted_metrics": []}

    def measure(self) -> Scores:
        return {part: self._scores(part, self._logits(part)) for part in self._data.dev}

    def artifacts(self, folder: str) -> dict[str, Any]:
        data = self._data
        for part, texts in data.test.items():
            self._parts[part] = texts
            self._tokenize(part)
        found: dict[str, Any] = {"baseline": {}, "by_label": {}, "test": {}}
        for part in (*data.dev, *data.test):
            logits = self._logits(part)
            self._write(os.path.join(folder, PREDICTIONS_DIRECTORY), part, logits)
            if self._parts[part].labels is None:
                continue
            if part in data.dev:
                found["baseline"][part] = self._scores(part, self._guesses(part))
            else:
                found["test"][part] = self._scores(part, logits)
            if data.scheme != NO_SCHEME:
                truth, spans = self._truth(part), self._found(part, logits)
                found["by_label"][part] = span_scores_by_label(truth, spans)
        return {key: value for key, value in found.items() if value or key == "baseline"}

    def card(self, results: Mapping[str, Any]) -> dict[str, Any]:
        data, train, dev = self._data, results["data"]["train"], results["data"]["dev"]
        what = "labels words" if data.scheme == NO_SCHEME else "finds labeled spans in texts"
        return {
            "description": f"A COCO-LM text encoder, {self.origin}. It {what}. Its labels: "
            f"{', '.join(data.label_names)}.",
            "head": "a token classification head",
            "direct_use": f"Labeling texts like those of {data.name}.",
            "call": 'predict(["A text."])',
            "training_data": f"{train['rows']:,} texts of {train['source']}, {train['units']:,} "
            "words.",
            "settings": {"scheme": data.scheme, "unit": self.task.unit},
            "evaluation_data": f"{dev['rows']:,} texts of {dev['source']}. Always to say the "
            f"commonest tag of the training words scores {score_text(results['baseline'])}.",
        }

    def _tokenize(self, part: str) -> None:
        """Makes the rows of a part, and the report on it."""
        texts = self._parts[part]
        if texts.labels is None:
            self._rows[part] = self.model.preprocessor.rows(texts.texts)
        else:
            self._rows[part], self._labels[part] = self.model.labeled_rows(
                texts.texts, texts.labels
            )
        rows = self._rows[part]
        read = rows.units[rows.units >= 0]
        self.report[part] = {
            "rows": len(texts),
            "source": texts.source,
            "left_out": list(texts.left_out),
            "units": len(rows.starts),
            "unread": len(rows.starts) - len(read),
            "windows": len(rows.tokens),
            "labels": self._label_counts(part),
            "inexact": self._inexact(part),
            "tokens": describe_lengths(rows.tokens),
        }

    def _label_counts(self, part: str) -> dict[str, int] | None:
        if part not in self._labels:
            return None
        if self._data.scheme == NO_SCHEME:
            counts = np.bincount(self._labels[part], minlength=len(self.model.tag_names))
            return dict(zip(self.model.tag_names, counts.tolist(), strict=True))
        labels = [label for spans in self._truth(part) for *_, label in spans]
        return {name: labels.count(name) for name in self._data.label_names}

    def _inexact(self, part: str) -> int:
        """How many spans cannot be found, as they do not begin and end where units do."""
        if part not in self._labels or self._data.scheme == NO_SCHEME:
            return 0
        sure = np.eye(len(self.model.tag_names), dtype=np.float32)[self._labels[part]]
        learned = self._found(part, sure)
        return sum(len({*a} - {*b}) for a, b in zip(self._truth(part), learned, strict=True))

    def _truth(self, part: str) -> list[list[Chunk]]:
        """The true spans of texts: in words where texts come as words, else in characters."""
        texts = self._parts[part]
        return (
            [chunks(tags) if tags else [] for tags in texts.labels]
            if texts.has_words
            else [*map(list, texts.labels)]
        )

    def _found(self, part: str, logits: np.ndarray) -> list[list[Chunk]]:
        """The spans that logits mean, in the same units as those of `_truth`."""
        place = 0 if self._parts[part].has_words else 1
        by_text = self.model.spans_of(self._rows[part], logits)
        return [[span[place] for span in spans] for spans in by_text]

    def _logits(self, part: str) -> np.ndarray:
        return finite(self.model.unit_logits(self._rows[part]))

    def _scores(self, part: str, logits: np.ndarray) -> dict[str, float]:
        labels, numbers = self._labels[part], logits.argmax(axis=1)
        scores = {"accuracy": float(metrics.accuracy_score(labels, numbers))}
        if self._data.scheme == NO_SCHEME:
            scores["macro_f1"] = float(
                metrics.f1_score(labels, numbers, average="macro", zero_division=0.0)
            )
        else:
            scores |= span_scores(self._truth(part), self._found(part, logits))
        return {name: scores[name] for name in self._metrics}

    def _guesses(self, part: str) -> np.ndarray:
        """The baseline: logits of the commonest tag of the training words, for all words."""
        count = len(self.model.tag_names)
        commonest = np.bincount(self._labels["train"], minlength=count).argmax()
        return np.tile(np.eye(count, dtype=np.float32)[commonest], [len(self._labels[part]), 1])

    def _write(self, folder: str, part: str, logits: np.ndarray) -> None:
        """Writes what was found: CoNLL's columns for words, JSON lines for texts."""
        files.make_dirs(folder)
        texts = self._parts[part]
        by_text = self.model.spans_of(self._rows[part], logits)
        if texts.has_words:
            lines = [
                "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
                for words, tags in zip(texts.texts, self._tags(texts, by_text), strict=True)
            ]
            files.write_text(os.path.join(folder, f"{part}.conll"), "\n".join(lines))
            return
        rows = []
        for text, spans in zip(texts.texts, by_text, strict=True):
            found = [
                {
                    "start": start,
                    "end": end,
                    "label": label,
                    "text": text[start:end],
                    "score": round(score, 4),
                }
                for _, (start, end, label), score in spans
            ]
            rows.append(json.dumps({"text": text, "spans": found}, ensure_ascii=False) + "\n")
        files.write_text(os.path.join(folder, f"{part}.jsonl"), "".join(rows))

    def _tags(self, texts: TaggedTexts, by_text: Sequence[Sequence[Any]]) -> list[list[str]]:
        if self._data.scheme == NO_SCHEME:
            return [[chunk.label for chunk, *_ in spans] for spans in by_text]
        return [
            tags_of_chunks([chunk for chunk, *_ in spans], len(words), self._data.scheme)
            for words, spans in zip(texts.texts, by_text, strict=True)
        ]


def build_token_classifier(
    task: TokensTask, config: FinetuningConfig, data: TagTask
) -> CocoLMTokenClassifier:
    """Puts a new head on the encoder of a task's preset."""
    with files.local_copy(task.preset) as preset:
        backbone, length = load_encoder(task, config, preset)
        preprocessor = CocoLMTokenClassifierPreprocessor.from_preset(
            preset, sequence_length=length, unit=task.unit
        )
    return CocoLMTokenClassifier(backbone, data.label_names, preprocessor, data.scheme)


def _part_line(named: tuple[str, Mapping[str, Any]]) -> str:
    """Lines on a part, for people."""
    name, part = named
    notes = []
    if part["unread"]:
        notes.append(f"{part['unread']:,} words that the tokenizer cannot read")
    if part["inexact"]:
        notes.append(f"{part['inexact']:,} spans that do not begin and end where words do")
    size = f"{part['units']:,} words in {part['windows']:,} windows and {part['rows']:,} texts"
    return part_lines(name, part, size, notes, shares=False)

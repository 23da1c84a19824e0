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
from cocolm_tf.finetuning.encoder import encoder_of, row_length
from cocolm_tf.finetuning.models.token_classifier import (
    CocoLMTokenClassifier,
    CocoLMTokenClassifierPreprocessor,
)
from cocolm_tf.finetuning.models.token_rows import TokenRows
from cocolm_tf.finetuning.tag_metrics import span_scores, span_scores_by_label
from cocolm_tf.finetuning.tasks.task import (
    Prepared,
    Scores,
    Task,
    base_model,
    best_epoch_line,
    card_results,
    settings_of,
    shared_facts,
)
from cocolm_tf.training.model_card import Facts

PREDICTIONS_DIRECTORY = "predictions"

_HUB_TASK = "token-classification"
_FILES = ("train_file", "dev_file", "test_file")
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
        metric: What chooses the best measurement; empty for F1, or for the accuracy where words
            have labels of their own.
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
    metric: str = ""

    def read(self) -> TagTask:
        """Reads the texts."""
        return read_tag_task(**self.data)

    def files_read(self) -> list[str]:
        return [self.data[name] for name in _FILES if self.data.get(name)]

    def check(self) -> str:
        data = self.read()
        metrics_of(data, self.metric)
        return data.name

    def prepare(self, config: FinetuningConfig) -> "PreparedTokens":
        return PreparedTokens(self, config)


class PreparedTokens(Prepared):
    """A token classifier that is ready to train."""

    def __init__(self, task: TokensTask, config: FinetuningConfig) -> None:
        if config.trainer.label_smoothing:
            raise UserError("trainer.label_smoothing must be 0: tags of words have none.")
        self._task, self._config = task, config
        self._data = data = task.read()
        self._metrics = metrics_of(data, task.metric)
        train = data.train
        if task.train_fraction < 1:
            has_spans = np.int32([_has_spans(labels) for labels in train.labels])
            train = train.select(stratified(has_spans, task.train_fraction, task.seed))
        self.model = build_token_classifier(task, config, data)
        self._parts: dict[str, TaggedTexts] = {"train": train, **data.dev}
        self._rows: dict[str, TokenRows] = {}
        self._labels: dict[str, np.ndarray] = {}
        self.report: dict[str, Any] = {}
        for part in list(self._parts):
            self._lay_out(part)
        self.name, self.metric = data.name, self._metrics[0]
        self.summary = "\n".join([f"{data.name}:", *map(_part_line, self.report.items())])

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        # An example is a window.
        batches, steps = self.model.learning_batches(
            self._rows["train"],
            self._labels["train"],
            self._config.trainer.batch_size,
            self._task.seed,
            self._config.data.length_buckets,
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
            self._lay_out(part)
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

    def facts(self, results: Mapping[str, Any]) -> Facts:
        task, data, rows = self._task, self._data, results["data"]
        labels = ", ".join(data.label_names)
        guess = ", ".join(
            f"{metric} {value:.4f} ({part})"
            for part, scores in results["baseline"].items()
            for metric, value in scores.items()
        )
        what = "labels words" if data.scheme == NO_SCHEME else "finds labeled spans in texts"
        return Facts(
            name=f"COCO-LM on {data.name}",
            description=f"A COCO-LM text encoder, fine-tuned on {data.name} from {task.start}. It "
            f"{what}. Its labels: {labels}.",
            pipeline_tag=_HUB_TASK,
            base_model=base_model(task),
            direct_use=f"Labeling texts like those of {data.name}.",
            usage="from cocolm_tf import CocoLMTokenClassifier\n\n"
            'tagger = CocoLMTokenClassifier.from_preset("path/of/this/folder")\n'
            'tagger.predict(["A text."])',
            training_data=f"{rows['train']['rows']:,} texts of {rows['train']['source']}, "
            f"{rows['train']['units']:,} words.",
            settings=settings_of(task) | {"scheme": data.scheme, "unit": task.unit},
            speed=f"{results['examples_per_second']:.1f} windows a second; "
            + best_epoch_line(results),
            evaluation_data=f"{rows['dev']['rows']:,} texts of {rows['dev']['source']}. Always to "
            f"say the commonest tag of the training words scores {guess}.",
            results=card_results(_HUB_TASK, data.name, results["dev"]),
            **shared_facts(results, self.model.backbone, "a token classification head"),
        )

    def _lay_out(self, part: str) -> None:
        """Makes the rows of a part, and the report on it."""
        texts = self._parts[part]
        if texts.labels is None:
            self._rows[part] = self.model.preprocessor.rows(texts.texts)
        else:
            self._rows[part], self._labels[part] = self.model.labeled_rows(
                texts.texts, texts.labels
            )
        rows = self._rows[part]
        spoken = rows.units[rows.units >= 0]
        self.report[part] = {
            "rows": len(texts),
            "source": texts.source,
            "left_out": list(texts.left_out),
            "units": len(rows.starts),
            "unread": len(rows.starts) - len(spoken),
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
        logits = self.model.unit_logits(self._rows[part])
        if not np.isfinite(logits).all():
            raise FloatingPointError
        return logits

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


def metrics_of(data: TagTask, chosen: str = "") -> tuple[str, ...]:
    """The metrics, first the one to choose by; `UserError` if there is no such metric."""
    names = _OF_WORDS if data.scheme == NO_SCHEME else _OF_SPANS
    if chosen and chosen not in names:
        raise UserError(f"--metric={chosen}: that of {data.name} is one of {', '.join(names)}.")
    return tuple(dict.fromkeys((chosen or names[0], *names)))


def build_token_classifier(
    task: TokensTask, config: FinetuningConfig, data: TagTask
) -> CocoLMTokenClassifier:
    """Puts a new head on the encoder of a task's preset."""
    with files.local_copy(task.preset) as preset:
        backbone = encoder_of(dataclasses.replace(task, preset=preset), config)
        length = row_length(config.data.sequence_length, backbone)
        preprocessor = CocoLMTokenClassifierPreprocessor.from_preset(
            preset, sequence_length=length, unit=task.unit
        )
    return CocoLMTokenClassifier(backbone, data.label_names, preprocessor, data.scheme)


def _has_spans(labels: Sequence[Any]) -> bool:
    """Whether a text has a span; where words have labels of their own, all have."""
    return any(label != "O" for label in labels)


def _part_line(named: tuple[str, Mapping[str, Any]]) -> str:
    """Lines on a part, for people."""
    name, part = named
    lengths = part["tokens"]
    line = (
        f"  {name}: {part['rows']:,} texts of {part['source']}, {part['units']:,} words, in "
        f"{part['windows']:,} windows; tokens: median {lengths['median']}, 95% up to "
        f"{lengths['percentile_95']}, longest {lengths['longest']}"
    )
    if part["labels"]:
        shown = [f"{label} {count:,}" for label, count in part["labels"].items()]
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        line += f"; labels: {', '.join(shown[:10])}{more}"
    if part["unread"]:
        line += f"\n    {part['unread']:,} words that the tokenizer cannot read"
    if part["inexact"]:
        line += f"\n    {part['inexact']:,} spans that do not begin and end where words do"
    if part["left_out"]:
        line += f"\n    left out: {'; '.join(part['left_out'])}"
    return line

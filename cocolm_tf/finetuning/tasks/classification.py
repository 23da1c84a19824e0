"""Classification and regression of texts: GLUE, SuperGLUE, and tables of one's own."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData, stratified
from cocolm_tf.data.glue import glue_files, read_glue
from cocolm_tf.data.superglue import (
    SUPERGLUE_TASKS,
    SuperGlueData,
    chosen,
    leaderboard_lines,
    read_superglue,
    superglue_files,
    superglue_scores,
)
from cocolm_tf.data.table_task import read_table_task
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import (
    Tokens,
    describe_lengths,
    predict_rows,
    tokenized,
    training_batches,
)
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.metrics import (
    best_thresholds,
    chosen_first,
    evaluate,
    guesses,
    metrics_of,
    predicted,
)
from cocolm_tf.finetuning.models.text_classifier import (
    CocoLMTextClassifier,
    CocoLMTextClassifierPreprocessor,
)
from cocolm_tf.finetuning.predictions import (
    OUTPUTS_DIRECTORY,
    probabilities,
    read_outputs,
    save_predictions,
)
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

# Of each kind of data: what reads it, the files that it reads, the Hub's name of the dataset.
_KINDS = {
    "glue": (read_glue, glue_files, "nyu-mll/glue"),
    "superglue": (read_superglue, superglue_files, "aps/super_glue"),
    "table": (read_table_task, table_files, ""),
}

_TEXTS, _PAIRS = '["A text."]', '(["A text."], ["Its second text."])'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A run on labeled texts, whatever the model."""

    # `data` is `{kind: arguments}`, the arguments of what reads that of `_KINDS`.

    data: dict[str, dict[str, Any]]

    @property
    def has_leaderboard(self) -> bool:
        return "table" not in self.data

    def read(self) -> TaskData:
        ((kind, arguments),) = self.data.items()
        return _KINDS[kind][0](**arguments)

    def files_read(self) -> list[str]:
        ((kind, arguments),) = self.data.items()
        return _KINDS[kind][1](**arguments)

    def metrics_of(self, data: TaskData) -> tuple[str, ...]:
        return metrics_of(data, self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationTask(TextTask):
    """A run of a text classifier, or of a regression, on GLUE or on tables of one's own.

    Args:
        data: `{"glue": {"task": ..., "data_dir": ...}}`, where without `data_dir` TensorFlow
            Datasets has the data; or `{"table": {...}}` with `train_file`, `dev_file`, `test_file`,
            `text_column`, `second_text_column`, `label_column`, `regression` and the like, the
            arguments of `cocolm_tf.data.table_task.read_table_task`.
        class_weights: How much an example of each class counts: `balanced`, all classes alike
            whatever their numbers, or `NAME=WEIGHT,...`, 1 for those that are not named; empty for
            all examples alike.
        tune_thresholds: Whether to choose for each of several labels, on the dev set, the
            probability from which on a text has it; else that is 0.5.
        **kwargs: As for `Task`.

    Example:
    ```python
    ClassificationTask(
        preset="runs/first/preset", config=config.as_dict(), data={"glue": {"task": "rte"}}
    )
    ```
    """

    family: ClassVar[str] = "classification"

    class_weights: str = ""
    tune_thresholds: bool = False

    def check(self) -> str:
        data = self.read()
        self.metrics_of(data)
        weights_of_classes(self.class_weights, data)
        return data.name

    def sample(self, data: TaskData) -> np.ndarray:
        """The numbers of the training examples to learn from, for a `train_fraction` below 1."""
        return stratified(data.train.labels, self.train_fraction, self.seed)

    def predicted(self, data: TaskData, part: str, shares: np.ndarray) -> np.ndarray:
        """The predictions of a part, given probabilities or numbers [N, classes]."""
        return (shares >= 0.5).astype(np.int32) if data.multi_label else predicted(shares)

    def evaluated(self, data: TaskData, part: str, predictions: np.ndarray) -> dict[str, float]:
        """Scores the predictions of a dev set by the task's metrics."""
        return evaluate(self.metrics_of(data), data.dev[part].labels, predictions)

    def save_predictions(
        self, folder: str, shares: Mapping[str, np.ndarray], data: TaskData, decide: Any = None
    ) -> dict[str, Any]:
        """Writes all files of predictions, see `save_predictions`, and returns its assessment."""
        default = functools.partial(self.predicted, data, "")
        return save_predictions(folder, shares, data, decide or default)

    def ensemble(self, runs: Sequence[str], folder: str) -> dict[str, Any]:
        data = self.read()
        shares = {}
        for part in (*data.dev, *data.test):
            paths = [os.path.join(run, OUTPUTS_DIRECTORY, f"{part}.csv") for run in runs]
            shares[part] = np.mean([read_outputs(path, data.label_names) for path in paths], axis=0)
        assessment = self.save_predictions(folder, shares, data)
        dev = {
            part: self.evaluated(data, part, self.predicted(data, part, shares[part]))
            for part in data.dev
        }
        return {"dev": dev, "assessment": assessment}

    def prepare(self, config: FinetuningConfig) -> "PreparedClassification":
        return PreparedClassification(self, config)


class SuperGlueClassificationTask(ClassificationTask):
    """A run on a task of SuperGLUE, as the classification of texts.

    Args:
        data: `{"superglue": {"task": ..., "data_dir": ...}}`, the arguments of
            `cocolm_tf.data.superglue.read_superglue`.
        **kwargs: As for `ClassificationTask`.

    Example:
    ```python
    data = {"superglue": {"task": "copa", "data_dir": "superglue"}}
    SuperGlueClassificationTask(preset="runs/first/preset", config=config.as_dict(), data=data)
    ```
    """

    family: ClassVar[str] = "superglue"

    def metrics_of(self, data: TaskData) -> tuple[str, ...]:
        return chosen_first(self.metric, data.metrics, data.name)

    def sample(self, data: SuperGlueData) -> np.ndarray:
        # Whole questions, as a question's candidates belong together.
        rows = data.rows["train"]
        if rows.num_groups == len(data.train):
            return super().sample(data)
        generator = np.random.default_rng(self.seed)
        count = max(1, round(self.train_fraction * rows.num_groups))
        kept = generator.permutation(rows.num_groups)[:count]
        return np.flatnonzero(np.isin(rows.groups, kept))

    def predicted(self, data: SuperGlueData, part: str, shares: np.ndarray) -> np.ndarray:
        # Of a question's candidates, 1 for the one that is chosen.
        if SUPERGLUE_TASKS[data.key].chooses:
            return chosen(data.rows[part], shares[:, 1])
        return super().predicted(data, part, shares)

    def evaluated(
        self, data: SuperGlueData, part: str, predictions: np.ndarray
    ) -> dict[str, float]:
        if SUPERGLUE_TASKS[data.key].chooses and not predictions.any():
            # The baseline, which predicts that no candidate is right, takes the first one.
            predictions = chosen(data.rows[part], np.zeros(len(predictions)))
        scores = superglue_scores(data, part, data.dev[part].labels, predictions)
        return {name: scores[name] for name in self.metrics_of(data)}

    def save_predictions(
        self, folder: str, shares: Mapping[str, np.ndarray], data: TaskData, decide: Any = None
    ) -> dict[str, Any]:
        def write(predictions: str, part: str, of_part: np.ndarray) -> None:
            # In the leaderboard's format.
            files.make_dirs(predictions)
            found = self.predicted(data, part, of_part)
            lines = leaderboard_lines(data.key, data.rows[part], found)
            files.write_text(os.path.join(predictions, f"{part}.jsonl"), "".join(lines))

        return save_predictions(folder, shares, data, write=write)


class PreparedClassification(Prepared):
    """A text classifier that is ready to train."""

    task: ClassificationTask

    def __init__(self, task: ClassificationTask, config: FinetuningConfig) -> None:
        super().__init__(task, config)
        self._data = data = task.read()
        self._train = data.train
        if task.train_fraction < 1:
            self._train = data.train.select(task.sample(data))
        # The numbers of a regression are learned as deviations from their mean.
        self._mean, self._scale = 0.0, 1.0
        if data.label_names is None:
            labels = self._train.labels
            self._mean, self._scale = float(labels.mean()), float(labels.std()) or 1.0
        self._weights = weights_of_classes(task.class_weights, data, self._train.labels)
        self.model = build_classifier(task, config, data)
        self._tokens = {
            name: tokenized(self.model.preprocessor, part)
            for name, part in {"train": self._train, **data.dev}.items()
        }
        self.name, self.metric = data.name, task.metrics_of(data)[0]
        self.report = describe_data(data, self._train, self._tokens)
        self.summary = data_lines(data.name, self.report)

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        labels = self._train.labels
        if self._data.label_names is None:
            labels = (labels - self._mean) / self._scale
        batches, steps = training_batches(
            self._tokens["train"],
            labels,
            *self.batching,
            None if self._weights is None else self._weights[self._train.labels],
        )
        return batches, steps, len(self._train)

    def compile_arguments(self) -> dict[str, Any]:
        return smoothed_loss(self.config.trainer.label_smoothing, self._data)

    def measure(self) -> Scores:
        task, data, scores = self.task, self._data, {}
        for part in data.dev:
            shares = probabilities(finite(self._outputs(part)), data.multi_label)
            scores[part] = task.evaluated(data, part, task.predicted(data, part, shares))
        return scores

    def artifacts(self, folder: str) -> dict[str, Any]:
        data, train = self._data, self._train.labels
        if data.label_names is None:
            self._rescale()
        for part, examples in data.test.items():
            self._tokens[part] = tokenized(self.model.preprocessor, examples)
            self.report[part]["tokens"] = describe_lengths(self._tokens[part])
        shares = {
            part: probabilities(self._outputs(part), data.multi_label)
            for part in (*data.dev, *data.test)
        }
        tuned = self._tuned(shares) if data.multi_label and self.task.tune_thresholds else {}
        decide = self._assigned if data.multi_label else None
        return {
            **tuned,
            "assessment": self.task.save_predictions(folder, shares, data, decide),
            "baseline": {
                part: self.task.evaluated(data, part, guesses(train, len(examples)))
                for part, examples in data.dev.items()
            },
        }

    def card(self, results: Mapping[str, Any]) -> dict[str, Any]:
        train = results["data"]["train"]
        return card_of_texts(self.task, self._data, results["baseline"]) | {
            "description": f"A COCO-LM text encoder, {self.origin}. {classes_line(self._data)}",
            "head": "a classification head",
            "training_data": f"{train['rows']:,} rows of {train['source']}.",
        }

    def _outputs(self, part: str) -> np.ndarray:
        """The outputs [N, classes] for a part's examples, in their order."""
        return predict_rows(self.model, self._tokens[part]) * self._scale + self._mean

    def _assigned(self, shares: np.ndarray) -> np.ndarray:
        """Which of several labels texts have, [N, classes], by the model's thresholds."""
        thresholds = self.model.thresholds or [0.5] * self.model.num_classes
        return (shares >= np.array(thresholds)).astype(np.int32)

    def _tuned(self, shares: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Gives the model the thresholds that are best for the first dev set."""
        data = self._data
        part, examples = next(iter(data.dev.items()))
        self.model.thresholds = best_thresholds(examples.labels, shares[part])
        scores = {
            part: self.task.evaluated(data, part, self._assigned(shares[part])) for part in data.dev
        }
        return {"thresholds": self.model.thresholds, "tuned": scores}

    def _rescale(self) -> None:
        """Makes the model itself predict numbers in their own units, for whoever loads it."""
        kernel, bias = self.model.output_dense.get_weights()
        self.model.output_dense.set_weights([kernel * self._scale, bias * self._scale + self._mean])
        self._mean, self._scale = 0.0, 1.0


def weights_of_classes(
    text: str, data: TaskData, train_labels: np.ndarray | None = None
) -> np.ndarray | None:
    """The weights [classes] of `ClassificationTask.class_weights`; None for all alike."""
    # They are 1 on average over the training rows, or over `train_labels` [N].
    if not text:
        return None
    if data.label_names is None or data.multi_label:
        kind = "several labels a text have" if data.multi_label else "a regression has"
        raise UserError(f"--class_weights: {kind} no classes.")
    labels = data.train.labels if train_labels is None else train_labels
    counts = np.bincount(labels, minlength=data.num_classes)
    if text == "balanced":
        weights = 1 / np.maximum(counts, 1)
    else:
        by_name = dict.fromkeys(data.label_names, 1.0)
        for part in text.split(","):
            name, _, weight = part.rpartition("=")
            if name not in by_name:
                raise UserError(
                    f"--class_weights: {part!r} is none of balanced or CLASS=WEIGHT, where the "
                    f"class is one of {', '.join(data.label_names[:20])}."
                )
            try:
                by_name[name] = float(weight)
            except ValueError:
                by_name[name] = np.nan
        weights = np.array([*by_name.values()])
        if not (np.isfinite(weights).all() and (weights >= 0).all() and (counts @ weights) > 0):
            raise UserError(f"--class_weights={text}: weights are numbers, 0 or more, not all 0.")
    return (weights * counts.sum() / (counts @ weights)).astype(np.float32)


def smoothed_loss(smoothing: float, data: TaskData) -> dict[str, Any]:
    """The `loss` of `compile()` for smoothed labels; nothing where labels are not smoothed."""
    if not smoothing:
        return {}
    if data.label_names is None:
        raise UserError("trainer.label_smoothing: a regression has no classes.")
    how = {"from_logits": True, "label_smoothing": smoothing}
    if data.multi_label:
        return {"loss": keras.losses.BinaryCrossentropy(**how)}

    def loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        wanted = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), data.num_classes)
        return keras.losses.categorical_crossentropy(wanted, logits, **how)

    return {"loss": loss}


def build_classifier(task: Task, config: FinetuningConfig, data: TaskData) -> CocoLMTextClassifier:
    """Puts a new head on the encoder of a task's preset."""
    with files.local_copy(task.preset) as preset:
        backbone, length = load_encoder(task, config, preset)
        preprocessor = CocoLMTextClassifierPreprocessor.from_preset(preset, sequence_length=length)
    return CocoLMTextClassifier(
        backbone, data.num_classes, preprocessor, data.label_names, multi_label=data.multi_label
    )


def describe_data(data: TaskData, train: Examples, tokens: Mapping[str, Tokens]) -> dict[str, Any]:
    """Summarizes the examples of each part, for JSON."""
    # `train` are those of the training examples that the run learns from, `tokens` those of some
    # parts. A part has `rows`, `source`, `left_out`, `tokens` (see `describe_lengths`) and, where
    # they are known, `labels`: how many there are of each class, or a regression's `mean`, `min`
    # and `max`.
    parts = {"train": train, **data.dev, **data.test}
    return {
        name: {
            "rows": len(examples),
            "source": examples.source,
            "left_out": list(examples.left_out),
            "labels": None if examples.labels is None else _labels(examples.labels, data),
            "tokens": describe_lengths(tokens[name]) if name in tokens else None,
        }
        for name, examples in parts.items()
    }


def data_lines(name: str, report: Mapping[str, Any]) -> str:
    """Lays out a report on parts with rows, in lines for people."""
    lines = [part_lines(part, facts, f"{facts['rows']:,} rows") for part, facts in report.items()]
    return "\n".join([f"{name}:", *lines])


def _labels(labels: np.ndarray, data: TaskData) -> dict[str, float]:
    if data.label_names is None:
        return spread_of(labels)
    if data.multi_label:
        counts = labels.sum(axis=0)
    else:
        counts = np.bincount(labels, minlength=data.num_classes)
    return dict(zip(data.label_names, counts.tolist(), strict=True))


def spread_of(numbers: np.ndarray) -> dict[str, float]:
    """The `mean`, `min` and `max` of numbers, for JSON."""
    return {name: float(getattr(numbers, name)()) for name in ("mean", "min", "max")}


def card_of_texts(task: TextTask, data: TaskData, baseline: Scores) -> dict[str, Any]:
    """The fields of the model card that all models of labeled texts have."""
    ((kind, _),) = task.data.items()
    dataset = _KINDS[kind][2]
    verb, guess = "Classifying", "commonest class"
    if data.label_names is None:
        verb, guess = "Rating", "mean"
    elif data.multi_label:
        guess = "labels of more than half"
    measured = (
        f"{part}: {len(examples):,} rows of {examples.source}"
        for part, examples in data.dev.items()
    )
    is_pairs = data.train.second is not None
    return {
        "call": f"predict({_PAIRS if is_pairs else _TEXTS})",
        "languages": ("en",) if dataset else (),
        "datasets": (dataset,) if dataset else (),
        "direct_use": f"{verb} texts like those of {data.name}.",
        "evaluation_data": f"{'; '.join(measured)}. Always to predict the {guess} of the training "
        f"rows scores {score_text(baseline)}.",
    }


def classes_line(data: TaskData) -> str:
    """A sentence on what a model of a task predicts."""
    if data.label_names is None:
        return "It predicts a number."
    several = ", of which a text has any number" if data.multi_label else ""
    return f"Its classes{several}: {', '.join(data.label_names)}."

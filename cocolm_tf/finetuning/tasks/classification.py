"""Classification and regression of texts: the tasks of GLUE and tables of one's own."""

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
from cocolm_tf.finetuning.encoder import encoder_of, row_length
from cocolm_tf.finetuning.metrics import best_thresholds, evaluate, guesses, metrics_of, predicted
from cocolm_tf.finetuning.models.text_classifier import (
    CocoLMTextClassifier,
    CocoLMTextClassifierPreprocessor,
)
from cocolm_tf.finetuning.predictions import (
    OUTPUTS_DIRECTORY,
    leave_predictions,
    probabilities,
    read_outputs,
)
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

_READERS = {"glue": read_glue, "table": read_table_task}
_TABLES = ("train_file", "dev_file", "test_file")
_HUB_TASK = "text-classification"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A run on labeled texts, whatever the model."""

    # `data` are the arguments of `read_glue` as `{"glue": {...}}`, or of `read_table_task` as
    # `{"table": {...}}`.

    data: dict[str, dict[str, Any]]
    metric: str = ""

    @property
    def has_leaderboard(self) -> bool:
        return "glue" in self.data

    def read(self) -> TaskData:
        """Reads the examples."""
        ((kind, arguments),) = self.data.items()
        return _READERS[kind](**arguments)

    def files_read(self) -> list[str]:
        ((kind, arguments),) = self.data.items()
        if kind == "glue":
            return glue_files(arguments["task"], arguments.get("data_dir"))
        return [arguments[name] for name in _TABLES if arguments.get(name)]

    def check(self) -> str:
        data = self.read()
        self.metrics_of(data)
        return data.name

    def metrics_of(self, data: TaskData) -> tuple[str, ...]:
        """The metrics, first the one to choose by."""
        return metrics_of(data, self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationTask(TextTask):
    """A run of a text classifier, or of a regression, on GLUE or on tables of one's own.

    Args:
        data: `{"glue": {"task": ..., "data_dir": ...}}`, where without `data_dir` TensorFlow
            Datasets has the data; or `{"table": {...}}` with `train_file`, `dev_file`, `test_file`,
            `text_column`, `second_text_column`, `label_column`, `regression` and the like, the
            arguments of `cocolm_tf.data.table_task.read_table_task`.
        metric: What chooses the best measurement; empty for the first that suits the task.
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

    def drawn(self, data: TaskData) -> np.ndarray:
        """The numbers of the training examples to learn from, for a `train_fraction` below 1."""
        return stratified(data.train.labels, self.train_fraction, self.seed)

    def predicted(self, data: TaskData, part: str, shares: np.ndarray) -> np.ndarray:
        """The predictions of a part, given probabilities or numbers [N, classes]."""
        return (shares >= 0.5).astype(np.int32) if data.multi_label else predicted(shares)

    def evaluated(self, data: TaskData, part: str, predictions: np.ndarray) -> dict[str, float]:
        """Scores the predictions of a dev set by the task's metrics."""
        return evaluate(self.metrics_of(data), data.dev[part].labels, predictions)

    def left(
        self, folder: str, shares: Mapping[str, np.ndarray], data: TaskData, decide: Any = None
    ) -> dict[str, Any]:
        """Writes all files of predictions, see `leave_predictions`, and returns its assessment."""
        default = functools.partial(self.predicted, data, "")
        return leave_predictions(folder, shares, data, decide or default)

    def ensemble(self, runs: Sequence[str], folder: str) -> dict[str, Any]:
        data = self.read()
        shares = {}
        for part in (*data.dev, *data.test):
            paths = [os.path.join(run, OUTPUTS_DIRECTORY, f"{part}.csv") for run in runs]
            shares[part] = np.mean([read_outputs(path, data.label_names) for path in paths], axis=0)
        assessment = self.left(folder, shares, data)
        dev = {
            part: self.evaluated(data, part, self.predicted(data, part, shares[part]))
            for part in data.dev
        }
        return {"dev": dev, "assessment": assessment}

    def prepare(self, config: FinetuningConfig) -> "PreparedClassification":
        return PreparedClassification(self, config)


class PreparedClassification(Prepared):
    """A text classifier that is ready to train."""

    def __init__(self, task: ClassificationTask, config: FinetuningConfig) -> None:
        self._task, self._config = task, config
        self._data = data = task.read()
        self._metrics = task.metrics_of(data)
        self._train = data.train
        if task.train_fraction < 1:
            self._train = data.train.select(task.drawn(data))
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
        self.name, self.metric = data.name, self._metrics[0]
        self.report = describe_data(data, self._train, self._tokens)
        self.summary = data_lines(data.name, self.report)

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        labels = self._train.labels
        if self._data.label_names is None:
            labels = (labels - self._mean) / self._scale
        batches, steps = training_batches(
            self._tokens["train"],
            labels,
            self._config.trainer.batch_size,
            self._task.seed,
            self._config.data.length_buckets,
            None if self._weights is None else self._weights[self._train.labels],
        )
        return batches, steps, len(self._train)

    def compile_arguments(self) -> dict[str, Any]:
        return smoothed_loss(self._config.trainer.label_smoothing, self._data)

    def measure(self) -> Scores:
        return {part: self._scores(part) for part in self._data.dev}

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
        tuned = self._tuned(shares) if data.multi_label and self._task.tune_thresholds else {}
        decide = self._assigned if data.multi_label else None
        return {
            **tuned,
            "assessment": self._task.left(folder, shares, data, decide),
            "baseline": {
                part: self._task.evaluated(data, part, guesses(train, len(examples)))
                for part, examples in data.dev.items()
            },
        }

    def facts(self, results: Mapping[str, Any]) -> Facts:
        task, data, rows = self._task, self._data, results["data"]
        return Facts(
            name=f"COCO-LM on {data.name}",
            description=f"A COCO-LM text encoder, fine-tuned on {data.name} from {task.start}. "
            + classes_line(data),
            base_model=base_model(task),
            usage=usage("CocoLMTextClassifier", data),
            training_data=f"{rows['train']['rows']:,} rows of {rows['train']['source']}.",
            settings=settings_of(task),
            speed=f"{results['examples_per_second']:.1f} examples a second; "
            + best_epoch_line(results),
            evaluation_data=evaluation_lines(data, results["baseline"]),
            results=card_results(_HUB_TASK, data.name, results["dev"]),
            **facts_of_texts(task, data),
            **shared_facts(results, self.model.backbone, "a classification head"),
        )

    def _scores(self, part: str) -> dict[str, float]:
        outputs, data = self._outputs(part), self._data
        if not np.isfinite(outputs).all():
            raise FloatingPointError
        shares = probabilities(outputs, data.multi_label)
        return self._task.evaluated(data, part, self._task.predicted(data, part, shares))

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
            part: self._task.evaluated(data, part, self._assigned(shares[part]))
            for part in data.dev
        }
        return {"thresholds": self.model.thresholds, "tuned": scores}

    def _outputs(self, part: str) -> np.ndarray:
        """The outputs [N, classes] for a part's examples, in their order."""
        return predict_rows(self.model, self._tokens[part]) * self._scale + self._mean

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
    weights = np.ones(data.num_classes)
    if text == "balanced":
        weights = 1 / np.maximum(counts, 1)
    else:
        for part in text.split(","):
            name, _, weight = part.rpartition("=")
            if name not in data.label_names:
                raise UserError(
                    f"--class_weights: {part!r} is none of balanced or CLASS=WEIGHT, where the "
                    f"class is one of {', '.join(data.label_names[:20])}."
                )
            try:
                weights[list(data.label_names).index(name)] = float(weight)
            except ValueError:
                weights[list(data.label_names).index(name)] = np.nan
        if not (np.isfinite(weights).all() and (weights >= 0).all() and (counts @ weights) > 0):
            raise UserError(f"--class_weights={text}: weights are numbers, 0 or more, not all 0.")
    return (weights * counts.sum() / (counts @ weights)).astype(np.float32)


def smoothed_loss(smoothing: float, data: TaskData) -> dict[str, Any]:
    """The `loss` of `compile()` for smoothed labels; nothing where labels are not smoothed."""
    if not smoothing:
        return {}
    if data.label_names is None:
        raise UserError("trainer.label_smoothing: a regression has no classes.")

    if data.multi_label:
        return {
            "loss": keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
        }

    def loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        wanted = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), data.num_classes)
        return keras.losses.categorical_crossentropy(
            wanted, logits, from_logits=True, label_smoothing=smoothing
        )

    return {"loss": loss}


def build_classifier(task: Task, config: FinetuningConfig, data: TaskData) -> CocoLMTextClassifier:
    """Puts a new head on the encoder of a task's preset."""
    with files.local_copy(task.preset) as preset:
        backbone = encoder_of(dataclasses.replace(task, preset=preset), config)
        length = row_length(config.data.sequence_length, backbone)
        preprocessor = CocoLMTextClassifierPreprocessor.from_preset(preset, sequence_length=length)
    return CocoLMTextClassifier(
        backbone,
        data.num_classes,
        preprocessor,
        data.label_names,
        multi_label=data.multi_label,
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
            "labels": _labels(examples, data),
            "tokens": describe_lengths(tokens[name]) if name in tokens else None,
        }
        for name, examples in parts.items()
    }


def data_lines(name: str, report: Mapping[str, Any]) -> str:
    """Lays out what `describe_data` returned, in lines for people."""
    lines = [f"{name}:"]
    for part, facts in report.items():
        line = f"  {part}: {facts['rows']:,} rows of {facts['source']}"
        if facts["labels"]:
            line += f"; labels: {_label_text(facts['labels'], facts['rows'])}"
        if facts["tokens"]:
            lengths = facts["tokens"]
            line += (
                f"; tokens: median {lengths['median']}, 95% up to {lengths['percentile_95']}, "
                f"longest {lengths['longest']}; {lengths['truncated']:,} truncated"
            )
        lines.append(line)
        if facts["left_out"]:
            lines.append(f"    left out: {'; '.join(facts['left_out'])}")
    return "\n".join(lines)


def _labels(examples: Examples, data: TaskData) -> dict[str, float] | None:
    if examples.labels is None:
        return None
    if data.label_names is None:
        values = examples.labels
        return {name: float(getattr(values, name)()) for name in ("mean", "min", "max")}
    if data.multi_label:
        counts = examples.labels.sum(axis=0)
    else:
        counts = np.bincount(examples.labels, minlength=data.num_classes)
    return {name: int(count) for name, count in zip(data.label_names, counts, strict=True)}


def _label_text(labels: Mapping[str, float], rows: int) -> str:
    if set(labels) == {"mean", "min", "max"}:
        return f"mean {labels['mean']:.2f}, from {labels['min']:g} to {labels['max']:g}"
    shown = [f"{name} {count:,} ({count / rows:.1%})" for name, count in labels.items()]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


def facts_of_texts(task: TextTask, data: TaskData) -> dict[str, Any]:
    """The facts of the data that the model cards of all models of texts have."""
    verb = "Rating" if data.label_names is None else "Classifying"
    is_glue = "glue" in task.data
    return {
        "pipeline_tag": _HUB_TASK,
        "languages": ("en",) if is_glue else (),
        "datasets": ("nyu-mll/glue",) if is_glue else (),
        "direct_use": f"{verb} texts like those of {data.name}.",
    }


def classes_line(data: TaskData) -> str:
    """A sentence on what a model of a task predicts."""
    if data.label_names is None:
        return "It predicts a number."
    several = ", of which a text has any number" if data.multi_label else ""
    return f"Its classes{several}: {', '.join(data.label_names)}."


def usage(name: str, data: TaskData) -> str:
    """Python code that loads a model of a class and calls it."""
    is_pairs = data.train.second is not None
    texts = '(["A text."], ["Its second text."])' if is_pairs else '["A text."]'
    return (
        f"from cocolm_tf import {name}\n\n"
        f'classifier = {name}.from_preset("path/of/this/folder")\n'
        f"classifier.predict({texts})"
    )


def evaluation_lines(data: TaskData, baseline: Scores) -> str:
    """Sentences on what a model was measured on, and what a baseline scores there."""
    evaluated = (
        f"{part}: {len(examples):,} rows of {examples.source}"
        for part, examples in data.dev.items()
    )
    scores = (
        f"{metric} {value:.4f} ({part})"
        for part, metrics in baseline.items()
        for metric, value in metrics.items()
    )
    guess = "mean" if data.label_names is None else "commonest class"
    guess = "labels of more than half" if data.multi_label else guess
    return (
        f"{'; '.join(evaluated)}. Always to predict the {guess} of the training rows scores "
        f"{', '.join(scores)}."
    )

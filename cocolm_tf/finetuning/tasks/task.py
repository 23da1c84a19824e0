"""What every fine-tuning run has, whatever its task: the base classes of all families."""

import abc
import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.model_card import Facts, Result
from cocolm_tf.training.preset import check_finite_weights
from cocolm_tf.versions import versions_line

FAMILY_KEY = "family"

STATE_FILENAME = "state.npz"
METRICS_FILENAME, TENSORBOARD_DIRECTORY = "metrics.jsonl", "tensorboard"
RESUMED_BY = (STATE_FILENAME, METRICS_FILENAME, TENSORBOARD_DIRECTORY)
"""What an interrupted run resumes from; `Job.keeps`."""

Scores = Mapping[str, Mapping[str, float]]
"""The metrics of each set that a model was measured on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """What defines a fine-tuning run: the base class of `ClassificationTask` and its like.

    Nothing but `prepare` needs a device.

    Args:
        preset: The folder of the encoder to start from.
        config: What `FinetuningConfig.as_dict()` returned.
        metric: What chooses the best measurement; empty for the first of the task's metrics.
        preset_fingerprint: Tells presets apart, so that a run resumes from its own results alone;
            `run_experiment` sets it.
        content_fingerprints: The same for the files of `files_read`, by their paths.
        seed: Decides the head's initial weights, dropout, the order of the examples, and which of
            them are used.
        train_fraction: The share of the training examples to learn from.
        from_scratch: Whether to start from random weights in the preset's architecture.
        save_preset: Whether to keep the model and what it predicts. A run of a search keeps its
            scores only.

    Example:
    ```python
    ClassificationTask(
        preset="runs/first/preset", config=config.as_dict(), data={"glue": {"task": "rte"}}
    )
    ```
    """

    family: ClassVar[str]
    """The key of the class in `FAMILIES`."""
    shared_results: ClassVar[tuple[str, ...]] = ()
    """Further keys of a run's results that all runs of an experiment have in common."""

    preset: str
    config: dict[str, Any]
    metric: str = ""
    preset_fingerprint: str = ""
    content_fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    train_fraction: float = 1.0
    from_scratch: bool = False
    save_preset: bool = True

    def spec(self) -> dict[str, Any]:
        """The task as JSON can hold it: its arguments, and the `family` that `task_of` needs."""
        return {FAMILY_KEY: self.family, **dataclasses.asdict(self)}

    @abc.abstractmethod
    def read(self) -> Any:
        """Reads the data, which has a `name` for people."""

    @abc.abstractmethod
    def metrics_of(self, data: Any) -> tuple[str, ...]:
        """The metrics, first the one to choose by; `UserError` if there is no such metric."""

    @abc.abstractmethod
    def files_read(self) -> list[str]:
        """The paths of the files that `prepare` reads, but those of datasets with versions."""

    @abc.abstractmethod
    def prepare(self, config: FinetuningConfig) -> "Prepared":
        """Reads the data and builds the model, within the scope of a distribution strategy.

        Args:
            config: The configuration that `config` holds.

        Returns:
            What `run_task` trains and measures.

        Raises:
            UserError: If the data, the preset or a length is not what it should be.
        """

    def check(self) -> str:
        """Reads the data, so that a mistake in it is reported before any process starts.

        Returns:
            The name of the task, for people.

        Raises:
            UserError: If a file is missing or is not what it should be.
        """
        data = self.read()
        self.metrics_of(data)
        return data.name

    def ensemble(self, runs: Sequence[str], folder: str) -> dict[str, Any]:
        """Averages what several runs predict, and scores the mean.

        Args:
            runs: The folders of the runs.
            folder: Where to write the predictions, in the files that a run has.

        Returns:
            What JSON can hold: `dev`, the metrics of each dev set, and anything else to report.

        Raises:
            UserError: If this family of tasks has no such mean.
        """
        raise UserError(f"--ensemble: there is none of {self.family.replace('_', ' ')}.")

    def facts_of_experiment(self) -> dict[str, Any]:
        """Further values for an experiment's results."""
        return {}

    @property
    def has_leaderboard(self) -> bool:
        """Whether the predictions are in the format of a leaderboard."""
        return False


class Prepared(abc.ABC):
    """A task whose data is read and whose model is built: what `run_task` trains and measures.

    A new family of tasks derives from it and from `Task`.

    Example:
    ```python
    prepared = task.prepare(config)
    batches, steps_per_epoch, examples = prepared.training()
    prepared.model.compile("adam", metrics=[], **prepared.compile_arguments())
    prepared.model.fit(batches, steps_per_epoch=steps_per_epoch)
    prepared.measure()["dev"]
    ```
    """

    hub_task: ClassVar[str] = "text-classification"
    """The Hugging Face Hub's name of the kind of task, for the model card."""
    unit: ClassVar[str] = "examples"
    """What an example is, for the speed in the model card."""

    task: Task
    config: FinetuningConfig
    name: str
    """The name of the task, for people."""
    metric: str
    """The metric that chooses the best measurement, on the first part of `measure()`."""
    model: keras_hub.models.Task
    summary: str
    """What was read, in lines for people."""
    report: dict[str, Any]
    """What was read, for JSON, by parts; `train` and its `rows` are among them."""

    def __init__(self, task: Task, config: FinetuningConfig) -> None:
        self.task, self.config = task, config

    @abc.abstractmethod
    def training(self) -> tuple[tf.data.Dataset, int, int]:
        """The batches to learn from.

        Returns:
            Endless batches `(x, y, sample_weight)` of few static shapes, as the model's `fit()`
            takes them; how many of them an epoch has; and how many examples these are.
        """

    def compile_arguments(self) -> dict[str, Any]:
        """The arguments of the model's `compile()` beside the optimizer and the configuration's."""
        return {}

    @abc.abstractmethod
    def measure(self) -> Scores:
        """Measures the model with its current weights on the dev sets.

        Returns:
            The metrics of each part, by their names.

        Raises:
            FloatingPointError: If an output is not finite; the run then counts as diverged.
        """

    @abc.abstractmethod
    def artifacts(self, folder: str) -> dict[str, Any]:
        """Writes what a run leaves beside its preset, unless it is one of a search.

        `run_task` calls it once, before it saves the model, which then has the weights of the best
        measurement.

        Args:
            folder: The run's folder.

        Returns:
            Further values for `results.json`; among them `baseline`, the scores without learning.
        """

    @abc.abstractmethod
    def card(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the model card that the family decides.

        Args:
            results: What `results.json` will hold.

        Returns:
            Fields of `Facts`; `head`, a phrase on what the encoder has been given; and `call`, an
            example of how the model is called. Fields that `facts` has are replaced, but for
            `settings`, which are added.
        """

    def facts(self, results: Mapping[str, Any]) -> Facts:
        """The facts of the model card, given what `results.json` will hold."""
        card = dict(self.card(results))
        task, backbone, model_class = self.task, self.model.backbone, type(self.model).__name__
        settings = {
            f"{section}.{key}": value
            for section, values in task.config.items()
            for key, value in values.items()
        }
        settings |= {"train_fraction": task.train_fraction, "seed": task.seed}
        common = {
            "name": f"COCO-LM on {self.name}",
            "pipeline_tag": self.hub_task,
            "base_model": "none, its weights were random" if task.from_scratch else task.preset,
            "model_type": f"Transformer encoder, {backbone.num_layers} layers of "
            f"{backbone.hidden_dim}, {results['parameters']:,} parameters, with {card.pop('head')}",
            "usage": f"from cocolm_tf import {model_class}\n\n"
            f'model = {model_class}.from_preset("path/of/this/folder")\n'
            f"model.{card.pop('call')}",
            "settings": settings | card.pop("settings", {}),
            "speed": f"{results['examples_per_second']:.1f} {self.unit} a second; the best of "
            f"{len(results['epochs'])} measurements on the dev set is that of step "
            f"{results['best_step']}, in epoch {results['best_epoch']}.",
            "results": self.card_results(results["dev"]),
            "hardware": results["device"],
            "hours": results["seconds"] / 3600,
            "software": versions_line(results["versions"]),
        }
        return Facts(**common | card)

    def card_results(self, scores: Scores) -> list[Result]:
        """Scores in the form of a model card."""
        return [
            Result(self.hub_task, f"{self.name} ({part})", metric, value)
            for part, metrics in scores.items()
            for metric, value in metrics.items()
        ]

    @property
    def batching(self) -> tuple[int, int, int]:
        """The size of batches, the seed of their order, and into how many lengths they are put."""
        trainer, data = self.config.trainer, self.config.data
        return trainer.batch_size, self.task.seed, data.length_buckets

    @property
    def origin(self) -> str:
        """What was learned and what the model started from, for people."""
        start = "random weights" if self.task.from_scratch else self.task.preset
        return f"fine-tuned on {self.name} from {start}"


def load_encoder(
    task: Task, config: FinetuningConfig, preset: str, usual_length: int | None = None
) -> tuple[CocoLMBackbone, int]:
    """Loads a task's encoder from a local copy of its preset; also returns the length of rows."""
    # Keras draws the seeds of initializers, also of the head's, and of dropout from Python's
    # generator. The length is the configured one; else `usual_length`, or all the positions.
    random.seed(task.seed)
    backbone = CocoLMBackbone.from_preset(
        preset,
        load_weights=not task.from_scratch,
        dropout=config.model.dropout,
        dtype=config.runtime.precision,
        rematerialize=config.model.rematerialize,
    )
    if not task.from_scratch:
        check_finite_weights(backbone, preset)
    if config.model.lora_rank:
        backbone.enable_lora(config.model.lora_rank)
    positions, wanted = backbone.max_sequence_length, config.data.sequence_length
    if wanted > positions:
        raise UserError(f"sequence_length={wanted} is more than the model's {positions} positions.")
    return backbone, wanted or min(usual_length or positions, positions)


def table_files(**data: Any) -> list[str]:
    """The files among the arguments of a reader of a user's own data."""
    return [data[name] for name in ("train_file", "dev_file", "test_file") if data.get(name)]


def finite(outputs: np.ndarray) -> np.ndarray:
    """The outputs of a model, or `FloatingPointError` if one is not finite."""
    if not np.isfinite(outputs).all():
        raise FloatingPointError
    return outputs


def score_text(scores: Scores) -> str:
    """The metrics of each set, in a line for people."""
    return ", ".join(
        f"{metric} {value:.4f} ({part})"
        for part, metrics in scores.items()
        for metric, value in metrics.items()
    )


def part_lines(
    name: str, part: Mapping[str, Any], size: str, notes: Iterable[str] = (), shares: bool = True
) -> str:
    """The report on a part of the data, in lines for people."""
    # `size` is how many of what it has. A part has its `source`, and maybe `labels`, how many there
    # are of each, or the `mean`, `min` and `max` of numbers; `tokens`, see `describe_lengths`; and
    # `left_out`, why rows are not used. `shares`: also what share of the rows each label has.
    line, labels = f"  {name}: {size} of {part['source']}", part.get("labels")
    if labels and set(labels) == {"mean", "min", "max"}:
        line += f"; labels: mean {labels['mean']:.2f}, from {labels['min']:g} to {labels['max']:g}"
    elif labels:
        shown = [f"{label} {count:,}" for label, count in labels.items()]
        if shares:
            counts = zip(shown, labels.values(), strict=True)
            shown = [f"{one} ({count / part['rows']:.1%})" for one, count in counts]
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        line += f"; labels: {', '.join(shown[:10])}{more}"
    if lengths := part["tokens"]:
        line += (
            f"; tokens: median {lengths['median']}, 95% up to {lengths['percentile_95']}, longest "
            f"{lengths['longest']}; {lengths['truncated']:,} truncated"
        )
    notes = [*notes]
    if part.get("left_out"):
        notes.append(f"left out: {'; '.join(part['left_out'])}")
    return "\n".join([line, *(f"    {note}" for note in notes)])

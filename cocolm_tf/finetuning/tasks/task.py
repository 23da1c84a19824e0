"""What every fine-tuning run has, whatever its task: the base classes of all families."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cocolm_tf.errors import UserError
from cocolm_tf.versions import versions_line

if TYPE_CHECKING:
    import keras_hub
    import tensorflow as tf

    from cocolm_tf.finetuning.config import FinetuningConfig
    from cocolm_tf.modeling.backbone import CocoLMBackbone
    from cocolm_tf.training.model_card import Facts, Result

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
    preset_fingerprint: str = ""
    content_fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    train_fraction: float = 1.0
    from_scratch: bool = False
    save_preset: bool = True

    def spec(self) -> dict[str, Any]:
        """The task as JSON can hold it.

        Returns:
            The arguments of the class, and the `family` by which `task_of` finds the class.
        """
        return {FAMILY_KEY: self.family, **dataclasses.asdict(self)}

    @abc.abstractmethod
    def check(self) -> str:
        """Reads the data, so that a mistake in it is reported before any process starts.

        Returns:
            The name of the task, for people.

        Raises:
            UserError: If a file is missing or is not what it should be.
        """

    @abc.abstractmethod
    def files_read(self) -> list[str]:
        """The paths of the files that `prepare` reads, but those of datasets with versions."""

    @abc.abstractmethod
    def prepare(self, config: "FinetuningConfig") -> "Prepared":
        """Reads the data and builds the model, within the scope of a distribution strategy.

        Args:
            config: The configuration that `config` holds.

        Returns:
            What `run_task` trains and measures.

        Raises:
            UserError: If the data, the preset or a length is not what it should be.
        """

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

    @property
    def start(self) -> str:
        """What the model starts from, for people."""
        return "random weights" if self.from_scratch else self.preset


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

    name: str
    """The name of the task, for people."""
    metric: str
    """The metric that chooses the best measurement, on the first part of `measure()`."""
    model: "keras_hub.models.Task"
    summary: str
    """What was read, in lines for people."""
    report: dict[str, Any]
    """What was read, for JSON, by parts; `train` and its `rows` are among them."""

    @abc.abstractmethod
    def training(self) -> "tuple[tf.data.Dataset, int, int]":
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
    def facts(self, results: Mapping[str, Any]) -> "Facts":
        """The facts of the model card.

        Args:
            results: What `results.json` will hold.

        Returns:
            The facts.
        """


def shared_facts(
    results: Mapping[str, Any], backbone: "CocoLMBackbone", head: str
) -> dict[str, Any]:
    """The facts that the model cards of all families have, of the encoder and the run."""
    return {
        "model_type": f"Transformer encoder, {backbone.num_layers} layers of "
        f"{backbone.hidden_dim}, {results['parameters']:,} parameters, with {head}",
        "hardware": results["device"],
        "hours": results["seconds"] / 3600,
        "software": versions_line(results["versions"]),
    }


def settings_of(task: Task) -> dict[str, Any]:
    """The settings that a model card lists."""
    configured = {
        f"{section}.{key}": value
        for section, values in task.config.items()
        for key, value in values.items()
    }
    return configured | {"train_fraction": task.train_fraction, "seed": task.seed}


def base_model(task: Task) -> str:
    """The model that a model card names as the one that was fine-tuned."""
    return "none, its weights were random" if task.from_scratch else task.preset


def best_epoch_line(results: Mapping[str, Any]) -> str:
    """Says, for people, which measurement's weights a model has."""
    return (
        f"the best of {len(results['epochs'])} measurements on the dev set is that of step "
        f"{results['best_step']}, in epoch {results['best_epoch']}."
    )


def card_results(tag: str, name: str, scores: Scores) -> "list[Result]":
    """Scores in the form of a model card; `tag` is the Hub's name of the kind of task."""
    from cocolm_tf.training.model_card import Result

    return [
        Result(tag, f"{name} ({part})", metric, value)
        for part, metrics in scores.items()
        for metric, value in metrics.items()
    ]

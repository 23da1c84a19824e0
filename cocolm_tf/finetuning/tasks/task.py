"""What a fine-tuning run is, whatever its task: the two classes that every family derives."""

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
"""What a run that was ended halfway goes on from; `Job.keeps`."""

Scores = Mapping[str, Mapping[str, float]]
"""The metrics of each set that a model was measured on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """What a run is: the `spec` of its job. Nothing here needs a device.

    Args:
        preset: The folder of the encoder to start from.
        config: A `FinetuningConfig` as a dict.
        preset_fingerprint: What `fingerprint` says of the preset.
        content_fingerprints: What `content_fingerprints` says of the files that it reads.
        seed: Decides the head, dropout, the order of the examples, and which of them are used.
        train_fraction: The share of the training examples to learn from.
        from_scratch: Whether to start from random weights in the preset's architecture.
        save_preset: Whether the run counts: whether to keep the model and what it predicts. A run
            of a search leaves its scores alone.

    Example:
    ```python
    ClassificationTask(
        preset="runs/first/preset", config=config.as_dict(), data={"glue": {"task": "rte"}}
    )
    ```
    """

    family: ClassVar[str]
    """Its key in `FAMILIES`."""
    shared_results: ClassVar[tuple[str, ...]] = ()
    """What all runs of an experiment say alike, beside what those of every family do."""

    preset: str
    config: dict[str, Any]
    preset_fingerprint: str = ""
    content_fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    train_fraction: float = 1.0
    from_scratch: bool = False
    save_preset: bool = True

    def spec(self) -> dict[str, Any]:
        """What `task_of` makes it of again, for JSON."""
        return {FAMILY_KEY: self.family, **dataclasses.asdict(self)}

    @abc.abstractmethod
    def check(self) -> str:
        """Reads the data, so that a mistake in it is told before any process starts.

        Returns:
            What the task is called.

        Raises:
            UserError: If a file is missing or is not what it should be.
        """

    @abc.abstractmethod
    def files_read(self) -> list[str]:
        """The paths of the files that it reads; none of a dataset that has a version of its own."""

    @abc.abstractmethod
    def prepare(self, config: "FinetuningConfig") -> "Prepared":
        """Reads the data and builds the model, within the strategy's scope.

        Raises:
            UserError: If the data, the preset or a length is not what it should be.
        """

    def ensemble(self, runs: Sequence[str], folder: str) -> dict[str, Any]:
        """Takes the mean of what several runs predict.

        Args:
            runs: The folders of the runs.
            folder: Gets what a run leaves of its predictions.

        Returns:
            What JSON can hold: `dev`, the metrics, and what else there is to say.

        Raises:
            UserError: If there is no such mean for this family.
        """
        raise UserError(f"--ensemble: there is none of {self.family.replace('_', ' ')}.")

    def facts_of_experiment(self) -> dict[str, Any]:
        """What the experiment's results say of it beside what those of every family do."""
        return {}

    @property
    def has_leaderboard(self) -> bool:
        """Whether its predictions are for a leaderboard."""
        return False

    @property
    def start(self) -> str:
        """What its model starts from, for people."""
        return "random weights" if self.from_scratch else self.preset


class Prepared(abc.ABC):
    """A task that is ready to train: its data is read, its model is built."""

    name: str
    """What the task is called, for people."""
    metric: str
    """What chooses the best measurement, on the first part that is measured."""
    model: "keras_hub.models.Task"
    summary: str
    """What was read, in lines for people."""
    report: dict[str, Any]
    """The same for JSON, by parts; `train` and its `rows` among them."""

    @abc.abstractmethod
    def training(self) -> "tuple[tf.data.Dataset, int, int]":
        """The batches to learn from.

        Returns:
            Endless batches of what the model's `fit()` takes, `(x, y, sample_weight)` of few
            static shapes; how many of them are an epoch, and how many examples these are.
        """

    def compile_arguments(self) -> dict[str, Any]:
        """What `compile()` gets beside the optimizer."""
        return {}

    @abc.abstractmethod
    def measure(self) -> Scores:
        """Measures the model as it is on the dev sets.

        Raises:
            FloatingPointError: If an output is not finite.
        """

    @abc.abstractmethod
    def artifacts(self, folder: str) -> dict[str, Any]:
        """Writes what a run that counts leaves beside its preset.

        It is called once, before the model is saved, when the model has the weights of the best
        measurement.

        Args:
            folder: Of the run.

        Returns:
            What `results.json` gets of it: `baseline`, what guessing scores, among it.
        """

    @abc.abstractmethod
    def facts(self, results: Mapping[str, Any]) -> "Facts":
        """What the model card says, given what `results.json` is to hold."""


def shared_facts(
    results: Mapping[str, Any], backbone: "CocoLMBackbone", head: str
) -> dict[str, Any]:
    """What the model cards of all families say alike."""
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
    """What a model card says that a model was fine-tuned from."""
    return "none, its weights were random" if task.from_scratch else task.preset


def best_epoch_line(results: Mapping[str, Any]) -> str:
    """Which measurement's weights a model has, for people."""
    return (
        f"the best of {len(results['epochs'])} measurements on the dev set is that of step "
        f"{results['best_step']}, in epoch {results['best_epoch']}."
    )


def card_results(tag: str, name: str, scores: Scores) -> "list[Result]":
    """Scores as a model card has them; `tag` is the Hub's name of the task."""
    from cocolm_tf.training.model_card import Result

    return [
        Result(tag, f"{name} ({part})", metric, value)
        for part, metrics in scores.items()
        for metric, value in metrics.items()
    ]

"""What defines a fine-tuning run: Model Garden configuration dataclasses, read from YAML.

A file states what differs from the defaults here, which are those that all released settings
share. Its `tasks` hold what differs further for one task, its `search` the grid that `--search`
goes through; a task may have a `search` of its own, which is then used instead. A file of prompts
also has `prompts`: for each task a template and the label words.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from official.modeling import hyperparams

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.transformer import REMATERIALIZE
from cocolm_tf.training import config_file
from cocolm_tf.training.config import PRECISIONS

DEMONSTRATIONS = ("none", "random", "similar")


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """Settings of the encoder and the head."""

    # Of the encoder and of the head.
    dropout: float = 0.1
    # LoRA: learn matrices of this rank beside the encoder's, which stay as they are; 0 learns all.
    lora_rank: int = 0
    # What the backward pass computes again to save memory: none, attention or block.
    rematerialize: str = "none"


@dataclasses.dataclass
class DataConfig(hyperparams.Config):
    """Settings of tokenization and batches; see `cocolm_tf.finetuning.batches`."""

    # The longest row; 0 for as many tokens as the model has positions for.
    sequence_length: int = 0
    # Into how many groups of like lengths rows are put, each with batches of its own width; 1 for
    # one group of all, and 0 for batches that are all `sequence_length` wide.
    length_buckets: int = 8


@dataclasses.dataclass
class OptimizerConfig(hyperparams.Config):
    """AdamW with linear warm-up and decay."""

    learning_rate: float = 2e-5
    # The share of the steps in which the learning rate rises.
    warmup_fraction: float = 0.0625
    beta_1: float = 0.9
    beta_2: float = 0.98
    epsilon: float = 1e-6
    # Of matrices. Biases and LayerNorm never decay.
    weight_decay: float = 0.01
    # Bound on the gradients' global norm; 0 for none.
    clip_norm: float = 0.0
    # The learning rate of a layer is this times that of the layer above; 1 for one rate.
    layer_decay: float = 1.0


@dataclasses.dataclass
class TrainerConfig(hyperparams.Config):
    """Settings of the course of the run."""

    batch_size: int = 32
    epochs: int = 3
    # Steps of the run, instead of `epochs`; 0 for those of the epochs.
    steps: int = 0
    # Steps between two measurements on the dev set; 0 for one after every epoch.
    validation_interval: int = 0
    # Early stopping: end after so many measurements in a row that were no better than the best; 0
    # for never.
    patience: int = 0
    # The share of the target probability that is spread over all classes.
    label_smoothing: float = 0.0
    # Gradient accumulation: into how many parts a batch is cut, one after the other.
    micro_batches: int = 1
    # Steps that the devices run as one loop, without the host.
    steps_per_execution: int = 1
    # Steps between two lines of the log.
    log_interval: int = 50
    # Minutes between two checkpoints, from which an interrupted run resumes.
    checkpoint_minutes: float = 5.0


@dataclasses.dataclass
class RuntimeConfig(hyperparams.Config):
    """Settings of precision and compilation."""

    precision: str = "float32"
    # Whether XLA compiles the step; null leaves it to the devices.
    jit_compile: bool | None = None


@dataclasses.dataclass
class PromptConfig(hyperparams.Config):
    """Settings of fine-tuning by prompts alone."""

    # Which demonstration, an example with its label word, of each class follows a prompt: none, a
    # random one, or a similar one, drawn among the half that is most like the text.
    demonstrations: str = "random"
    # The sets of demonstrations that a prediction is averaged over.
    draws: int = 16


@dataclasses.dataclass
class FinetuningConfig(hyperparams.Config):
    """All settings of a fine-tuning run, with the defaults of the released models.

    A setting's full key, as in YAML files and `--params_override`, is `optimizer.learning_rate`.

    Args:
        model: Settings of the encoder and the head.
        data: Settings of tokenization and batches.
        optimizer: Settings of AdamW and its learning rate.
        trainer: How long the run is, its batches, measurements and checkpoints.
        runtime: Settings of precision and compilation.
        prompt: Settings of fine-tuning by prompts alone.

    Example:
    ```python
    config, grid = load_finetuning_config("configs/finetune/base_pp.yaml", task="rte")
    ClassificationTask(preset="runs/first/preset", config=config.as_dict(), data=...)
    ```
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)


Grid = dict[str, list[Any]]
"""The values to search through, by their keys: `{"optimizer.learning_rate": [1e-5, 2e-5]}`."""

_RANGES: config_file.Ranges = (
    (
        lambda value: value >= 1,
        "at least 1",
        (
            "trainer.batch_size",
            "trainer.epochs",
            "trainer.micro_batches",
            "trainer.steps_per_execution",
            "trainer.log_interval",
            "prompt.draws",
        ),
    ),
    (
        lambda value: value >= 0,
        "0 or more",
        (
            "model.lora_rank",
            "data.sequence_length",
            "data.length_buckets",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "trainer.steps",
            "trainer.validation_interval",
            "trainer.patience",
            "trainer.checkpoint_minutes",
        ),
    ),
    (
        lambda value: value > 0,
        "more than 0",
        ("optimizer.learning_rate", "optimizer.epsilon"),
    ),
    (
        lambda value: 0 <= value < 1,
        "in [0, 1)",
        ("model.dropout", "optimizer.beta_1", "optimizer.beta_2", "trainer.label_smoothing"),
    ),
    (lambda value: 0 <= value <= 1, "in [0, 1]", ("optimizer.warmup_fraction",)),
    (lambda value: 0 < value <= 1, "in (0, 1]", ("optimizer.layer_decay",)),
)


def load_finetuning_config(
    path: str, task: str = "", overrides: str | Sequence[str] = ""
) -> tuple[FinetuningConfig, Grid]:
    """Reads a fine-tuning configuration from a YAML file and checks it.

    Args:
        path: The file.
        task: The key of the file's `tasks` whose changes to apply; one that is not there changes
            nothing.
        overrides: Further changes, as `trainer.epochs=5,optimizer.learning_rate=1e-5` or another
            YAML file, or several of these. They are applied last.

    Returns:
        The configuration, complete with defaults, and the grid of `search` for `Experiment`, empty
        where the file has none.

    Raises:
        UserError: Naming the file and the key that is wrong.

    Example:
    ```python
    load_finetuning_config("configs/finetune/small.yaml", "rte", "trainer.epochs=5")
    ```
    """
    values = config_file.parse_file(path)
    values = dict(values) if isinstance(values, dict) else values
    tasks = _section(values, "tasks", path)
    grid = _section(values, "search", path)
    _section(values, "prompts", path)
    config = FinetuningConfig()
    config_file.override(config, values, path)
    # All tasks are checked, so that a mistake in the file shows whatever the task is.
    for name, changes in tasks.items():
        changes = dict(changes) if isinstance(changes, dict) else changes
        own = _section(changes, "search", f"{path}: tasks.{name}")
        config_file.override(FinetuningConfig(), changes, f"{path}: tasks.{name}")
        if name == task:
            config_file.override(config, changes, f"{path}: tasks.{name}")
            grid = own or grid
    names = [path, *config_file.apply_overrides(config, overrides)]
    check_finetuning_config(config, " ".join(names))
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{path}: search.{key} is a list of values, not {choices!r}.")
        for choice in choices:
            with_values(config, {key: choice}, f"{path}: search.{key}")
    return config, grid


def with_values(config: FinetuningConfig, values: dict[str, Any], name: str) -> FinetuningConfig:
    """A copy of a configuration with values changed by full keys, as `optimizer.learning_rate`."""
    changed = from_dict(config.as_dict(), name)
    for key, value in values.items():
        section, _, field = key.partition(".")
        config_file.override(changed, {section: {field: value} if field else value}, name)
    check_finetuning_config(changed, name)
    return changed


def from_dict(values: dict[str, Any], name: str) -> FinetuningConfig:
    """The configuration whose `as_dict()` gave these values; `name` is for messages."""
    config = FinetuningConfig()
    config_file.override(config, values, name)
    return config


def check_finetuning_config(config: FinetuningConfig, name: str) -> None:
    """Raises `UserError` for the first key with a wrong type or range."""
    config_file.check_types(config, name)
    config_file.check_ranges(config, name, _RANGES)
    for key, value, allowed in (
        ("runtime.precision", config.runtime.precision, PRECISIONS),
        ("model.rematerialize", config.model.rematerialize, REMATERIALIZE),
        ("prompt.demonstrations", config.prompt.demonstrations, DEMONSTRATIONS),
    ):
        config_file.check_choice(name, key, value, allowed)
    trainer = config.trainer
    if trainer.batch_size % trainer.micro_batches:
        raise UserError(
            f"{name}: trainer.batch_size={trainer.batch_size} must be a multiple of "
            f"trainer.micro_batches={trainer.micro_batches}."
        )


def _section(values: Any, key: str, path: str) -> dict[str, Any]:
    section = values.pop(key, {}) if isinstance(values, dict) else {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: {key} takes keys and their values, not {section!r}.")
    return section

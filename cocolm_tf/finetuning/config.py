"""What defines a fine-tuning run: Model Garden configuration dataclasses, read from YAML.

A file states what differs from the defaults here, which are those that all released settings
share. Its `tasks` hold what differs further for one task, its `search` the grid that `--search`
goes through.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from official.modeling import hyperparams

from cocolm_tf.errors import UserError
from cocolm_tf.training import config_file
from cocolm_tf.training.config import PRECISIONS


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """What becomes of the pretrained encoder."""

    # Of the encoder and of the head.
    dropout: float = 0.1
    # Learn matrices of this rank beside the encoder's, which stay as they are; 0 learns all.
    lora_rank: int = 0


@dataclasses.dataclass
class DataConfig(hyperparams.Config):
    """From texts to batches; see `cocolm_tf.finetuning.batches`."""

    # The longest row; 0 for as many tokens as the model has positions for.
    sequence_length: int = 0
    # How many groups of like lengths batches are made of; 1 for batches as they come, and 0 for
    # batches of equal shape, `sequence_length` wide.
    length_buckets: int = 8


@dataclasses.dataclass
class OptimizerConfig(hyperparams.Config):
    """AdamW with linear warm-up and decay."""

    learning_rate: float = 2e-5
    # The share of the steps.
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
    """The course of the run."""

    batch_size: int = 32
    epochs: int = 3


@dataclasses.dataclass
class RuntimeConfig(hyperparams.Config):
    """How it is computed."""

    precision: str = "float32"


@dataclasses.dataclass
class FinetuningConfig(hyperparams.Config):
    """A fine-tuning run.

    Example:
    ```python
    config, grid = load_finetuning_config("configs/finetune/base_pp.yaml", task="rte")
    ```
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


Grid = dict[str, list[Any]]
"""The values to search through, by their keys: `{"optimizer.learning_rate": [1e-5, 2e-5]}`."""

_RANGES: config_file.Ranges = (
    (lambda value: value >= 1, "at least 1", ("trainer.batch_size", "trainer.epochs")),
    (
        lambda value: value >= 0,
        "0 or more",
        (
            "model.lora_rank",
            "data.sequence_length",
            "data.length_buckets",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
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
        ("model.dropout", "optimizer.beta_1", "optimizer.beta_2"),
    ),
    (lambda value: 0 <= value <= 1, "in [0, 1]", ("optimizer.warmup_fraction",)),
    (lambda value: 0 < value <= 1, "in (0, 1]", ("optimizer.layer_decay",)),
)


def load_finetuning_config(
    path: str, task: str = "", overrides: str | Sequence[str] = ""
) -> tuple[FinetuningConfig, Grid]:
    """Reads a configuration and checks it.

    Args:
        path: A YAML file.
        task: The key of `tasks` whose changes hold; a task that is not there has none.
        overrides: What `--params_override` takes, which comes last.

    Returns:
        The configuration, complete with defaults, and the grid of `search`, empty without one.

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
    config = FinetuningConfig()
    config_file.override(config, values, path)
    # All of them, so that a mistake in the file shows whatever the task is.
    for name, changes in tasks.items():
        trial = FinetuningConfig()
        config_file.override(trial, changes, f"{path}: tasks.{name}")
    if task in tasks:
        config_file.override(config, tasks[task], f"{path}: tasks.{task}")
    names = [path, *config_file.apply_overrides(config, overrides)]
    check_finetuning_config(config, " ".join(names))
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{path}: search.{key} is a list of values, not {choices!r}.")
        for choice in choices:
            with_values(config, {key: choice}, f"{path}: search.{key}")
    return config, grid


def with_values(config: FinetuningConfig, values: dict[str, Any], name: str) -> FinetuningConfig:
    """Changes values by their full keys.

    Args:
        config: Stays as it is.
        values: Such as `{"optimizer.learning_rate": 1e-5}`.
        name: Where they come from, for messages.

    Returns:
        The changed configuration.

    Raises:
        UserError: Naming the key that is wrong.

    Example:
    ```python
    with_values(config, {"trainer.epochs": 5}, "the search")
    ```
    """
    changed = from_dict(config.as_dict(), name)
    for key, value in values.items():
        section, _, field = key.partition(".")
        config_file.override(changed, {section: {field: value} if field else value}, name)
    check_finetuning_config(changed, name)
    return changed


def from_dict(values: dict[str, Any], name: str) -> FinetuningConfig:
    """Makes a configuration of what its `as_dict()` gave.

    Example:
    ```python
    from_dict(FinetuningConfig().as_dict(), "the defaults")
    ```
    """
    config = FinetuningConfig()
    config_file.override(config, values, name)
    return config


def check_finetuning_config(config: FinetuningConfig, name: str) -> None:
    """Checks types and ranges.

    Args:
        config: The configuration.
        name: Where it comes from, for the message.

    Raises:
        UserError: Naming the first key that is wrong.

    Example:
    ```python
    check_finetuning_config(FinetuningConfig(), "the defaults")
    ```
    """
    config_file.check_types(config, name)
    config_file.check_ranges(config, name, _RANGES)
    config_file.check_choice(name, "runtime.precision", config.runtime.precision, PRECISIONS)


def _section(values: Any, key: str, path: str) -> dict[str, Any]:
    section = values.pop(key, {}) if isinstance(values, dict) else {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: {key} takes keys and their values, not {section!r}.")
    return section

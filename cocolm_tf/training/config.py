"""What defines a pretraining run: Model Garden configuration dataclasses, read from YAML.

A file states what differs from the defaults here, which are those of the paper's *base* setting.
"""

import dataclasses
import os
import types
import typing
from typing import Any

import yaml
from official.modeling import hyperparams

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import SAMPLING_MODES

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """The main model; see `CocoLMBackbone`."""

    vocabulary_size: int = 32_768
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 3072
    dropout: float = 0.1
    max_sequence_length: int = 512
    relative_position_bins: int = 32
    relative_position_max_distance: int = 128
    rematerialize: bool = False


@dataclasses.dataclass
class AuxiliaryConfig(hyperparams.Config):
    """The auxiliary model. A size of 0 is the main model's."""

    # random: masked tokens are replaced at random, and there is no auxiliary model.
    replacements: str = "auxiliary"
    num_layers: int = 4
    num_heads: int = 0
    hidden_dim: int = 0
    intermediate_dim: int = 0
    # Which pass is sampled from; see `CocoLMPretrainer`. zero_dropout also takes its dropout away.
    sampling: str = "eval"


@dataclasses.dataclass
class ObjectiveConfig(hyperparams.Config):
    """The main model's tasks; see `CocoLMPretrainer`. A task of weight 0 is not built."""

    copy_weight: float = 50.0
    lm_weight: float = 1.0
    scl_weight: float = 1.0
    all_token_lm: bool = False
    use_copy: bool = True
    stop_gradient: bool = True
    temperature: float = 1.0
    projection: bool = True


@dataclasses.dataclass
class DataConfig(hyperparams.Config):
    """From shards to batches; see `PretrainingData`."""

    sequence_length: int = 512
    mask_fraction: float = 0.15
    crop_fraction: float = 0.9
    # Whether to hash every shard before training, or only to look at its size.
    verify_checksums: bool = True


@dataclasses.dataclass
class OptimizerConfig(hyperparams.Config):
    """AdamW with linear warm-up and decay."""

    learning_rate: float = 5e-4
    end_learning_rate: float = 0.0
    warmup_steps: int = 10_000
    beta_1: float = 0.9
    beta_2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    # Biases and LayerNorm never decay; the embedding tables by this choice.
    decay_embeddings: bool = True
    # Bound on the gradients' global norm; 0 for none.
    clip_norm: float = 2.0


@dataclasses.dataclass
class TrainerConfig(hyperparams.Config):
    """The course of the run. All intervals are in steps."""

    train_steps: int = 125_000
    # Sequences a step, over all replicas.
    batch_size: int = 2048
    # Parts that each replica's batch is cut into to fit its memory.
    micro_batches: int = 1
    # Steps run between two looks of the host.
    steps_per_loop: int = 1
    log_interval: int = 100
    validation_interval: int = 5_000
    # Batches of one validation; 0 for all there are.
    validation_steps: int = 0
    checkpoint_interval: int = 5_000
    max_checkpoints: int = 3
    # A run whose updates were skipped this often in a row is ended.
    max_skipped_updates: int = 100


@dataclasses.dataclass
class RuntimeConfig(hyperparams.Config):
    """How it is computed."""

    precision: str = "float32"
    # Compile the whole step with XLA, on one device. On a TPU leave it off.
    jit_compile: bool = False
    seed: int = 0


@dataclasses.dataclass
class PretrainingConfig(hyperparams.Config):
    """A pretraining run.

    Example:
    ```python
    config = load_config("configs/pretrain/small.yaml", "trainer.train_steps=1000")
    ```
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    auxiliary: AuxiliaryConfig = dataclasses.field(default_factory=AuxiliaryConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


def load_config(path: str, overrides: str | list[str] = "") -> PretrainingConfig:
    """Reads a configuration and checks it.

    Args:
        path: a YAML file.
        overrides: what `--params_override` takes: `a.b=1,c.d=x`, YAML or JSON text, a YAML file,
            or a list of these.

    Returns:
        The configuration, complete with defaults.

    Raises:
        UserError: naming the file and the key that does not exist, has the wrong type or does
            not go together with others.

    Example:
    ```python
    load_config("configs/pretrain/small.yaml", "runtime.precision=mixed_bfloat16")
    ```
    """
    if not os.path.isfile(path):
        raise UserError(f"--config_file={path} does not exist.")
    config = PretrainingConfig()
    sources = [(path, path)]
    for override in [overrides] if isinstance(overrides, str) else overrides:
        sources.append((override, f"--params_override={override}"))
    for source, name in sources:
        if not source:
            continue
        try:
            config = hyperparams.override_params_dict(config, source, is_strict=True)
        except (KeyError, ValueError, TypeError, yaml.YAMLError) as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            raise UserError(f"{name}: {reason}") from error
    check_config(config, path)
    return config


def check_config(config: PretrainingConfig, name: str) -> None:
    """Checks types and combinations.

    Args:
        config: the configuration.
        name: where it comes from, for the message.

    Raises:
        UserError: naming the first key that is wrong.

    Example:
    ```python
    check_config(PretrainingConfig(), "the defaults")
    ```
    """
    _check_types(config, name, prefix="")
    trainer = config.trainer
    _one_of(name, "runtime.precision", config.runtime.precision, PRECISIONS)
    _one_of(name, "auxiliary.sampling", config.auxiliary.sampling, SAMPLING_MODES)
    _one_of(name, "auxiliary.replacements", config.auxiliary.replacements, ("auxiliary", "random"))
    for key in ("train_steps", "log_interval", "validation_interval", "checkpoint_interval"):
        steps = getattr(trainer, key)
        if steps < 1 or steps % trainer.steps_per_loop:
            raise UserError(
                f"{name}: trainer.{key}={steps} must be a positive multiple of "
                f"trainer.steps_per_loop={trainer.steps_per_loop}."
            )
    if config.data.sequence_length > config.model.max_sequence_length:
        raise UserError(
            f"{name}: data.sequence_length={config.data.sequence_length} is more than "
            f"model.max_sequence_length={config.model.max_sequence_length}."
        )
    if config.model.hidden_dim % config.model.num_heads:
        raise UserError(
            f"{name}: model.hidden_dim={config.model.hidden_dim} is not a multiple of "
            f"model.num_heads={config.model.num_heads}."
        )
    for key in ("mask_fraction", "crop_fraction"):
        if not 0 < getattr(config.data, key) <= 1:
            raise UserError(f"{name}: data.{key} lies in (0, 1], not {getattr(config.data, key)}.")
    if config.optimizer.warmup_steps > trainer.train_steps:
        raise UserError(
            f"{name}: optimizer.warmup_steps={config.optimizer.warmup_steps} is more than "
            f"trainer.train_steps={trainer.train_steps}."
        )
    objective = config.objective
    if not (objective.copy_weight or objective.lm_weight or objective.scl_weight):
        raise UserError(f"{name}: objective gives the main model nothing to learn.")


def save_config(config: PretrainingConfig, path: str) -> None:
    """Writes a configuration so that `load_config` reads it back.

    Example:
    ```python
    save_config(PretrainingConfig(), "/tmp/config.yaml")
    ```
    """
    with open(path, "w") as file:
        yaml.safe_dump(config.as_dict(), file, sort_keys=False)


def _check_types(config: hyperparams.Config, name: str, prefix: str) -> None:
    for key, kind in typing.get_type_hints(type(config)).items():
        if key not in config.__dict__:
            continue
        value = getattr(config, key)
        if isinstance(value, hyperparams.Config):
            _check_types(value, name, f"{prefix}{key}.")
        elif not _fits(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) else str(kind)
            raise UserError(f"{name}: {prefix}{key} must be of type {wanted}, not {value!r}.")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _one_of(name: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: {key} is one of {', '.join(allowed)}, not {value!r}.")

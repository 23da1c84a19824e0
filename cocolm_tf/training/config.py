"""What defines a pretraining run: Model Garden configuration dataclasses, read from YAML.

A file states what differs from the defaults here, which are those of the paper's *base* setting.
"""

import contextlib
import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import yaml
from official.modeling import hyperparams

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import SAMPLING_MODES
from cocolm_tf.modeling.relative_position import relative_position_buckets

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
    # Not the paper's: see `CocoLMBackbone`. Helps small models on small budgets.
    neighbor_bias: float = 0.0
    initializer_range: float = 0.02
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
    # Whether to hash every shard before a run begins, or only to look at its size.
    verify_checksums: bool = True
    # Whether to leave out what cannot be read of a damaged shard. Every start reads all of them.
    skip_corrupt: bool = False


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
    # Checkpoints of this step and its multiples are kept for ever; 0 for none.
    keep_checkpoint_interval: int = 0
    # A run whose updates were skipped this often in a row is ended.
    max_skipped_updates: int = 100


@dataclasses.dataclass
class RuntimeConfig(hyperparams.Config):
    """How it is computed."""

    precision: str = "float32"
    # Whether to compile the whole step with XLA, on one device; null for what suits the device.
    jit_compile: bool | None = None
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


# What a number must be, in code and in words, and the keys that this holds for.
_RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (
        lambda value: value >= 1,
        "at least 1",
        (
            "model.vocabulary_size",
            "model.num_layers",
            "model.num_heads",
            "model.hidden_dim",
            "model.intermediate_dim",
            "model.max_sequence_length",
            "auxiliary.num_layers",
            "data.sequence_length",
            "trainer.train_steps",
            "trainer.batch_size",
            "trainer.micro_batches",
            "trainer.steps_per_loop",
            "trainer.log_interval",
            "trainer.validation_interval",
            "trainer.checkpoint_interval",
            "trainer.max_checkpoints",
            "trainer.max_skipped_updates",
        ),
    ),
    (
        lambda value: value >= 0,
        "0 or more",
        (
            "model.relative_position_bins",
            "auxiliary.num_heads",
            "auxiliary.hidden_dim",
            "auxiliary.intermediate_dim",
            "objective.copy_weight",
            "objective.lm_weight",
            "objective.scl_weight",
            "optimizer.end_learning_rate",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "trainer.validation_steps",
            "trainer.keep_checkpoint_interval",
        ),
    ),
    (
        lambda value: value > 0,
        "more than 0",
        (
            "model.initializer_range",
            "objective.temperature",
            "optimizer.learning_rate",
            "optimizer.epsilon",
        ),
    ),
    (
        lambda value: 0 <= value < 1,
        "in [0, 1)",
        ("model.dropout", "optimizer.beta_1", "optimizer.beta_2"),
    ),
    (
        lambda value: 0 < value <= 1,
        "in (0, 1]",
        ("data.mask_fraction", "data.crop_fraction"),
    ),
    (lambda value: 0 <= value < 2**31, "in [0, 2^31)", ("runtime.seed",)),
)


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
    _override(config, _parse(path, path), path)
    names = [path]
    for override in [overrides] if isinstance(overrides, str) else overrides:
        if override:
            names.append(f"--params_override={override}")
            _override(config, _parse(override, names[-1]), names[-1])
    check_config(config, " ".join(names))
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
    for is_right, wanted, keys in _RANGES:
        for key in keys:
            section, field = key.split(".")
            value = getattr(getattr(config, section), field)
            if not is_right(value):
                raise UserError(f"{name}: {key} must be {wanted}, not {value}.")
    _one_of(name, "runtime.precision", config.runtime.precision, PRECISIONS)
    _one_of(name, "auxiliary.sampling", config.auxiliary.sampling, SAMPLING_MODES)
    _one_of(name, "auxiliary.replacements", config.auxiliary.replacements, ("auxiliary", "random"))
    _check_sizes(config, name)
    trainer = config.trainer
    for key in ("train_steps", "log_interval", "validation_interval", "checkpoint_interval"):
        steps = getattr(trainer, key)
        if steps % trainer.steps_per_loop:
            raise UserError(
                f"{name}: trainer.{key}={steps} must be a multiple of "
                f"trainer.steps_per_loop={trainer.steps_per_loop}."
            )
    if trainer.keep_checkpoint_interval % trainer.checkpoint_interval:
        raise UserError(
            f"{name}: trainer.keep_checkpoint_interval={trainer.keep_checkpoint_interval} must be "
            f"a multiple of trainer.checkpoint_interval={trainer.checkpoint_interval}."
        )
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
    with open(path + ".tmp", "w") as file:
        yaml.safe_dump(config.as_dict(), file, sort_keys=False)
    os.replace(path + ".tmp", path)


class _Loader(yaml.SafeLoader):
    """YAML that can hold nothing but plain values, where 1e-3 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


def _parse(source: str, name: str) -> Any:
    """Reads a YAML file, or the text of an override."""
    try:
        if os.path.isfile(source):
            with open(source) as file:
                return yaml.load(file, _Loader) or {}
        with contextlib.suppress(ValueError):  # It is YAML or JSON text then.
            source = hyperparams.nested_csv_str_to_json_str(source)
        return yaml.load(source, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def _override(config: hyperparams.Config, values: Any, name: str, prefix: str = "") -> None:
    """What `Config.override` does, with the mistakes told by their full keys."""
    if not isinstance(values, dict):
        what = f"{prefix.removesuffix('.')} takes" if prefix else "a configuration takes"
        raise UserError(f"{name}: {what} keys and their values, not {values!r}.")
    kinds = typing.get_type_hints(type(config))
    keys = [field.name for field in dataclasses.fields(config)]
    for key, value in values.items():
        if key not in keys:
            raise UserError(
                f"{name}: {prefix}{key} does not exist; "
                f"{prefix.removesuffix('.') or 'a configuration'} has {', '.join(keys)}."
            )
        if isinstance(getattr(config, key), hyperparams.Config):
            _override(getattr(config, key), value, name, f"{prefix}{key}.")
        else:
            _check_type(name, f"{prefix}{key}", value, kinds[key])
            setattr(config, key, value)


def _check_types(config: hyperparams.Config, name: str, prefix: str) -> None:
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        _check_type(name, key, value, kinds[field.name])
        if isinstance(value, hyperparams.Config):
            _check_types(value, name, f"{key}.")


def _check_type(name: str, key: str, value: Any, kind: type | types.UnionType) -> None:
    kinds = typing.get_args(kind) or (kind,)
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if k is types.NoneType else k.__name__ for k in kinds)
        raise UserError(f"{name}: {key} must be of type {wanted}, not {value!r}.")


def _check_sizes(config: PretrainingConfig, name: str) -> None:
    model, auxiliary = config.model, config.auxiliary
    if config.data.sequence_length > model.max_sequence_length:
        raise UserError(
            f"{name}: data.sequence_length={config.data.sequence_length} is more than "
            f"model.max_sequence_length={model.max_sequence_length}."
        )
    if model.hidden_dim % model.num_heads:
        raise UserError(
            f"{name}: model.hidden_dim={model.hidden_dim} is not a multiple of "
            f"model.num_heads={model.num_heads}."
        )
    width, heads = (
        getattr(auxiliary, key) or getattr(model, key) for key in ("hidden_dim", "num_heads")
    )
    if width % heads:
        raise UserError(
            f"{name}: the auxiliary model's width {width} is not a multiple of its number of "
            f"heads {heads}: set auxiliary.hidden_dim and auxiliary.num_heads."
        )
    if model.relative_position_bins:
        try:
            relative_position_buckets(
                model.relative_position_bins, model.relative_position_max_distance, 1
            )
        except ValueError as error:
            raise UserError(f"{name}: model.{error}") from error


def _one_of(name: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: {key} is one of {', '.join(allowed)}, not {value!r}.")

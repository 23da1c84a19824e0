"""The configuration of a pretraining run: Model Garden dataclasses, read from YAML.

A file has the values that differ from the defaults here, which are those of the paper's *base*
setting, or, with the key `base`, from another file.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from official.modeling import hyperparams

from cocolm_tf.data.augmentation import MASKINGS
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.corruption import SAMPLING_MODES
from cocolm_tf.modeling.transformer import (
    REMATERIALIZE,
    RESIDUAL_INITS,
    SHARED_EMBEDDINGS,
    relative_position_buckets,
    rematerialize_mode,
)
from cocolm_tf.ops.attention import ATTENTION_KERNELS
from cocolm_tf.training import config_file
from cocolm_tf.training.optimization import SCHEDULES
from cocolm_tf.training.stages import resolve_durations, schedule_faults, stage_ends

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
REPLACEMENTS = ("auxiliary", "frozen", "random", "stored")
OBJECTIVES = ("coco_lm", "masked_lm", "mcl")


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
    # What the matrices that write to the residual sum start with, in both models: none, the same;
    # layer, divided by sqrt(2 * the layer's number); total, by sqrt(2 * num_layers).
    residual_init: str = "none"
    # Parts computed again in the backward pass instead of being kept: none, attention (tensors of
    # every two positions) or block; true and false are the last and the first.
    rematerialize: bool | str = "none"


@dataclasses.dataclass
class AuxiliaryConfig(hyperparams.Config):
    """The auxiliary model. A size of 0 is the main model's."""

    # auxiliary: it learns and masked tokens are replaced by its samples. frozen: it is the one of
    # `preset`, and does not learn. random: there is none. stored: there is none, either, but the
    # data has its samples, which precompute_replacements.py drew with `frozen`.
    replacements: str = "auxiliary"
    # That of a finished run, whose word and position tables the frozen model keeps.
    preset: str = ""
    num_layers: int = 4
    num_heads: int = 0
    hidden_dim: int = 0
    intermediate_dim: int = 0
    # Parts that it shares with the main model where it learns: token, the word table;
    # token_position, the position table, too; token_position_norm, also LayerNorm on both.
    shared: str = "token_position"
    # Which pass is sampled from; see `CocoLMPretrainer`. zero_dropout also takes its dropout away.
    sampling: str = "eval"
    # Logits are divided by a temperature before samples are drawn. It falls from this to 1: its
    # excess over 1 to 1/e in each temperature_decay of the run; see `SamplingTemperature`.
    temperature: float = 1.0
    temperature_decay: float = 0.1


@dataclasses.dataclass
class ObjectiveConfig(hyperparams.Config):
    """The main model's tasks; see `CocoLMPretrainer`. A task of weight 0 is not built."""

    # masked_lm: BERT's and RoBERTa's instead, without auxiliary model and the tasks below; see
    # `MaskedLMPretrainer`. mcl: the tasks of the section mcl instead of those below.
    name: str = "coco_lm"
    copy_weight: float = 50.0
    lm_weight: float = 1.0
    scl_weight: float = 1.0
    all_token_lm: bool = False
    use_copy: bool = True
    stop_gradient: bool = True
    # Whether the LM loss of a position is weighted by the copy head's probability of replacement.
    weighted_lm: bool = False
    # Whether the copy head starts at zero, and whether it has a bias.
    copy_head_zeros: bool = False
    copy_head_bias: bool = False
    temperature: float = 1.0
    projection: bool = True
    # Whether a batch in trainer.micro_batches parts is contrasted as a whole: a forward pass more.
    scl_over_micro_batches: bool = False


@dataclasses.dataclass
class MCLConfig(hyperparams.Config):
    """The courses of `objective.name: mcl`; see `MCLPretrainer`. Weight 0 leaves one out."""

    mlm_weight: float = 1.0
    slm_weight: float = 1.0
    rtd_weight: float = 50.0
    std_weight: float = 50.0
    itd_weight: float = 50.0
    re_mlm_weight: float = 1.0
    re_slm_weight: float = 1.0
    re_rtd_weight: float = 20.0
    re_std_weight: float = 20.0
    # The shares of ordinary tokens; data.mask_fraction is that of masked ones.
    swap_fraction: float = 0.15
    insert_fraction: float = 0.15
    # Whether swapping may leave tokens where they are.
    fixed_points: bool = False
    shared_head: bool = False
    revise_all_tokens: bool = True
    # Whether it is [MASK] that the generator sees where it tries again after swapping.
    re_slm_masked: bool = False


@dataclasses.dataclass
class DataConfig(hyperparams.Config):
    """From shards to batches; see `PretrainingData`."""

    sequence_length: int = 512
    # Shorter sequences first: the share of the steps after which a stage ends, its length, and so
    # on. [0.9, 128] trains with 128 tokens for 90% of the steps, then with sequence_length.
    sequence_length_schedule: list = dataclasses.field(default_factory=list)
    # Whether a stage's batch has as many times trainer.batch_size as its sequences are shorter.
    scale_batch_size: bool = False
    mask_fraction: float = 0.15
    # The unit of masking: token, word, or span, which is span_words words on average.
    masking: str = "token"
    span_words: float = 3.0
    crop_fraction: float = 0.9
    # The share of the sequences that are cut to a random length; ELECTRA has 0.05.
    short_fraction: float = 0.0
    # Whether to hash every shard before a run begins, or only to look at its size.
    verify_checksums: bool = True
    # Whether to leave out what cannot be read of a damaged shard. Every start reads all of them.
    skip_corrupt: bool = False


@dataclasses.dataclass
class OptimizerConfig(hyperparams.Config):
    """AdamW, and the warm-up and decay of its learning rate."""

    learning_rate: float = 5e-4
    end_learning_rate: float = 0.0
    warmup_steps: int = 10_000
    # The same in tokens, padding included; 0 for warmup_steps.
    warmup_tokens: int = 0
    # How it decays: linear or cosine, from the end of the warm-up on; wsd (warm-up, stable, decay),
    # linearly in the last decay_steps alone; wsd_sqrt, there by 1 - sqrt(the share that is done).
    schedule: str = "linear"
    # 0 for a tenth of the run, or for all steps after trainer.decay_from.
    decay_steps: int = 0
    beta_1: float = 0.9
    beta_2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    # Biases and LayerNorm never decay; the embedding tables by this choice.
    decay_embeddings: bool = True
    # Bound on the gradients' global norm; 0 for none.
    clip_norm: float = 2.0
    # Whether each replica keeps its share of the moments instead of all of them (ZeRO stage 1).
    sharded: bool = False


@dataclasses.dataclass
class TrainerConfig(hyperparams.Config):
    """The course of the run. All intervals are in steps."""

    train_steps: int = 125_000
    # The same in tokens, padding included; 0 for train_steps.
    train_tokens: int = 0
    # Sequences a step, over all replicas.
    batch_size: int = 2048
    # Smaller batches first: the share of the steps after which a stage ends, its size, and so on.
    # [0.1, 512] trains with 512 sequences for 10% of the steps, then with batch_size.
    batch_size_schedule: list = dataclasses.field(default_factory=list)
    # Parts that each replica's batch is cut into to fit its memory.
    micro_batches: int = 1
    # Steps that run before the host looks at their results.
    steps_per_loop: int = 1
    log_interval: int = 100
    validation_interval: int = 5_000
    # Batches of one validation; 0 for all.
    validation_steps: int = 0
    checkpoint_interval: int = 5_000
    max_checkpoints: int = 3
    # Checkpoints of this step and its multiples are kept for ever; 0 for none.
    keep_checkpoint_interval: int = 0
    # How many skipped updates in a row end a run.
    max_skipped_updates: int = 100
    # RUN@STEP begins from the kept checkpoint of STEP of the run in the folder RUN, before its
    # learning rate decayed, and lets it decay: optimizer.schedule=wsd or wsd_sqrt.
    decay_from: str = ""
    # The decay of a moving average of the weights, also saved as preset_ema; 0 for none. In step t
    # it is (1 + t) / (10 + t) if that is less.
    ema_decay: float = 0.0


@dataclasses.dataclass
class RuntimeConfig(hyperparams.Config):
    """How a run is computed."""

    precision: str = "float32"
    # Whether to compile the whole step with XLA; null: on the GPUs of one host it is, on CPUs not.
    jit_compile: bool | None = None
    # What computes attention: xla, or cudnn, NVIDIA's fused kernels, in steps that are compiled for
    # a GPU in mixed precision. Its dropout does not follow from the seed.
    attention: str = "xla"
    # Positions whose logits over the vocabulary are in memory at a time, computed twice; 0 for all,
    # computed once. Saves memory where positions are many and the vocabulary is large.
    logit_chunk_rows: int = 0
    # A device's peak, FLOPs a second of products, for `mfu` in the log; 0 for its vendor's figure.
    peak_flops: float = 0.0
    seed: int = 0


@dataclasses.dataclass
class PretrainingConfig(hyperparams.Config):
    """A pretraining run, in sections.

    Args:
        model: The main model.
        auxiliary: The auxiliary model, whose samples replace masked tokens.
        objective: The main model's tasks.
        mcl: The tasks of MCL, if `objective.name` is `mcl`.
        data: From shards to batches.
        optimizer: AdamW and its learning rate.
        trainer: Steps, batches, checkpoints and validations.
        runtime: How the run is computed, and its seed.

    Example:
    ```python
    PretrainingConfig().trainer.batch_size  # 2048
    ```
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    auxiliary: AuxiliaryConfig = dataclasses.field(default_factory=AuxiliaryConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    mcl: MCLConfig = dataclasses.field(default_factory=MCLConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


_RANGES: config_file.Ranges = [
    (is_right, wanted, keys.split())
    for is_right, wanted, keys in (
        (
            lambda value: value >= 1,
            "at least 1",
            """
        model.vocabulary_size model.num_layers model.num_heads model.hidden_dim
        model.intermediate_dim model.max_sequence_length auxiliary.num_layers data.sequence_length
        data.span_words trainer.train_steps trainer.batch_size trainer.micro_batches
        trainer.steps_per_loop trainer.log_interval trainer.validation_interval
        trainer.checkpoint_interval trainer.max_checkpoints trainer.max_skipped_updates
        """,
        ),
        (
            lambda value: value >= 0,
            "0 or more",
            """
        model.relative_position_bins auxiliary.num_heads auxiliary.hidden_dim
        auxiliary.intermediate_dim objective.copy_weight objective.lm_weight objective.scl_weight
        mcl.mlm_weight mcl.slm_weight mcl.rtd_weight mcl.std_weight mcl.itd_weight
        mcl.re_mlm_weight mcl.re_slm_weight mcl.re_rtd_weight mcl.re_std_weight
        optimizer.end_learning_rate optimizer.warmup_steps optimizer.warmup_tokens
        optimizer.decay_steps optimizer.weight_decay optimizer.clip_norm trainer.train_tokens
        trainer.validation_steps trainer.keep_checkpoint_interval runtime.logit_chunk_rows
        runtime.peak_flops
        """,
        ),
        (
            lambda value: value > 0,
            "more than 0",
            """
        model.initializer_range objective.temperature auxiliary.temperature
        auxiliary.temperature_decay optimizer.learning_rate optimizer.epsilon
        """,
        ),
        (
            lambda value: 0 <= value < 1,
            "in [0, 1)",
            "model.dropout optimizer.beta_1 optimizer.beta_2 trainer.ema_decay",
        ),
        (
            lambda value: 0 < value <= 1,
            "in (0, 1]",
            "data.mask_fraction data.crop_fraction mcl.swap_fraction mcl.insert_fraction",
        ),
        (lambda value: 0 <= value <= 1, "in [0, 1]", "data.short_fraction"),
        (lambda value: 0 <= value < 2**31, "in [0, 2^31)", "runtime.seed"),
    )
]
_CHOICES = {
    "runtime.precision": PRECISIONS,
    "model.rematerialize": REMATERIALIZE,
    "model.residual_init": RESIDUAL_INITS,
    "runtime.attention": ATTENTION_KERNELS,
    "auxiliary.sampling": SAMPLING_MODES,
    "auxiliary.replacements": REPLACEMENTS,
    "auxiliary.shared": SHARED_EMBEDDINGS,
    "objective.name": OBJECTIVES,
    "data.masking": MASKINGS,
    "optimizer.schedule": tuple(SCHEDULES),
}


def load_config(path: str, overrides: str | list[str] = "") -> PretrainingConfig:
    """Reads a configuration and checks it.

    Args:
        path: A YAML file. Its key `base` names another, by its path from the file, whose values
            hold where the file has none of its own.
        overrides: What `--params_override` takes: `a.b=1,c.d=x`, YAML or JSON text, a YAML file,
            or a list of these. Of a file with a `base` only its own values are taken: what it
            changes is put over this configuration instead.

    Returns:
        The configuration, complete with defaults.

    Raises:
        UserError: Naming the file and the key that does not exist, has the wrong type or does
            not go together with others.

    Example:
    ```python
    load_config("configs/pretrain/small.yaml", "runtime.precision=mixed_bfloat16")
    ```
    """
    config = PretrainingConfig()
    config_file.apply_file(config, path)
    names = [path, *config_file.apply_overrides(config, overrides)]
    check_config(config, " ".join(names))
    return config


def check_config(config: PretrainingConfig, name: str) -> None:
    """Checks types and combinations, and sets derived values; messages call it by its `name`."""
    config_file.check_types(config, name)
    if isinstance(config.model.rematerialize, bool):
        config.model.rematerialize = rematerialize_mode(config.model.rematerialize)
    config_file.check_ranges(config, name, _RANGES)
    for key, allowed in _CHOICES.items():
        section, field = key.split(".")
        config_file.check_choice(name, key, getattr(getattr(config, section), field), allowed)
    _refuse_first(name, _size_faults(config), _schedule_faults(config))
    resolve_durations(config)
    _refuse_first(
        name,
        _empty_stage_faults(config),
        _runtime_faults(config),
        _trainer_faults(config),
        _decay_faults(config),
        _objective_faults(config),
    )


def _refuse_first(name: str, *checks: Iterator[str]) -> None:
    fault = next(itertools.chain.from_iterable(checks), None)
    if fault:
        raise UserError(f"{name}: {fault}")


def save_config(config: PretrainingConfig, path: str) -> None:
    """Writes a configuration so that `load_config` reads it back."""
    config_file.save_config(config, path)


def decay_steps(config: PretrainingConfig) -> int:
    """The steps at the end of a run in which its learning rate decays."""
    optimizer, trainer = config.optimizer, config.trainer
    if not SCHEDULES[optimizer.schedule][1]:
        return trainer.train_steps - optimizer.warmup_steps
    if trainer.decay_from:
        rest = trainer.train_steps - int(trainer.decay_from.rpartition("@")[2])
    else:
        rest = -(-trainer.train_steps // 10)
    return optimizer.decay_steps or rest


# The faults in how the values of keys go together: what is wrong, and what would be right.


def _size_faults(config: PretrainingConfig) -> Iterator[str]:
    model, auxiliary = config.model, config.auxiliary
    if config.data.sequence_length > model.max_sequence_length:
        yield (
            f"data.sequence_length={config.data.sequence_length} is more than "
            f"model.max_sequence_length={model.max_sequence_length}."
        )
    if model.hidden_dim % model.num_heads:
        yield (
            f"model.hidden_dim={model.hidden_dim} is not a multiple of "
            f"model.num_heads={model.num_heads}."
        )
    width, heads = (
        getattr(auxiliary, key) or getattr(model, key) for key in ("hidden_dim", "num_heads")
    )
    if width % heads:
        yield (
            f"the auxiliary model's width {width} is not a multiple of its number of heads "
            f"{heads}: set auxiliary.hidden_dim and auxiliary.num_heads."
        )
    if model.relative_position_bins:
        try:
            relative_position_buckets(
                model.relative_position_bins, model.relative_position_max_distance, 1
            )
        except ValueError as error:
            yield f"model.{error}"


def _schedules(config: PretrainingConfig) -> dict[str, list[float]]:
    return {
        "data.sequence_length_schedule": config.data.sequence_length_schedule,
        "trainer.batch_size_schedule": config.trainer.batch_size_schedule,
    }


def _schedule_faults(config: PretrainingConfig) -> Iterator[str]:
    data, trainer = config.data, config.trainer
    for key, schedule in _schedules(config).items():
        for fault in schedule_faults(schedule, "size" if "size" in key else "length"):
            yield f"{key}={schedule}: {fault}"
    key = f"data.sequence_length_schedule={data.sequence_length_schedule}"
    for length in data.sequence_length_schedule[1::2]:
        if not 3 <= length <= config.model.max_sequence_length:
            yield (
                f"{key}: lengths must be from 3 to model.max_sequence_length="
                f"{config.model.max_sequence_length}."
            )
        if data.scale_batch_size and length > data.sequence_length:
            yield (
                f"{key}: with data.scale_batch_size no length may be more than "
                f"data.sequence_length={data.sequence_length}."
            )
    if any(not 1 <= size <= trainer.batch_size for size in trainer.batch_size_schedule[1::2]):
        yield (
            f"trainer.batch_size_schedule={trainer.batch_size_schedule}: sizes must be from 1 to "
            f"trainer.batch_size={trainer.batch_size}."
        )


def _empty_stage_faults(config: PretrainingConfig) -> Iterator[str]:
    trainer = config.trainer
    for key, schedule in _schedules(config).items():
        ends = [0, *stage_ends(schedule, trainer.train_steps, trainer.steps_per_loop)]
        if any(begin == end for begin, end in itertools.pairwise(ends)):
            yield (
                f"{key}={schedule} has a stage of less than trainer.steps_per_loop="
                f"{trainer.steps_per_loop} of trainer.train_steps={trainer.train_steps} steps."
            )


def _runtime_faults(config: PretrainingConfig) -> Iterator[str]:
    if config.runtime.attention == "cudnn" and config.runtime.precision == "float32":
        yield "runtime.attention=cudnn needs a runtime.precision that is mixed."


def _trainer_faults(config: PretrainingConfig) -> Iterator[str]:
    trainer = config.trainer
    for key, of in (
        ("train_steps", "steps_per_loop"),
        ("log_interval", "steps_per_loop"),
        ("validation_interval", "steps_per_loop"),
        ("checkpoint_interval", "steps_per_loop"),
        ("keep_checkpoint_interval", "checkpoint_interval"),
    ):
        value, unit = getattr(trainer, key), getattr(trainer, of)
        if value % unit:
            yield f"trainer.{key}={value} must be a multiple of trainer.{of}={unit}."


def _decay_faults(config: PretrainingConfig) -> Iterator[str]:
    optimizer, trainer = config.optimizer, config.trainer
    if optimizer.warmup_steps > trainer.train_steps:
        yield (
            f"optimizer.warmup_steps={optimizer.warmup_steps} is more than "
            f"trainer.train_steps={trainer.train_steps}."
        )
    has_stable_phase = SCHEDULES[optimizer.schedule][1]
    if not has_stable_phase and (optimizer.decay_steps or trainer.decay_from):
        key = "trainer.decay_from" if trainer.decay_from else "optimizer.decay_steps"
        yield f"{key} needs optimizer.schedule=wsd or wsd_sqrt."
    if not has_stable_phase:
        return
    first = optimizer.warmup_steps
    if trainer.decay_from:
        run, at, step = trainer.decay_from.rpartition("@")
        if not run or not at or not step.isdecimal():
            yield (
                f"trainer.decay_from={trainer.decay_from} must be RUN@STEP: the folder of a run "
                "and the step of a checkpoint that it has kept."
            )
        first = max(int(step), first)
        if first >= trainer.train_steps:
            yield (
                f"trainer.decay_from={trainer.decay_from} leaves no steps to decay in: "
                f"trainer.train_steps={trainer.train_steps} must be more than {first}."
            )
    if first > trainer.train_steps - decay_steps(config):
        yield (
            f"a decay of {decay_steps(config)} steps does not fit between step {first} and "
            f"trainer.train_steps={trainer.train_steps}: lower optimizer.decay_steps."
        )


def _objective_faults(config: PretrainingConfig) -> Iterator[str]:
    objective, replacements = config.objective, config.auxiliary.replacements
    has_preset = bool(config.auxiliary.preset)
    if replacements != "stored" and (replacements == "frozen") != has_preset:
        yield (
            "auxiliary.replacements=frozen and auxiliary.preset go together: the frozen auxiliary "
            "model is that of a finished run's preset."
        )
    if replacements == "stored" and objective.name != "coco_lm":
        yield (
            "auxiliary.replacements=stored does not go with objective.name="
            f"{objective.name}: it must be coco_lm."
        )
    schedules = config.data.sequence_length_schedule, config.trainer.batch_size_schedule
    if replacements == "stored" and any(schedules):
        yield (
            "auxiliary.replacements=stored has batches of one shape, without a "
            "data.sequence_length_schedule or a trainer.batch_size_schedule."
        )
    if objective.name == "mcl":
        yield from _course_faults(config)
    elif not (objective.copy_weight or objective.lm_weight or objective.scl_weight):
        yield "objective gives the main model nothing to learn."
    elif objective.weighted_lm and not (objective.copy_weight or objective.use_copy):
        yield (
            "objective.weighted_lm=true weighs by the copy head, which nothing trains: set "
            "objective.copy_weight."
        )


def _course_faults(config: PretrainingConfig) -> Iterator[str]:
    mcl, replacements = config.mcl, config.auxiliary.replacements
    for key, wanted in (("masking", "token"), ("short_fraction", 0.0)):
        if (value := getattr(config.data, key)) != wanted:
            yield (
                f"data.{key}={value} does not go with objective.name=mcl, whose courses choose "
                f"single tokens of whole sequences: it must be {wanted}."
            )
    if replacements != "auxiliary":
        yield (
            f"auxiliary.replacements={replacements} does not go with objective.name=mcl, whose "
            "auxiliary model, the generator, learns: it must be auxiliary."
        )
    if not (mcl.mlm_weight or mcl.slm_weight):
        yield "mcl gives the generator nothing to learn: set mcl.mlm_weight."
    if not (mcl.rtd_weight or mcl.std_weight or mcl.itd_weight):
        yield "mcl gives the main model nothing to learn: set mcl.rtd_weight."
    for correction in ("re_mlm", "re_rtd", "re_slm", "re_std"):
        course = "rtd" if correction in ("re_mlm", "re_rtd") else "std"
        if getattr(mcl, f"{correction}_weight") and not getattr(mcl, f"{course}_weight"):
            yield (
                f"mcl.{correction}_weight needs mcl.{course}_weight, whose errors it corrects: "
                f"set mcl.{correction}_weight=0 too."
            )

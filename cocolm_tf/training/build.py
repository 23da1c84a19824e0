"""From a configuration to models, an augmentation and an optimizer."""

import os
import random

import numpy as np

from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
from cocolm_tf.data.mcl_augmentation import MCLAugmentation
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.corruption import SamplingTemperature
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, MaskedLMPretrainer
from cocolm_tf.modeling.mcl import MCLPretrainer
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.ops.cudnn_attention import XLA_OPTIONS
from cocolm_tf.training.config import OptimizerConfig, PretrainingConfig, decay_steps
from cocolm_tf.training.distribution import compiles_step
from cocolm_tf.training.optimization import SCHEDULES, AdamW, ShardedAdamW, WarmupDecay

Pretrainer = CocoLMPretrainer | MaskedLMPretrainer | MCLPretrainer

# The keys of the section `mcl` that the augmentation takes, not the model.
_OF_AUGMENTATION = ("swap_fraction", "insert_fraction", "fixed_points")


def build_pretrainer(config: PretrainingConfig, mask_token_id: int) -> Pretrainer:
    """Builds the models and their objective, with fresh weights.

    Args:
        config: The run's.
        mask_token_id: The vocabulary's `[MASK]`.

    Returns:
        The pretrainer, not yet compiled. Call this inside the scope of the strategy.

    Example:
    ```python
    pretrainer = build_pretrainer(load_config("configs/pretrain/small.yaml"), mask_token_id=8191)
    ```
    """
    # Keras draws the initializers' seeds from here. `keras.utils.set_random_seed` would also reset
    # TensorFlow's generator, and that breaks every tokenizer made before.
    random.seed(config.runtime.seed)
    precision = config.runtime.precision
    attention = config.runtime.attention
    if attention == "cudnn":
        # XLA reads the variable once, at the first compilation.
        flags = os.environ.get("XLA_FLAGS", "").split()
        flags += [f"--{name}={value}" for name, value in XLA_OPTIONS.items()]
        os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))
    main = CocoLMBackbone(
        **config.model.as_dict(), attention=attention, dtype=precision, name="main"
    )
    objective = config.objective.as_dict()
    runtime = {key: getattr(config.runtime, key) for key in ("seed", "logit_chunk_rows")}
    name = objective.pop("name")
    if name == "masked_lm":
        model = MaskedLanguageModel(main, name="masked_language_model")
        return MaskedLMPretrainer(model, mask_token_id, **runtime)
    models = main, build_auxiliary(config, main), mask_token_id
    runtime |= {
        "sampling": config.auxiliary.sampling,
        "sampling_temperature": sampling_temperature(config),
    }
    if name == "mcl":
        courses = config.mcl.as_dict()
        courses = {key: value for key, value in courses.items() if key not in _OF_AUGMENTATION}
        return MCLPretrainer(*models, **courses, **runtime)
    return CocoLMPretrainer(*models, **runtime, **objective)


def build_augmentation(
    config: PretrainingConfig, mask_token_id: int, word_starts: np.ndarray | None = None
) -> Augmentation | MCLAugmentation:
    """The augmentation of a run; `word_starts` [V] marks tokens that begin a word, None all."""
    special, data, mcl = SpecialTokens(mask=mask_token_id), config.data, config.mcl
    if config.objective.name == "mcl":
        return MCLAugmentation(
            special,
            mask_fraction=data.mask_fraction if mcl.mlm_weight or mcl.rtd_weight else 0.0,
            swap_fraction=mcl.swap_fraction if mcl.slm_weight or mcl.std_weight else 0.0,
            insert_fraction=mcl.insert_fraction if mcl.itd_weight else 0.0,
            fixed_points=mcl.fixed_points,
        )
    keys = ("mask_fraction", "crop_fraction", "masking", "span_words", "short_fraction")
    options = {key: getattr(data, key) for key in keys}
    return Augmentation(special, word_starts=word_starts, **options)


def sampling_temperature(config: PretrainingConfig) -> SamplingTemperature | None:
    """The schedule of the auxiliary model's temperature; None for 1 throughout."""
    auxiliary = config.auxiliary
    if auxiliary.temperature == 1:
        return None
    return SamplingTemperature(
        auxiliary.temperature, auxiliary.temperature_decay, config.trainer.train_steps
    )


def build_auxiliary(
    config: PretrainingConfig, main: CocoLMBackbone | None = None
) -> MaskedLanguageModel | None:
    """Builds the auxiliary model, if there is one; one that learns shares tables of `main`."""
    auxiliary = config.auxiliary
    if auxiliary.replacements in ("random", "stored"):
        return None
    sizes = config.model.as_dict() | {"num_layers": auxiliary.num_layers}
    for key in ("num_heads", "hidden_dim", "intermediate_dim"):
        sizes[key] = getattr(auxiliary, key) or sizes[key]
    if auxiliary.sampling == "zero_dropout":
        sizes["dropout"] = 0.0
    frozen = auxiliary.replacements == "frozen"
    # A model that does not learn cannot share tables with one that does.
    tables = {"embedding_dim": config.model.hidden_dim}
    if not frozen:
        tables = {"embeddings_of": main, "shared": auxiliary.shared}
    computed = {"attention": config.runtime.attention, "dtype": config.runtime.precision}
    backbone = CocoLMBackbone(**sizes, **tables, **computed, name="auxiliary")
    model = MaskedLanguageModel(backbone, name="auxiliary_model")
    model.trainable = not frozen
    return model


def build_optimizer(
    config: OptimizerConfig,
    train_steps: int,
    pretrainer: Pretrainer,
    decay_steps: int | None = None,
) -> AdamW:
    """Builds the optimizer, in the scope of the strategy; vectors never decay, tables by choice."""
    schedule = WarmupDecay(
        config.learning_rate,
        config.warmup_steps,
        train_steps,
        config.end_learning_rate,
        SCHEDULES[config.schedule][0],
        decay_steps,
    )
    several = pretrainer.distribute_strategy.num_replicas_in_sync > 1
    kind = ShardedAdamW if config.sharded and several else AdamW
    optimizer = kind(
        schedule,
        weight_decay=config.weight_decay,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
    )
    # Vectors are biases, LayerNorm's scales and the copy head; tables are matrices.
    undecayed = [v for v in pretrainer.trainable_variables if len(v.shape) < 2]
    if not config.decay_embeddings:
        undecayed += [
            pretrainer.backbone.token_embedding.embeddings,
            pretrainer.backbone.position_embedding.position_embeddings,
        ]
    optimizer.exclude_from_weight_decay(var_list=undecayed)
    return optimizer


def compile_pretrainer(
    pretrainer: Pretrainer, config: PretrainingConfig, steps_per_execution: int
) -> None:
    """Gives a pretrainer its optimizer and its step; a `UserError` where XLA cannot compile it."""
    pretrainer.compile(
        build_optimizer(
            config.optimizer, config.trainer.train_steps, pretrainer, decay_steps(config)
        ),
        clip_norm=config.optimizer.clip_norm,
        micro_batches=config.trainer.micro_batches,
        steps_per_execution=steps_per_execution,
        jit_compile=compiles_step(config.runtime.jit_compile, pretrainer.distribute_strategy),
        ema_decay=config.trainer.ema_decay,
    )

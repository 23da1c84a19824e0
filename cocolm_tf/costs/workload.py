"""The encoder passes and heads of a training step, the sizes of all its costs; its parameters."""

import dataclasses
import math

from cocolm_tf.training.config import PretrainingConfig


@dataclasses.dataclass(frozen=True)
class EncoderPass:
    """One forward pass of a batch through an encoder."""

    length: int  # Tokens of a sequence, padding included: L
    wanted: int  # Positions whose last hidden states are computed: W
    num_layers: int
    num_heads: int  # A
    hidden_dim: int  # H
    intermediate_dim: int  # I
    embedding_dim: int  # Width of the embeddings, E; where it is not H, a dense layer follows
    relative: bool  # Whether attention has relative positions
    trained: bool = True  # Whether a backward pass follows
    stacked: int = 1  # How many versions of each sequence it runs, one after the other in its batch


def encoder_passes(config: PretrainingConfig) -> dict[str, EncoderPass]:
    """The encoder passes of a training step, by name."""
    model, auxiliary, length = config.model, config.auxiliary, config.data.sequence_length
    main = EncoderPass(
        length,
        length,
        model.num_layers,
        model.num_heads,
        model.hidden_dim,
        model.intermediate_dim,
        model.hidden_dim,
        relative=model.relative_position_bins > 0,
    )
    if config.objective.name == "masked_lm":
        return {"main": dataclasses.replace(main, wanted=masked_rows(config))}
    if config.objective.name == "mcl":
        return _course_passes(config, main)
    passes = {"main_corrupted": main}
    if config.objective.scl_weight:
        crop = 1 + round((length - 1) * config.data.crop_fraction)
        passes["main_crop"] = dataclasses.replace(main, length=crop, wanted=1)
    if auxiliary.replacements not in ("random", "stored"):
        learning = _auxiliary_pass(config, main)
        frozen = auxiliary.replacements == "frozen"
        if not frozen:
            passes["auxiliary"] = learning
        if frozen or (auxiliary.sampling == "eval" and model.dropout):
            passes["auxiliary_sampling"] = dataclasses.replace(learning, trained=False)
    return passes


def _auxiliary_pass(config: PretrainingConfig, main: EncoderPass) -> EncoderPass:
    auxiliary = config.auxiliary
    return dataclasses.replace(
        main,
        wanted=masked_rows(config),
        num_layers=auxiliary.num_layers,
        num_heads=auxiliary.num_heads or main.num_heads,
        hidden_dim=auxiliary.hidden_dim or main.hidden_dim,
        intermediate_dim=auxiliary.intermediate_dim or main.intermediate_dim,
    )


def _course_passes(config: PretrainingConfig, main: EncoderPass) -> dict[str, EncoderPass]:
    """The passes of `MCLPretrainer`, whose courses are stacked."""
    mcl, generator = config.mcl, _auxiliary_pass(config, main)
    learned = [mcl.mlm_weight > 0, mcl.slm_weight > 0, False]
    sampled = [mcl.rtd_weight > 0, mcl.std_weight > 0, mcl.itd_weight > 0]
    drawn = sampled
    if not (config.auxiliary.sampling == "eval" and config.model.dropout):
        # The pass that learns is sampled from.
        drawn = [one and not learns for one, learns in zip(sampled, learned, strict=True)]
    corrections = [mcl.re_rtd_weight > 0, mcl.re_std_weight > 0]
    auxiliary_corrections = [mcl.re_mlm_weight > 0, mcl.re_slm_weight > 0]
    stacked = {
        "main_corrupted": (main, sampled),
        "main_corrections": (main, corrections),
        "auxiliary": (generator, learned),
        "auxiliary_sampling": (dataclasses.replace(generator, trained=False), drawn),
        "auxiliary_corrections": (generator, auxiliary_corrections),
    }
    return {
        name: dataclasses.replace(one, stacked=sum(courses))
        for name, (one, courses) in stacked.items()
        if any(courses)
    }


def contrasted_parts(config: PretrainingConfig) -> int:
    """The number of parts of a batch within each of which sequences are contrasted."""
    return 1 if config.objective.scl_over_micro_batches else config.trainer.micro_batches


def masked_rows(config: PretrainingConfig) -> int:
    """The number of a sequence's masked positions, M = ceil(S * mask_fraction)."""
    # MCL's courses all have as many as the one with the largest fraction.
    fraction, mcl = config.data.mask_fraction, config.mcl
    if config.objective.name == "mcl":
        fraction = max(
            fraction if mcl.mlm_weight or mcl.rtd_weight else 0,
            mcl.swap_fraction if mcl.slm_weight or mcl.std_weight else 0,
            mcl.insert_fraction if mcl.itd_weight else 0,
        )
    return math.ceil(config.data.sequence_length * fraction)


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads on the encoders of a run."""

    masked_lm: int  # Width of the encoder whose masked LM head is trained; 0 without one
    # Positions of a sequence that it predicts to learn from them: M, of each of MCL's courses.
    masked_lm_rows: int
    copy: int = 0  # How many copy heads the main model has
    copied: int = 0  # How many copies of each sequence pass one
    copy_bias: int = 0  # How many of them have a bias
    # Positions of a sequence that its LM head predicts: M, or S if it is all tokens; 0 without one.
    lm: int = 0
    contrast: bool = False  # Whether sequences are contrasted
    projection: bool = False  # Whether their vectors pass a projection first


def heads_of(config: PretrainingConfig) -> Heads:
    """The heads that a run trains."""
    objective, passes, rows = config.objective, encoder_passes(config), masked_rows(config)
    if objective.name == "masked_lm":
        return Heads(passes["main"].hidden_dim, rows)
    masked_lm = passes["auxiliary"].hidden_dim if "auxiliary" in passes else 0
    learned = [passes[name] for name in ("auxiliary", "auxiliary_corrections") if name in passes]
    masked_lm_rows = rows * sum(one.stacked for one in learned)
    if objective.name == "mcl":
        passes_with_copy_head = [
            passes[name] for name in ("main_corrupted", "main_corrections") if name in passes
        ]
        return Heads(
            masked_lm,
            masked_lm_rows,
            copy=1 if config.mcl.shared_head else passes_with_copy_head[0].stacked,
            copied=sum(one.stacked for one in passes_with_copy_head),
        )
    copies = bool(objective.copy_weight or (objective.lm_weight and objective.use_copy))
    contrast = objective.scl_weight > 0
    if objective.all_token_lm:
        rows = config.data.sequence_length
    return Heads(
        masked_lm,
        masked_lm_rows,
        copy=int(copies),
        copied=int(copies),
        copy_bias=int(copies and objective.copy_head_bias),
        lm=rows if objective.lm_weight else 0,
        contrast=contrast,
        projection=contrast and objective.projection,
    )


def count_parameters(config: PretrainingConfig) -> dict[str, int]:
    """Counts the trained parameters, part by part.

    With V tokens in the vocabulary, P positions, width H: `embeddings`, (V + P)H; `main` and
    `auxiliary`, `encoder_parameters`, the latter with its own position table, PH, or without a
    LayerNorm on the embeddings, 2H, as `auxiliary.shared` has it; `masked_lm_head`, a dense layer
    from the auxiliary model's width A, AH + H, LayerNorm, 2H, and a bias, V; `copy_head`, H each,
    and perhaps a bias; `lm_head`, a bias, V; `projection`, H^2 + H, and LayerNorm, 2H.

    Args:
        config: The run. Parts that it does without are left out.

    Returns:
        Numbers from the name of each part.

    Example:
    ```python
    parts = count_parameters(PretrainingConfig())
    parts["embeddings"] + parts["main"]  # the main model
    ```
    """
    model, passes, heads = config.model, encoder_passes(config), heads_of(config)
    width, vocabulary = model.hidden_dim, model.vocabulary_size
    bins = model.relative_position_bins
    parts = {
        "embeddings": (vocabulary + model.max_sequence_length) * width,
        "main": encoder_parameters(passes.get("main") or passes["main_corrupted"], bins),
    }
    if "auxiliary" in passes:
        own = {"token": model.max_sequence_length, "token_position": 0, "token_position_norm": -2}
        parts["auxiliary"] = encoder_parameters(passes["auxiliary"], bins)
        parts["auxiliary"] += own[config.auxiliary.shared] * width
    if heads.masked_lm:
        parts["masked_lm_head"] = _transform(heads.masked_lm, width) + vocabulary
    if heads.copy:
        parts["copy_head"] = heads.copy * width + heads.copy_bias
    if heads.lm:
        parts["lm_head"] = vocabulary
    if heads.projection:
        parts["projection"] = _transform(width, width)
    return parts


def count_frozen_parameters(config: PretrainingConfig) -> int:
    """The parameters of a frozen auxiliary model, its own word and position tables included."""
    passes = encoder_passes(config)
    if "auxiliary" in passes or "auxiliary_sampling" not in passes:
        return 0
    predictor = passes["auxiliary_sampling"]
    model, width = config.model, predictor.embedding_dim
    tables = (model.vocabulary_size + model.max_sequence_length) * width
    head = _transform(predictor.hidden_dim, width) + model.vocabulary_size
    return tables + head + encoder_parameters(predictor, model.relative_position_bins)


def encoder_parameters(encoder: EncoderPass, relative_position_bins: int) -> int:
    """The parameters of an encoder, its word and position tables aside."""
    # LayerNorm of the embeddings, 2E; where E is not H, a dense layer, EH + H; the relative
    # position table, bins * A; and in each layer `block_parameters`.
    count = 2 * encoder.embedding_dim + relative_position_bins * encoder.num_heads
    if encoder.embedding_dim != encoder.hidden_dim:
        count += _dense(encoder.embedding_dim, encoder.hidden_dim)
    return count + encoder.num_layers * block_parameters(
        encoder.hidden_dim, encoder.intermediate_dim
    )


def block_parameters(hidden_dim: int, intermediate_dim: int) -> int:
    """The parameters of a Transformer block."""
    # Query, key, value and output, 4(H^2 + H), the feed-forward network, HI + I and IH + H, and
    # twice LayerNorm, 2 * 2H.
    attention = 4 * _dense(hidden_dim, hidden_dim)
    feed_forward = _dense(hidden_dim, intermediate_dim) + _dense(intermediate_dim, hidden_dim)
    return attention + feed_forward + 2 * 2 * hidden_dim


def _transform(inputs: int, units: int) -> int:
    return _dense(inputs, units) + 2 * units


def _dense(inputs: int, units: int) -> int:
    return inputs * units + units

"""The encoder passes and heads of a training step: the sizes that all its costs follow from."""

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
    # Otherwise the pass that learns is sampled from.
    if not (config.auxiliary.sampling == "eval" and config.model.dropout):
        drawn = [one and not learns for one, learns in zip(sampled, learned, strict=True)]
    else:
        drawn = sampled
    stacked = {
        "main_corrupted": (main, sum(sampled)),
        "main_corrections": (main, (mcl.re_rtd_weight > 0) + (mcl.re_std_weight > 0)),
        "auxiliary": (generator, sum(learned)),
        "auxiliary_sampling": (
            dataclasses.replace(generator, trained=False),
            sum(drawn),
        ),
        "auxiliary_corrections": (generator, (mcl.re_mlm_weight > 0) + (mcl.re_slm_weight > 0)),
    }
    return {
        name: dataclasses.replace(one, stacked=count)
        for name, (one, count) in stacked.items()
        if count
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
    copy: int  # How many copy heads the main model has
    copied: int  # How often each sequence is judged by one
    copy_bias: int  # How many of them have a bias
    # Positions of a sequence that its LM head predicts: M, or S if it is all tokens; 0 without one.
    lm: int
    contrast: bool  # Whether sequences are contrasted
    projection: bool  # Whether their vectors pass a projection first


def heads_of(config: PretrainingConfig) -> Heads:
    """The heads that a run trains."""
    objective, passes, rows = config.objective, encoder_passes(config), masked_rows(config)
    if "main" in passes:
        width = passes["main"].hidden_dim
        return Heads(width, rows, 0, 0, 0, lm=0, contrast=False, projection=False)
    masked_lm = passes["auxiliary"].hidden_dim if "auxiliary" in passes else 0
    learned = [passes[name] for name in ("auxiliary", "auxiliary_corrections") if name in passes]
    masked_lm_rows = rows * sum(one.stacked for one in learned)
    if objective.name == "mcl":
        judged = [passes[name] for name in ("main_corrupted", "main_corrections") if name in passes]
        return Heads(
            masked_lm,
            masked_lm_rows,
            copy=1 if config.mcl.shared_head else judged[0].stacked,
            copied=sum(one.stacked for one in judged),
            copy_bias=0,
            lm=0,
            contrast=False,
            projection=False,
        )
    copies = objective.copy_weight or (objective.lm_weight and objective.use_copy)
    if objective.all_token_lm:
        rows = config.data.sequence_length
    return Heads(
        masked_lm,
        masked_lm_rows,
        copy=1 if copies else 0,
        copied=1 if copies else 0,
        copy_bias=1 if copies and objective.copy_head_bias else 0,
        lm=rows if objective.lm_weight else 0,
        contrast=objective.scl_weight > 0,
        projection=objective.scl_weight > 0 and objective.projection,
    )

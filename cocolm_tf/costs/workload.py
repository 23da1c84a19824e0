"""What a training step runs through which encoder: the sizes that all its costs follow from."""

import dataclasses
import math

from cocolm_tf.training.config import PretrainingConfig


@dataclasses.dataclass(frozen=True)
class EncoderPass:
    """One run of a batch through an encoder."""

    length: int  # Tokens of a sequence, padding included: L
    wanted: int  # Positions whose last hidden states are computed: W
    num_layers: int
    num_heads: int  # A
    hidden_dim: int  # H
    intermediate_dim: int  # I
    embedding_dim: int  # Width of the embeddings, E; where it is not H, a dense layer follows
    relative: bool  # Whether attention has relative positions
    trained: bool = True  # Whether a backward pass follows


def encoder_passes(config: PretrainingConfig) -> dict[str, EncoderPass]:
    """Lists the encoder passes of a training step."""
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
    passes = {"main_corrupted": main}
    if config.objective.scl_weight:
        crop = 1 + round((length - 1) * config.data.crop_fraction)
        passes["main_crop"] = dataclasses.replace(main, length=crop, wanted=1)
    if auxiliary.replacements != "random":
        learning = dataclasses.replace(
            main,
            wanted=masked_rows(config),
            num_layers=auxiliary.num_layers,
            num_heads=auxiliary.num_heads or main.num_heads,
            hidden_dim=auxiliary.hidden_dim or main.hidden_dim,
            intermediate_dim=auxiliary.intermediate_dim or main.intermediate_dim,
        )
        frozen = auxiliary.replacements == "frozen"
        if not frozen:
            passes["auxiliary"] = learning
        if frozen or (auxiliary.sampling == "eval" and model.dropout):
            passes["auxiliary_sampling"] = dataclasses.replace(learning, trained=False)
    return passes


def contrasted_parts(config: PretrainingConfig) -> int:
    """Counts the parts of a batch within each of which sequences are contrasted."""
    return 1 if config.objective.scl_over_micro_batches else config.trainer.micro_batches


def masked_rows(config: PretrainingConfig) -> int:
    """Counts the masked positions of a sequence, M = ceil(S * mask_fraction)."""
    return math.ceil(config.data.sequence_length * config.data.mask_fraction)


@dataclasses.dataclass(frozen=True)
class Heads:
    """What stands on the encoders of a run."""

    masked_lm: int  # Width of the encoder whose masked LM head is trained; 0 without one
    copy: bool  # Whether the main model has a copy head
    # Positions of a sequence that its LM head predicts: M, or S if it is all tokens; 0 without one.
    lm: int
    contrast: bool  # Whether sequences are contrasted
    projection: bool  # Whether their vectors pass a projection first


def heads_of(config: PretrainingConfig) -> Heads:
    """Lists the heads that a run trains."""
    objective, passes = config.objective, encoder_passes(config)
    if "main" in passes:
        return Heads(passes["main"].hidden_dim, copy=False, lm=0, contrast=False, projection=False)
    rows = config.data.sequence_length if objective.all_token_lm else masked_rows(config)
    return Heads(
        masked_lm=passes["auxiliary"].hidden_dim if "auxiliary" in passes else 0,
        copy=bool(objective.copy_weight or (objective.lm_weight and objective.use_copy)),
        lm=rows if objective.lm_weight else 0,
        contrast=objective.scl_weight > 0,
        projection=objective.scl_weight > 0 and objective.projection,
    )

"""What a training step runs through which encoder: the sizes that all its costs follow from."""

import dataclasses
import math

from cocolm_tf.training.config import ObjectiveConfig, PretrainingConfig


@dataclasses.dataclass(frozen=True)
class EncoderPass:
    """One run of a batch through an encoder.

    Args:
        length: int. Tokens of a sequence, padding included: L.
        wanted: int. Positions whose last hidden states are computed: W.
        num_layers: int.
        num_heads: int. A.
        hidden_dim: int. H.
        intermediate_dim: int. I.
        embedding_dim: int. Width of the embeddings, E; where it is not H, a dense layer follows.
        dropout: bool. Whether dropout acts.
        trained: bool. Whether a backward pass follows.

    Example:
    ```python
    encoder_passes(PretrainingConfig())["main_crop"].length  # 461
    ```
    """

    length: int
    wanted: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    embedding_dim: int
    dropout: bool
    trained: bool = True


def encoder_passes(config: PretrainingConfig) -> dict[str, EncoderPass]:
    """Lists the encoder passes of a training step.

    Args:
        config: the run.

    Returns:
        `main_corrupted`, S tokens; `main_crop`, C = 1 + round((S - 1) * crop_fraction) tokens, of
        which the first is wanted, if there is a contrastive task; `auxiliary`, S tokens, of which
        M are wanted, if there is an auxiliary model that learns; and `auxiliary_sampling`, the same
        without dropout and without training, if it is sampled from in a pass of its own. Of masked
        language modeling alone there is `main`, S tokens, of which M are wanted.

    Example:
    ```python
    list(encoder_passes(PretrainingConfig()))
    ```
    """
    model, auxiliary, length = config.model, config.auxiliary, config.data.sequence_length
    main = EncoderPass(
        length,
        length,
        model.num_layers,
        model.num_heads,
        model.hidden_dim,
        model.intermediate_dim,
        model.hidden_dim,
        dropout=model.dropout > 0,
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
            dropout=main.dropout and auxiliary.sampling != "zero_dropout",
        )
        frozen = auxiliary.replacements == "frozen"
        if not frozen:
            passes["auxiliary"] = learning
        if frozen or (auxiliary.sampling == "eval" and main.dropout):
            passes["auxiliary_sampling"] = dataclasses.replace(
                learning, dropout=False, trained=False
            )
    return passes


def masked_lm_pass(passes: dict[str, EncoderPass]) -> EncoderPass | None:
    """Finds the pass whose hidden states a masked language modeling head reads.

    Args:
        passes: as `encoder_passes` lists them.

    Returns:
        A trained one rather than the one sampled from; None if tokens are replaced at random.

    Example:
    ```python
    masked_lm_pass(encoder_passes(PretrainingConfig())).num_layers  # 4, the auxiliary model's
    ```
    """
    for name in ("main", "auxiliary", "auxiliary_sampling"):
        if name in passes:
            return passes[name]
    return None


def tasks(config: PretrainingConfig) -> ObjectiveConfig:
    """Gives the objective, with those tasks' weights 0 that a configuration does not train.

    Example:
    ```python
    tasks(PretrainingConfig()).copy_weight  # 50.0
    ```
    """
    if config.objective.name == "masked_lm":
        return dataclasses.replace(config.objective, copy_weight=0.0, lm_weight=0.0, scl_weight=0.0)
    return config.objective


def masked_rows(config: PretrainingConfig) -> int:
    """Counts the masked positions of a sequence, M = ceil(S * mask_fraction).

    Example:
    ```python
    masked_rows(PretrainingConfig())  # 77
    ```
    """
    return math.ceil(config.data.sequence_length * config.data.mask_fraction)


def lm_rows(config: PretrainingConfig) -> int:
    """Counts the positions of a sequence that the LM head predicts: M, or S if it is all tokens.

    Example:
    ```python
    lm_rows(PretrainingConfig())  # 77
    ```
    """
    return config.data.sequence_length if tasks(config).all_token_lm else masked_rows(config)


def has_copy_head(config: PretrainingConfig) -> bool:
    """Says whether the main model has a copy head.

    Example:
    ```python
    has_copy_head(PretrainingConfig())  # True
    ```
    """
    objective = tasks(config)
    return bool(objective.copy_weight or (objective.lm_weight and objective.use_copy))

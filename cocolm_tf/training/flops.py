"""What a pretraining step costs, counted from its configuration: the FLOPs of matrix products.

A product of an m x k and a k x n matrix counts 2mkn: a multiplication and an addition each. All
else (softmax, LayerNorm, dropout, lookups, the optimizer) is of a lower order and left out, and so
is what rematerialization computes a second time: these are the model's FLOPs, not the hardware's.
"""

import math

from cocolm_tf.training.config import PretrainingConfig

# A backward pass takes two products, by either factor, for each of the forward pass.
_FORWARD_AND_BACKWARD = 3


def pretraining_flops(config: PretrainingConfig) -> dict[str, int]:
    """Counts the FLOPs of one training step, part by part.

    With B sequences of S tokens in a batch, C = 1 + round((S - 1) * crop_fraction) tokens in a
    crop, M = ceil(S * mask_fraction) masked positions, V tokens in the vocabulary, E the width of
    the embeddings and H the main model's, a forward pass takes, for each sequence,

    - `main_corrupted`: `encoder_flops` of S tokens;
    - `main_crop`: `encoder_flops` of C tokens, of which only the first is wanted;
    - `auxiliary`: `encoder_flops` of S tokens in the auxiliary model, of which M are wanted;
    - `mlm_head`: 2MHE + 2MEV, the H here being the auxiliary model's;
    - `auxiliary_sampling`: `auxiliary` and `mlm_head` once more, if `auxiliary.sampling` is eval
      and there is dropout to do without;
    - `copy_head`: 2SH;
    - `lm_head`: 2NHV, with N = M, or S if the objective is over all tokens;
    - `scl_head`: the projection of both views, 2 * 2H^2, and for each micro-batch of b sequences
      their similarities, 2 * (2b)^2 * H.

    Trained parts count three times, forward and backward. `auxiliary_sampling` is not trained,
    and of a frozen auxiliary model it is all there is. Of masked language modeling alone there
    are `main`, `encoder_flops` of S tokens of which M are wanted, and `mlm_head`.

    Args:
        config: the run. Parts that it does without are left out.

    Returns:
        FLOPs from the name of each part. Padding counts, as it is computed on.

    Example:
    ```python
    flops = pretraining_flops(PretrainingConfig())
    sum(flops.values()) / 1e15  # PFLOPs for a step of COCO-LM base
    ```
    """
    model, objective = config.model, config.objective
    length = config.data.sequence_length
    masked = math.ceil(length * config.data.mask_fraction)
    crop = 1 + round((length - 1) * config.data.crop_fraction)
    width, vocabulary = model.hidden_dim, model.vocabulary_size
    sizes = (model.num_layers, width, model.intermediate_dim)
    batch = config.trainer.batch_size

    if objective.name == "masked_lm":
        head = _product(masked, width, width) + _product(masked, width, vocabulary)
        trained = {"main": encoder_flops(length, *sizes, wanted=masked), "mlm_head": head}
        return {part: _FORWARD_AND_BACKWARD * batch * flops for part, flops in trained.items()}

    trained = {"main_corrupted": encoder_flops(length, *sizes)}
    if objective.scl_weight:
        trained["main_crop"] = encoder_flops(crop, *sizes, wanted=1)
    auxiliary = {}
    if config.auxiliary.replacements != "random":
        auxiliary = _auxiliary_flops(config, length, masked)
    is_frozen = config.auxiliary.replacements == "frozen"
    if not is_frozen:
        trained |= auxiliary
    if objective.copy_weight or (objective.lm_weight and objective.use_copy):
        trained["copy_head"] = _product(length, width, 1)
    if objective.lm_weight:
        rows = length if objective.all_token_lm else masked
        trained["lm_head"] = _product(rows, width, vocabulary)
    step = {part: _FORWARD_AND_BACKWARD * batch * flops for part, flops in trained.items()}

    samples_apart = config.auxiliary.sampling == "eval" and model.dropout
    if is_frozen or (auxiliary and samples_apart):
        step["auxiliary_sampling"] = batch * sum(auxiliary.values())
    if objective.scl_weight:
        micro_batches = config.trainer.micro_batches
        vectors = 2 * batch // micro_batches
        contrast = _product(vectors, width, vectors)
        if objective.projection:
            contrast += _product(vectors, width, width)
        step["scl_head"] = _FORWARD_AND_BACKWARD * micro_batches * contrast
    return step


def encoder_flops(
    length: int,
    num_layers: int,
    hidden_dim: int,
    intermediate_dim: int,
    embedding_dim: int | None = None,
    wanted: int | None = None,
) -> int:
    """Counts the FLOPs of an encoder's forward pass over one sequence.

    With L tokens, width H, intermediate width I and embeddings E wide, each layer takes 8LH^2 for
    query, key, value and output, 4L^2H for the attention logits and the weighted values, and 4LHI
    for the feed-forward network. Where only W hidden states are wanted, the last layer takes
    4WH^2 for query and output, 4LH^2 for key and value, 4WLH and 4WHI. Where E is not H,
    projecting the embeddings takes another 2LEH.

    Args:
        length: int. Tokens, padding included.
        num_layers: int.
        hidden_dim: int.
        intermediate_dim: int.
        embedding_dim: int, or None for `hidden_dim`.
        wanted: int. Positions whose hidden states are asked for; None for all.

    Returns:
        FLOPs. The number of heads makes no difference.

    Example:
    ```python
    encoder_flops(length=512, num_layers=12, hidden_dim=768, intermediate_dim=3072)
    ```
    """

    def layer(queries: int) -> int:
        projections = 2 * _product(length, hidden_dim, hidden_dim)
        projections += 2 * _product(queries, hidden_dim, hidden_dim)
        attention = 2 * _product(queries, hidden_dim, length)
        return projections + attention + 2 * _product(queries, hidden_dim, intermediate_dim)

    flops = (num_layers - 1) * layer(length) + layer(length if wanted is None else wanted)
    if embedding_dim not in (None, hidden_dim):
        flops += _product(length, embedding_dim, hidden_dim)
    return flops


def _auxiliary_flops(config: PretrainingConfig, length: int, masked: int) -> dict[str, int]:
    model, auxiliary = config.model, config.auxiliary
    width = auxiliary.hidden_dim or model.hidden_dim
    intermediate = auxiliary.intermediate_dim or model.intermediate_dim
    # The embeddings are the main model's, or as wide.
    embedding = model.hidden_dim
    sizes = (auxiliary.num_layers, width, intermediate, embedding)
    return {
        "auxiliary": encoder_flops(length, *sizes, wanted=masked),
        "mlm_head": _product(masked, width, embedding)
        + _product(masked, embedding, model.vocabulary_size),
    }


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns

"""The FLOPs of a pretraining step's matrix products, counted from its configuration.

A product of an m x k and a k x n matrix counts 2mkn: a multiplication and an addition each. All
else (softmax, LayerNorm, dropout, lookups, the optimizer) is of a lower order and left out, and so
is what is computed a second time to save memory, which `rematerialization_flops` and
`logit_chunk_flops` count: these are the model's FLOPs, not the hardware's.
"""

import dataclasses

from cocolm_tf.costs.workload import (
    EncoderPass,
    contrasted_parts,
    encoder_passes,
    heads_of,
    masked_rows,
)
from cocolm_tf.training.config import PretrainingConfig

# A backward pass takes two products, by either factor, for each of the forward pass.
_FORWARD_AND_BACKWARD = 3


def pretraining_flops(config: PretrainingConfig) -> dict[str, int]:
    """Counts the FLOPs of one training step, part by part.

    With B sequences of S tokens, C = 1 + round((S - 1) * crop_fraction) tokens in a crop,
    M = ceil(S * mask_fraction) masked positions, V tokens in the vocabulary, E the width of the
    embeddings and H the main model's, a forward pass takes, for each sequence, `pass_flops` for
    `main_corrupted` (S tokens), `main_crop` (C tokens, the first wanted) and `auxiliary` (S tokens,
    M wanted); `mlm_head`, 2MHE + 2MEV with the auxiliary model's H; `auxiliary_sampling`, both of
    the latter once more, if `auxiliary.sampling` is eval and there is dropout to do without;
    `copy_head`, 2SH; `lm_head`, 2NHV with N = M, or S if the objective is over all tokens;
    `scl_head`, the projection of both views, 4H^2, and `similarity_flops`.

    Trained parts count three times, forward and backward. `auxiliary_sampling` is not trained,
    and of a frozen auxiliary model it is all there is. Of masked language modeling alone there
    are `main` (S tokens, M wanted) and `mlm_head`. Of MCL each part counts as many times as
    courses are stacked in it; `main_corrections` and `auxiliary_corrections` are the passes of
    the self-correction courses.

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
    model, batch = config.model, config.trainer.batch_size
    width, vocabulary = model.hidden_dim, model.vocabulary_size
    passes, heads = encoder_passes(config), heads_of(config)

    forward = {part: pass_flops(encoder_pass) for part, encoder_pass in passes.items()}
    if heads.masked_lm:
        forward["mlm_head"] = _masked_lm_head(config, heads.masked_lm, heads.masked_lm_rows)
    if sampling := passes.get("auxiliary_sampling"):
        rows = sampling.stacked * masked_rows(config)
        forward["auxiliary_sampling"] += _masked_lm_head(config, sampling.hidden_dim, rows)
    if heads.copied:
        forward["copy_head"] = heads.copied * _product(config.data.sequence_length, width, 1)
    if heads.lm:
        forward["lm_head"] = _product(heads.lm, width, vocabulary)
    step = {
        part: batch * flops * (1 if part == "auxiliary_sampling" else _FORWARD_AND_BACKWARD)
        for part, flops in forward.items()
    }
    if heads.contrast:
        step["scl_head"] = similarity_flops(config)
    if heads.projection:
        step["scl_head"] += _FORWARD_AND_BACKWARD * _product(2 * batch, width, width)
    return step


def similarity_flops(config: PretrainingConfig) -> int:
    """The FLOPs of the contrastive task's similarities in a training step."""
    # Each of `contrasted_parts` of b sequences compares its 2b vectors with each other,
    # 2 * (2b)^2 * H, forward and backward. Of several devices each does all of it, on the vectors
    # of all.
    if not heads_of(config).contrast:
        return 0
    parts = contrasted_parts(config)
    vectors = 2 * config.trainer.batch_size // parts
    similarities = _product(vectors, config.model.hidden_dim, vectors)
    return _FORWARD_AND_BACKWARD * parts * similarities


def rematerialization_flops(config: PretrainingConfig) -> int:
    """The FLOPs that a step computes a second time where blocks are rematerialized."""
    # The blocks of every trained pass run forward once more, which is `pass_flops` but for the
    # projection of the embeddings. It is what `model.rematerialize` costs, set or not.
    return config.trainer.batch_size * sum(
        pass_flops(dataclasses.replace(one, embedding_dim=one.hidden_dim))
        for one in encoder_passes(config).values()
        if one.trained
    )


def logit_chunk_flops(config: PretrainingConfig) -> int:
    """The FLOPs that a step computes a second time where logits are computed in chunks."""
    # The product with the word table, 2NEV, of each head that learns. It is what
    # `runtime.logit_chunk_rows` costs where a device's rows are more than that; 0 where it is 0.
    if not config.runtime.logit_chunk_rows:
        return 0
    model, heads = config.model, heads_of(config)
    rows = heads.lm + heads.masked_lm_rows
    return config.trainer.batch_size * _product(rows, model.hidden_dim, model.vocabulary_size)


def pass_flops(encoder: EncoderPass) -> int:
    """The FLOPs of an encoder's forward pass over one sequence, in all versions of it."""
    # With L tokens, width H, intermediate width I and embeddings E wide, each layer takes 8LH^2 for
    # query, key, value and output, 4L^2H for the attention logits and the weighted values, and 4LHI
    # for the feed-forward network. Where only W hidden states are wanted, the last layer takes
    # 4WH^2 for query and output, 4LH^2 for key and value, 4WLH and 4WHI. Where E is not H,
    # projecting the embeddings takes another 2LEH.
    length, hidden = encoder.length, encoder.hidden_dim

    def layer(queries: int) -> int:
        projections = 2 * _product(length, hidden, hidden) + 2 * _product(queries, hidden, hidden)
        attention = 2 * _product(queries, hidden, length)
        return projections + attention + 2 * _product(queries, hidden, encoder.intermediate_dim)

    flops = (encoder.num_layers - 1) * layer(length) + layer(encoder.wanted)
    if encoder.embedding_dim != hidden:
        flops += _product(length, encoder.embedding_dim, hidden)
    return encoder.stacked * flops


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _masked_lm_head(config: PretrainingConfig, hidden_dim: int, rows: int) -> int:
    """The FLOPs of the head at one sequence's masked positions, in an encoder `hidden_dim` wide."""
    width = config.model.hidden_dim
    return _product(rows, hidden_dim, width) + _product(rows, width, config.model.vocabulary_size)

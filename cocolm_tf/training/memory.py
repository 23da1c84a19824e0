"""How much memory a training step takes, counted from its configuration.

A backward pass needs what the forward pass computed: for a product its two factors, for LayerNorm
its input, and so on. These are the activations, and most of the memory. The formulas are those of
the tensors that TensorFlow keeps from the one pass to the other; a compiler (XLA) may keep fewer.
Vectors of a single number a token are left out.

Letters: L tokens of a sequence, H width, I intermediate width, E width of the embeddings, A heads,
V tokens in the vocabulary, n layers, P parameters, b sequences at a time on a device; c bytes a
number that is computed with: 4 in float32, 2 in mixed precision. Variables and their gradients,
softmax and LayerNorm are float32, 4 bytes, in either.
"""

from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.parameters import count_parameters
from cocolm_tf.training.passes import (
    EncoderPass,
    encoder_passes,
    has_copy_head,
    lm_rows,
    masked_rows,
)

_FLOAT32 = 4


def step_memory(config: PretrainingConfig, devices: int, rematerialize: bool) -> dict[str, int]:
    """Counts the bytes that one device needs for a training step, part by part.

    Args:
        config: the run. Each device computes on b = batch_size / (devices * micro_batches)
            sequences at a time.
        devices: int. Replicas, each with all the weights.
        rematerialize: bool. Whether blocks are rematerialized, whatever the configuration says.

    Returns:
        Bytes from the name of each part, none of which exceeds its maximum at the moment when
        the backward pass begins:
        `weights`, 4P; `optimizer`, the two moments, 8P; `gradients`, 4P, and as much again for
        their sums over micro-batches, if there are several;
        `cast_weights`: see `cast_weight_bytes`;
        `activations`: those of all encoder passes and heads: `pass_activations`,
        `head_activations`;
        `logits`: see `logit_bytes`; `similarities`: see `similarity_bytes`;
        `working`: see `working_bytes`.

    Example:
    ```python
    sum(step_memory(PretrainingConfig(), devices=64, rematerialize=True).values()) / 2**30  # GiB
    ```
    """
    parameters = sum(count_parameters(config).values())
    micro_batches = config.trainer.micro_batches
    sequences = config.trainer.batch_size // (devices * micro_batches)
    width = compute_bytes(config)
    bins = config.model.relative_position_bins
    activations = head_activations(config) + sum(
        pass_activations(one, width, bins, rematerialize)
        for one in encoder_passes(config).values()
        if one.trained
    )
    return {
        "weights": _FLOAT32 * parameters,
        "optimizer": 2 * _FLOAT32 * parameters,
        "gradients": (1 if micro_batches == 1 else 2) * _FLOAT32 * parameters,
        "cast_weights": cast_weight_bytes(config, rematerialize),
        "activations": sequences * activations,
        "logits": sequences * logit_bytes(config),
        "similarities": similarity_bytes(config, sequences * devices),
        "working": sequences * working_bytes(config, rematerialize),
    }


def compute_bytes(config: PretrainingConfig) -> int:
    """The bytes of a number that is computed with, c: 4 in float32, 2 in mixed precision.

    Example:
    ```python
    compute_bytes(PretrainingConfig())  # 4
    ```
    """
    return 4 if config.runtime.precision == "float32" else 2


def block_activations(encoder: EncoderPass, width: int) -> int:
    """Counts the bytes that a Transformer block keeps of one sequence for its backward pass.

    - 6cLH: the factors of its products, which are its input, queries, keys, values, the weighted
      values and the input of the feed-forward network;
    - 2cLI: the feed-forward network's hidden layer before and after GELU;
    - 2 * 8LH: the float32 input of either LayerNorm, and its scale for each of these numbers;
    - 4AL^2: the float32 attention probabilities;
    - in mixed precision, another cAL^2: these as the factor of the values;
    - with dropout, 2cAL^2: the mask of the probabilities, and what it left of them (the factor of
      the values, in place of the former); and 2cLH: the masks of both sublayers.

    Args:
        encoder: the pass.
        width: int. c.

    Returns:
        Bytes.

    Example:
    ```python
    block_activations(encoder_passes(PretrainingConfig())["main_corrupted"], width=2)
    ```
    """
    tokens = encoder.length
    hidden, scores = tokens * encoder.hidden_dim, encoder.num_heads * tokens**2
    count = 6 * width * hidden + 2 * width * tokens * encoder.intermediate_dim
    count += 2 * norm_activations(tokens, encoder.hidden_dim) + _FLOAT32 * scores
    if encoder.dropout:
        return count + 2 * width * scores + 2 * width * hidden
    return count + (width * scores if width < _FLOAT32 else 0)


def norm_activations(rows: int, width: int) -> int:
    """Counts the bytes that LayerNorm keeps: its float32 input and scale, 8 a number.

    Example:
    ```python
    norm_activations(rows=512, width=768)
    ```
    """
    return 2 * _FLOAT32 * rows * width


def embedding_activations(encoder: EncoderPass, width: int) -> int:
    """Counts the bytes that the embeddings keep of one sequence.

    LayerNorm, 8LE; with dropout its mask, cLE; where E is not H, the input of the dense layer
    between, cLE.

    Example:
    ```python
    embedding_activations(encoder_passes(PretrainingConfig())["auxiliary"], width=2)
    ```
    """
    numbers = encoder.length * encoder.embedding_dim
    factors = encoder.dropout + (encoder.embedding_dim != encoder.hidden_dim)
    return norm_activations(encoder.length, encoder.embedding_dim) + factors * width * numbers


def pass_activations(
    encoder: EncoderPass, width: int, relative_position_bins: int, rematerialize: bool
) -> int:
    """Counts the bytes that an encoder pass keeps of one sequence.

    `embedding_activations`, and n times `block_activations`; rematerialized, only the n inputs of
    the blocks, cLH each, and the attention bias that all take, cAL^2 with relative positions.

    Args:
        encoder: the pass.
        width: int. c.
        relative_position_bins: int. 0 for no relative positions.
        rematerialize: bool.

    Returns:
        Bytes.

    Example:
    ```python
    pass_activations(encoder_passes(PretrainingConfig())["main_crop"], 2, 32, rematerialize=True)
    ```
    """
    embeddings = embedding_activations(encoder, width)
    if not rematerialize:
        return embeddings + encoder.num_layers * block_activations(encoder, width)
    inputs = encoder.num_layers * width * encoder.length * encoder.hidden_dim
    bias = width * encoder.num_heads * encoder.length**2 if relative_position_bins else 0
    return embeddings + inputs + bias


def head_activations(config: PretrainingConfig) -> int:
    """Counts the bytes that the heads keep of one sequence, their logits aside.

    - masked LM head: M rows of the auxiliary model's width, cMA; of its dense layer, 2cME before
      GELU and after LayerNorm, which itself keeps 8ME;
    - copy head: its input, cSH, which is the all-token LM head's too;
    - LM head: otherwise the input at the masked positions, cMH.

    Example:
    ```python
    head_activations(PretrainingConfig())
    ```
    """
    width, hidden = compute_bytes(config), config.model.hidden_dim
    passes, objective, count = encoder_passes(config), config.objective, 0
    if "auxiliary" in passes:
        rows = masked_rows(config)
        count += width * rows * (passes["auxiliary"].hidden_dim + 2 * hidden)
        count += norm_activations(rows, hidden)
    of_all_tokens = objective.lm_weight and objective.all_token_lm
    if has_copy_head(config) or of_all_tokens:
        count += width * config.data.sequence_length * hidden
    if objective.lm_weight and not objective.all_token_lm:
        count += width * masked_rows(config) * hidden
    return count


def logit_bytes(config: PretrainingConfig) -> int:
    """Counts the bytes of the vocabulary logits of one sequence.

    With N rows at a head, M for the masked LM and M or S for the LM: the float32 gradient of each
    head's cross entropy, 4NV, which the loss computes at once and keeps; and while the larger head
    does so, its logits, cNV, in mixed precision their float32 copy, 4NV, and one more of float32
    to compute with, 4NV.

    Example:
    ```python
    logit_bytes(PretrainingConfig())
    ```
    """
    rows = [masked_rows(config)] if "auxiliary" in encoder_passes(config) else []
    if config.objective.lm_weight:
        rows.append(lm_rows(config))
    width = compute_bytes(config)
    working = width + _FLOAT32 * (2 if width < _FLOAT32 else 1)
    numbers = config.model.vocabulary_size
    return numbers * (_FLOAT32 * sum(rows) + working * max(rows, default=0))


def similarity_bytes(config: PretrainingConfig, sequences: int) -> int:
    """Counts the bytes of the contrastive task's similarities on each device.

    All devices' vectors are compared on every one: of b sequences in all, 2b vectors, and three
    float32 matrices [2b, 2b]: similarities, these without the diagonal, and their exponentials.

    Args:
        config: the run.
        sequences: int. b, of one micro-batch, on all devices together.

    Returns:
        Bytes.

    Example:
    ```python
    similarity_bytes(PretrainingConfig(), sequences=2048) / 2**20  # 192 MiB
    ```
    """
    return 3 * _FLOAT32 * (2 * sequences) ** 2 if config.objective.scl_weight else 0


def cast_weight_bytes(config: PretrainingConfig, rematerialize: bool) -> int:
    """Counts the bytes of the matrices' copies in the type of the computation.

    In mixed precision each trained pass casts its blocks' matrices and keeps them for its
    backward pass, n * c(4H^2 + 2HI); rematerialized, one block's. Each head over the vocabulary
    casts the word table, cVE. In float32 there are none.

    Example:
    ```python
    cast_weight_bytes(PretrainingConfig(), rematerialize=False)  # 0
    ```
    """
    width = compute_bytes(config)
    if width == _FLOAT32:
        return 0
    passes, model = encoder_passes(config), config.model
    matrices = [
        (1 if rematerialize else one.num_layers)
        * (4 * one.hidden_dim**2 + 2 * one.hidden_dim * one.intermediate_dim)
        for one in passes.values()
        if one.trained
    ]
    heads = ("auxiliary" in passes) + bool(config.objective.lm_weight)
    blocks = max(matrices) if rematerialize else sum(matrices)
    return width * (blocks + heads * model.vocabulary_size * model.hidden_dim)


def working_bytes(config: PretrainingConfig, rematerialize: bool) -> int:
    """Counts the bytes that the backward pass of one block adds, for one sequence.

    The gradients of its activations: at most as much as the largest `block_activations`;
    rematerialized, twice that, as the block's activations are there only then.

    Example:
    ```python
    working_bytes(PretrainingConfig(), rematerialize=True)
    ```
    """
    width = compute_bytes(config)
    block = max(block_activations(one, width) for one in encoder_passes(config).values())
    return (2 if rematerialize else 1) * block

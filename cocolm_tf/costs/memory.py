"""The memory of a training step, counted from its configuration.

A backward pass needs what the forward pass computed: for a product its two factors, for LayerNorm
its input, and so on. These are the activations, and most of the memory. The formulas are those of
the tensors that TensorFlow keeps from the one pass to the other; a compiler of the whole step (XLA)
may keep fewer. Vectors of a single number a token are left out.

Letters: L tokens of a sequence, of which W are wanted from the last layer; H width, I intermediate
width, E width of the embeddings, A heads, V tokens in the vocabulary, n layers, P parameters; M
masked positions; c bytes of a number in the compute dtype: 4 in float32, 2 in mixed precision.
Variables, gradients and moments are float32, 4 bytes, in either.
"""

from cocolm_tf.costs.workload import (
    EncoderPass,
    contrasted_parts,
    count_frozen_parameters,
    count_parameters,
    encoder_passes,
    heads_of,
    masked_rows,
)
from cocolm_tf.training.config import PretrainingConfig

_FLOAT32 = 4


def step_memory(config: PretrainingConfig, devices: int, rematerialize: bool) -> dict[str, int]:
    """Counts the bytes that one device needs for a training step, part by part.

    Their sum is a bound: not all parts are at their largest at the same time.

    Args:
        config: the run. Each device computes on batch_size / (devices * micro_batches) sequences
            at a time.
        devices: Replicas, each with all the weights, and with all the moments or its share.
        rematerialize: Whether blocks are rematerialized, whatever the configuration says.

    Returns:
        Bytes from the name of each part: `weights`, 4P, and those of a frozen auxiliary model;
        `optimizer`, the two moments, 8P, or a share of them where `optimizer.sharded`; `averages`,
        4P, where there is a moving average; `gradients`, 4P, twice that with micro-batches;
        `copied_weights`, `activations`, `logits`, `similarities` and `working`, by the formulas of
        the functions below.

    Example:
    ```python
    sum(step_memory(PretrainingConfig(), devices=64, rematerialize=True).values()) / 2**30  # GiB
    ```
    """
    parameters = sum(count_parameters(config).values())
    micro_batches = config.trainer.micro_batches
    sequences = config.trainer.batch_size // (devices * micro_batches)
    width = compute_bytes(config)
    activations = head_activations(config) + sum(
        pass_activations(one, width, rematerialize)
        for one in encoder_passes(config).values()
        if one.trained
    )
    averages = {"averages": _FLOAT32 * parameters} if config.trainer.ema_decay else {}
    return averages | {
        "weights": _FLOAT32 * (parameters + count_frozen_parameters(config)),
        "optimizer": 2 * _FLOAT32 * -(-parameters // moment_shares(config, devices)),
        "gradients": (1 if micro_batches == 1 else 2) * _FLOAT32 * parameters,
        "copied_weights": copied_weight_bytes(config, rematerialize),
        "activations": sequences * activations,
        "logits": logit_bytes(config, sequences),
        "similarities": similarity_bytes(
            config, sequences * devices * micro_batches // contrasted_parts(config)
        ),
        "working": sequences * working_bytes(config, rematerialize),
    }


def moment_shares(config: PretrainingConfig, devices: int) -> int:
    """Into how many shares the moments are cut, each on a device of its own."""
    return devices if config.optimizer.sharded else 1


def compute_bytes(config: PretrainingConfig) -> int:
    """The bytes of a number in the compute dtype, c: 4 in float32, 2 in mixed precision."""
    return 4 if config.runtime.precision == "float32" else 2


def block_activations(encoder: EncoderPass, width: int, wanted: int) -> int:
    """The bytes that a Transformer block keeps of one sequence for its backward pass."""
    # - 3cLH: its input, which is the keys' and values' factor, keys and values;
    # - 6cWH: queries, the weighted values by head and by token, the input of the feed-forward
    #   network, and what either LayerNorm normalized; another cWH, the queries' factor, where not
    #   all positions are wanted;
    # - 2cWI: the feed-forward network's hidden layer before and after GELU;
    # - 2cAWL + 4AW: attention's products, what dropout left of its probabilities, and what these
    #   were divided by; another cAWL, the relative positions of the wanted ones, where not all are.
    # Dropout's masks are not kept: they are computed from their seeds a second time.
    tokens, hidden = encoder.length, encoder.hidden_dim
    numbers = 3 * tokens * hidden + 6 * wanted * hidden + 2 * wanted * encoder.intermediate_dim
    pairs = encoder.num_heads * wanted * tokens
    numbers += 2 * pairs
    if wanted < tokens:
        numbers += wanted * hidden + (pairs if encoder.relative else 0)
    return width * numbers + _FLOAT32 * encoder.num_heads * wanted


def embedding_activations(encoder: EncoderPass, width: int) -> int:
    """The bytes that the embeddings keep of one sequence."""
    # What LayerNorm normalized, cLE; where E is not H, the input of the dense layer between, cLE.
    tensors = 1 if encoder.embedding_dim == encoder.hidden_dim else 2
    return tensors * width * encoder.length * encoder.embedding_dim


def pass_activations(encoder: EncoderPass, width: int, rematerialize: bool) -> int:
    """The bytes that an encoder pass keeps of one sequence, in all versions of it."""
    # `embedding_activations`, and n times `block_activations`, W = L in all but the last block;
    # rematerialized, the n inputs of the blocks in their place, cLH each.
    embeddings = embedding_activations(encoder, width)
    if rematerialize:
        inputs = encoder.num_layers * encoder.length * encoder.hidden_dim
        return encoder.stacked * (embeddings + width * inputs)
    blocks = (encoder.num_layers - 1) * block_activations(encoder, width, encoder.length)
    blocks += block_activations(encoder, width, encoder.wanted)
    return encoder.stacked * (embeddings + blocks)


def head_activations(config: PretrainingConfig) -> int:
    """The bytes that the heads keep of one sequence, their logits aside."""
    # - masked LM head: its input, cM times the auxiliary model's width; of its dense layer, 2cME
    #   before GELU and after LayerNorm, whose float32 input and scale are another 8ME; of each of
    #   MCL's courses;
    # - copy head: its input, cLH, which is the all-token LM head's too; of each of MCL's courses;
    # - LM head: otherwise the input at the masked positions, cMH.
    width, hidden, heads = compute_bytes(config), config.model.hidden_dim, heads_of(config)
    length, count, rows = config.data.sequence_length, 0, heads.masked_lm_rows
    if heads.masked_lm:
        count += width * rows * (heads.masked_lm + 2 * hidden) + 2 * _FLOAT32 * rows * hidden
    of_all_tokens = heads.lm == length
    if heads.copied or of_all_tokens:
        count += max(heads.copied, 1) * width * length * hidden
    if not of_all_tokens:
        count += width * heads.lm * hidden
    return count


def logit_bytes(config: PretrainingConfig, sequences: int) -> int:
    """The bytes of the vocabulary logits."""
    # Each head keeps its logits, cNV of N rows: M of each sequence at the masked LM head, M or L at
    # the LM head. To that comes the larger of what is made of them: the gradient of a head's
    # logits, cNV, or the float32 logits with noise that the auxiliary model's samples are the
    # maxima of, 4NV.
    # Where `runtime.logit_chunk_rows` is less than N, nothing is kept: the logits and what is made
    # of them are there for so many rows, beside two float32 gradients of the word table, 8VE: the
    # sums over the chunks so far and over one more.
    width, heads, passes = compute_bytes(config), heads_of(config), encoder_passes(config)
    sampling = passes.get("auxiliary_sampling")
    masked = sequences * max(
        heads.masked_lm_rows, masked_rows(config) * (sampling.stacked if sampling else 0)
    )
    learned = [sequences * heads.lm, sequences * heads.masked_lm_rows]
    at_a_time = config.runtime.logit_chunk_rows or max(*learned, masked)
    working = width * min(at_a_time, max(learned))
    if "auxiliary" in passes or "auxiliary_sampling" in passes:
        working = max(working, _FLOAT32 * min(at_a_time, masked))
    if max(learned) > at_a_time:
        working += width * at_a_time + 2 * _FLOAT32 * config.model.hidden_dim
    kept = width * sum(rows for rows in learned if rows <= at_a_time)
    return config.model.vocabulary_size * (kept + working)


def similarity_bytes(config: PretrainingConfig, sequences: int) -> int:
    """The bytes of the contrastive task's similarities on each device."""
    # All devices' vectors are compared on every one: of b sequences in all, 2b vectors, and three
    # float32 matrices [2b, 2b]: similarities, these without the diagonal, and their exponentials.
    return 3 * _FLOAT32 * (2 * sequences) ** 2 if heads_of(config).contrast else 0


def copied_weight_bytes(config: PretrainingConfig, rematerialize: bool) -> int:
    """The bytes of the matrices that a step copies and keeps for its backward pass."""
    # - In mixed precision each trained pass casts the matrices of its blocks, c(4H^2 + 2HI) each,
    #   and each head over the vocabulary the word table, cVE.
    # - In float32 each block puts the matrices of query, key and value side by side, 3cH^2; where
    #   not all positions are wanted, in the last block, those of key and value, 2cH^2.
    # Rematerialized, they are there for one block at a time.
    width, model, heads = compute_bytes(config), config.model, heads_of(config)
    blocks = []
    for one in (one for one in encoder_passes(config).values() if one.trained):
        matrix = one.hidden_dim**2
        if width < _FLOAT32:
            block = last = 4 * matrix + 2 * one.hidden_dim * one.intermediate_dim
        else:
            block, last = 3 * matrix, (2 if one.wanted < one.length else 3) * matrix
        blocks.append(block if rematerialize else (one.num_layers - 1) * block + last)
    matrices = max(blocks) if rematerialize else sum(blocks)
    if width < _FLOAT32:
        learned = {"main", "auxiliary", "auxiliary_corrections"} & encoder_passes(config).keys()
        tables = len(learned) + bool(heads.lm)
        matrices += tables * model.vocabulary_size * model.hidden_dim
    return width * matrices


def working_bytes(config: PretrainingConfig, rematerialize: bool) -> int:
    """The bytes that the backward pass of one block adds, for one sequence."""
    # The gradients of its activations: at most as much as the largest `block_activations`;
    # rematerialized, twice that, as the block's activations are there only then.
    width = compute_bytes(config)
    block = max(
        one.stacked * block_activations(one, width, one.length)
        for one in encoder_passes(config).values()
    )
    return (2 if rematerialize else 1) * block

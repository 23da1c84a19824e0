"""The paper's model and losses in float64 NumPy, written down plainly, to compare with."""

import math

import numpy as np


def array(variable) -> np.ndarray:
    return np.asarray(variable, np.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def dense(x: np.ndarray, layer) -> np.ndarray:
    return x @ array(layer.kernel) + array(layer.bias)


def layer_norm(x: np.ndarray, layer) -> np.ndarray:
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + layer.epsilon)
    return scaled * array(layer.gamma) + array(layer.beta)


def signed_bucket(distance: int, bins: int, max_distance: int) -> int:
    """Before the shift that makes the smallest one 0."""
    n, half, exact = abs(distance), bins // 2, bins // 4
    if n >= exact:
        share = math.log(n / exact) / math.log((max_distance - 1) / exact)
        n = min(half - 1, exact + math.ceil(share * (half - 1 - exact) - 1e-6))
    return n if distance > 0 else -n


def bucket(distance: int, bins: int, max_distance: int, max_positions: int) -> int:
    smallest = min(signed_bucket(-n, bins, max_distance) for n in range(max_positions))
    return signed_bucket(distance, bins, max_distance) - smallest


def encode(backbone, token_ids: np.ndarray, padding_mask: np.ndarray) -> np.ndarray:
    """The hidden states of `CocoLMBackbone`, [B, S, H], without dropout."""
    length = token_ids.shape[1]
    x = array(backbone.token_embedding.embeddings)[token_ids]
    x = x + array(backbone.position_embedding.position_embeddings)[:length]
    x = layer_norm(x, backbone.get_layer("embeddings_norm"))
    if backbone.embedding_dim != backbone.hidden_dim:
        x = dense(x, backbone.get_layer("embeddings_projection"))
    x = x * padding_mask[:, :, np.newaxis]
    bias = relative_bias(backbone, length)
    for block in backbone.blocks:
        attended = dense(attend(x, padding_mask, bias, block), block.attention_output)
        x = layer_norm(x + attended, block.attention_norm)
        x = layer_norm(
            x + dense(gelu(dense(x, block.intermediate)), block.output_dense), block.output_norm
        )
    return x


def relative_bias(backbone, length: int) -> np.ndarray:
    """[heads, query, key]"""
    bias = np.zeros([backbone.num_heads, length, length])
    if backbone.relative_position_bins:
        table = array(backbone.get_layer("attention_bias").table)
        for query, key in np.ndindex(length, length):
            row = bucket(
                key - query,
                backbone.relative_position_bins,
                backbone.relative_position_max_distance,
                backbone.max_sequence_length,
            )
            bias[:, query, key] = table[row]
    return bias


def attend(x: np.ndarray, padding_mask: np.ndarray, bias: np.ndarray, block) -> np.ndarray:
    queries, keys, values = (dense(x, layer) for layer in (block.query, block.key, block.value))
    width = x.shape[-1] // block.num_heads
    heads = []
    for head in range(block.num_heads):
        part = slice(head * width, (head + 1) * width)
        logits = queries[..., part] @ keys[..., part].transpose(0, 2, 1) / math.sqrt(width)
        logits = np.where(padding_mask[:, np.newaxis, :], logits + bias[head], -np.inf)
        heads.append(softmax(logits) @ values[..., part])
    return np.concatenate(heads, axis=-1)


def transform(x: np.ndarray, layer) -> np.ndarray:
    return layer_norm(gelu(dense(x, layer.dense)), layer.norm)


def tied_logits(x: np.ndarray, projection) -> np.ndarray:
    return x @ array(projection.token_embedding.embeddings).T + array(projection.bias)


def masked_lm_logits(model, inputs, positions: np.ndarray) -> np.ndarray:
    """[B, M, V]"""
    hidden = encode(model.backbone, inputs["token_ids"], inputs["padding_mask"])
    hidden = np.take_along_axis(hidden, positions[:, :, np.newaxis], axis=1)
    return tied_logits(transform(hidden, model.head.transform), model.head.projection)


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.take_along_axis(softmax(logits), labels[..., np.newaxis], axis=-1)[..., 0])


def masked_lm_loss(model, batch) -> float:
    masked = batch["token_ids"].copy()
    labels = np.take_along_axis(batch["token_ids"], batch["masked_positions"], axis=1)
    hidden = np.where(batch["masked_weights"] > 0, 59, labels)
    np.put_along_axis(masked, batch["masked_positions"], hidden, axis=1)
    inputs = {"token_ids": masked, "padding_mask": batch["padding_mask"]}
    logits = masked_lm_logits(model, inputs, batch["masked_positions"])
    return mean(cross_entropy(logits, labels), batch["masked_weights"])


def copy_probability(pretrainer, hidden) -> np.ndarray:
    """[B, S], that the token is the original."""
    head = pretrainer.copy_head
    bias = 0.0 if head.bias is None else array(head.bias)
    return sigmoid(hidden @ array(head.kernel) + bias)


def copy_loss(pretrainer, hidden, batch, corrupted) -> float:
    p_copy = copy_probability(pretrainer, hidden)
    is_original = corrupted == batch["token_ids"]
    return mean(-np.log(np.where(is_original, p_copy, 1 - p_copy)), batch["padding_mask"])


def lm_loss(pretrainer, hidden, batch, corrupted) -> float:
    """Over all positions; the weights choose."""
    original = batch["token_ids"]
    weights = np.zeros(original.shape)
    if pretrainer.all_token_lm:
        weights[:] = batch["padding_mask"]
    else:
        np.put_along_axis(weights, batch["masked_positions"], batch["masked_weights"], axis=1)
    likelihood = np.exp(-cross_entropy(tied_logits(hidden, pretrainer.lm_head), original))
    if pretrainer.use_copy:
        p_copy = copy_probability(pretrainer, hidden)
        likelihood = (corrupted == original) * p_copy + (1 - p_copy) * likelihood
    errors = -np.log(likelihood)
    if pretrainer.weighted_lm:
        errors = errors * (1 - copy_probability(pretrainer, hidden))
    return mean(errors, weights)


def scl_loss(pretrainer, hidden, batch) -> float:
    crop = encode(pretrainer.backbone, batch["crop_token_ids"], batch["crop_padding_mask"])
    vectors = np.concatenate([hidden[:, 0], crop[:, 0]])
    if pretrainer.projection:
        vectors = transform(vectors, pretrainer.projection)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = np.exp(vectors @ vectors.T / pretrainer.temperature)
    losses = []
    for i in range(len(vectors)):
        others = likeness[i].sum() - likeness[i, i]
        losses.append(-np.log(likeness[i, (i + len(hidden)) % len(vectors)] / others))
    return float(np.mean(losses))

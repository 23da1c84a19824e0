"""Tiny checkpoints in the released formats, and what they compute, in plain NumPy.

Nothing here is the package's: names, shapes and formulas are written down from the formats.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 40,
    "type_vocab_size": 0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "layer_norm_type": "post",
    "rel_pos_bins": 16,
    "max_rel_pos": 20,
    "need_pooler": True,
    "num_labels": 3,
}

Tensors = dict[str, np.ndarray]


def config(**changes: Any) -> dict[str, Any]:
    return CONFIG | changes


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        center = 1.0 if "norm.weight" in name.lower() else 0.0
        tensors[name] = (center + rng.normal(0, 0.3, shape)).astype(np.float32)
    return tensors


def encoder_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (sizes["vocab_size"], width),
        "embeddings.position_embeddings.weight": (sizes["max_position_embeddings"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    if sizes["rel_pos_bins"]:
        bias = (sizes["rel_pos_bins"], sizes["num_attention_heads"])
        shapes["relative_attention_bias.weight"] = bias
    for number in range(sizes["num_hidden_layers"]):
        layer = f"encoder.layer.{number}."
        for name, shape in {
            "attention.self_attn.in_proj.weight": (3 * width, width),
            "attention.self_attn.in_proj.bias": (3 * width,),
            "attention.self_attn.out_proj.weight": (width, width),
            "attention.self_attn.out_proj.bias": (width,),
            "attention.LayerNorm.weight": (width,),
            "attention.LayerNorm.bias": (width,),
            "intermediate.dense.weight": (inner, width),
            "intermediate.dense.bias": (inner,),
            "output.dense.weight": (width, inner),
            "output.dense.bias": (width,),
            "output.LayerNorm.weight": (width,),
            "output.LayerNorm.bias": (width,),
        }.items():
            shapes[layer + name] = shape
    return shapes


def head_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, labels = sizes["hidden_size"], sizes["num_labels"]
    return {
        "scl_head.dense.weight": (width, width),
        "scl_head.dense.bias": (width,),
        "scl_head.LayerNorm.weight": (width,),
        "scl_head.LayerNorm.bias": (width,),
        "classifier.dense.weight": (width, width),
        "classifier.dense.bias": (width,),
        "classifier.out_proj.weight": (labels, width),
        "classifier.out_proj.bias": (labels,),
        "qa_outputs.start_logits.dense.weight": (1, width),
        "qa_outputs.start_logits.dense.bias": (1,),
        "qa_outputs.end_logits.dense.weight": (1, width),
        "qa_outputs.end_logits.dense.bias": (1,),
    }


def released_tensors(sizes: dict[str, Any], seed: int = 0) -> Tensors:
    """An encoder and every head, by the names within the released classes' parts."""
    return random_tensors(encoder_shapes(sizes) | head_shapes(sizes), seed)


def prefixed(tensors: Tensors) -> Tensors:
    """By the names in a released file."""
    heads = ("classifier.", "qa_outputs.")
    return {n if n.startswith(heads) else f"cocolm.{n}": tensor for n, tensor in tensors.items()}


def write_released(
    folder: Path, tensors: Tensors, sizes: dict[str, Any] | None, weights: str = "weights.npz"
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / weights, **tensors)
    if sizes is not None:
        (folder / "config.json").write_text(json.dumps(sizes))
    return str(folder)


_FAIRSEQ_LAYER = {
    "attention.self_attn.in_proj.": "self_attn.in_proj.",
    "attention.self_attn.out_proj.": "self_attn.out_proj.",
    "attention.LayerNorm.": "self_attn_layer_norm.",
    "intermediate.dense.": "fc1.",
    "output.dense.": "fc2.",
    "output.LayerNorm.": "final_layer_norm.",
}
_FAIRSEQ = {
    "embeddings.word_embeddings.": "embed_tokens.",
    "embeddings.position_embeddings.": "embed_positions.",
    "embeddings.LayerNorm.": "emb_layer_norm.",
    "relative_attention_bias.": "relative_attention_bias.",
}


def fairseq_encoder(tensors: Tensors, owner: str = "encoder", offset: int = 2) -> Tensors:
    """An encoder's tensors as fairseq names them, with `offset` rows before the positions."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("encoder.layer."):
            number, rest = name.removeprefix("encoder.layer.").split(".", 1)
            start = next(start for start in _FAIRSEQ_LAYER if rest.startswith(start))
            name = f"layers.{number}.{_FAIRSEQ_LAYER[start]}{rest.removeprefix(start)}"
        else:
            start = next((start for start in _FAIRSEQ if name.startswith(start)), None)
            if start is None:
                continue
            name = _FAIRSEQ[start] + name.removeprefix(start)
        if name == "embed_positions.weight":
            tensor = np.concatenate([np.full((offset, tensor.shape[1]), 9, np.float32), tensor])
        renamed[f"{owner}.sentence_encoder.{name}"] = tensor
    return renamed


# What a released model computes.


def linear(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    return x @ np.float64(tensors[f"{name}.weight"]).T + tensors[f"{name}.bias"]


def layer_norm(x: np.ndarray, tensors: Tensors, name: str, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def bucket(distance: int, bins: int, max_distance: int) -> int:
    half, exact, n = bins // 2, bins // 4, abs(distance)
    if n >= exact:
        share = math.log(n / exact) / math.log((max_distance - 1) / exact)
        n = min(half - 1, exact + math.ceil(share * (half - 1 - exact) - 1e-6))
    return n if distance > 0 else -n


def encode(
    tensors: Tensors, sizes: dict[str, Any], ids: np.ndarray, mask: np.ndarray, prefix: str = ""
) -> np.ndarray:
    """The hidden states of an encoder, [B, S, H]."""
    tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    epsilon, heads = sizes["layer_norm_eps"], sizes["num_attention_heads"]
    length = ids.shape[1]
    x = np.float64(tensors["embeddings.word_embeddings.weight"])[ids]
    x = x + tensors["embeddings.position_embeddings.weight"][:length]
    x = layer_norm(x, tensors, "embeddings.LayerNorm", epsilon) * mask[:, :, np.newaxis]
    bias = np.zeros((heads, length, length))
    if bins := sizes["rel_pos_bins"]:
        span, rows = sizes["max_rel_pos"], sizes["max_position_embeddings"]
        lowest = min(bucket(-n, bins, span) for n in range(rows))
        for query, key in np.ndindex(length, length):
            row = bucket(key - query, bins, span) - lowest
            bias[:, query, key] = tensors["relative_attention_bias.weight"][row]
    for number in range(sizes["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        attention = f"{layer}.attention"
        q, k, v = np.split(linear(x, tensors, f"{attention}.self_attn.in_proj"), 3, axis=-1)
        parts = []
        for head in range(heads):
            part = slice(head * x.shape[-1] // heads, (head + 1) * x.shape[-1] // heads)
            logits = q[..., part] @ k[..., part].transpose(0, 2, 1)
            logits = logits / math.sqrt(x.shape[-1] // heads) + bias[head]
            logits = np.where(mask[:, np.newaxis, :], logits, -np.inf)
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            parts.append(powers / powers.sum(-1, keepdims=True) @ v[..., part])
        attended = np.concatenate(parts, -1)
        x = x + linear(attended, tensors, f"{attention}.self_attn.out_proj")
        x = layer_norm(x, tensors, f"{attention}.LayerNorm", epsilon)
        inner = gelu(linear(x, tensors, f"{layer}.intermediate.dense"))
        x = x + linear(inner, tensors, f"{layer}.output.dense")
        x = layer_norm(x, tensors, f"{layer}.output.LayerNorm", epsilon)
    return x


def inputs(sizes: dict[str, Any], length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask; the second sequence has padding."""
    rng = np.random.default_rng(5)
    ids = rng.integers(3, sizes["vocab_size"], (2, length)).astype(np.int32)
    mask = np.arange(length) < np.array([[length], [length // 2]])
    return np.where(mask, ids, 1).astype(np.int32), mask

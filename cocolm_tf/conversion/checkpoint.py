"""A released checkpoint being read: its tensors, which of them were used, and its sizes."""

import os
import re
from typing import Any

import numpy as np

from cocolm_tf import files
from cocolm_tf.conversion.layout import (
    AUXILIARY,
    CONFIG_FILENAME,
    POSITIONS,
    RATES,
    RELATIVE_POSITIONS,
    SIZES,
    WORDS,
    released_name,
)
from cocolm_tf.conversion.tensor_files import TensorFile, check_finite, read_json
from cocolm_tf.errors import UserError

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "weights.npz",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
)
# The released classes' defaults for what config.json omits.
_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_type": "post",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "rel_pos_bins": 0,
    "max_rel_pos": 0,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "need_pooler": False,
}
# The only values of these settings that our model supports.
_ONLY = {"hidden_act": "gelu", "layer_norm_type": "post"}
# The tensor that is as wide as the feed-forward network.
INTERMEDIATE = "encoder.layer.0.intermediate.dense.bias"

# fairseq numbers positions from the padding token's id on, and the first is one more.
_FAIRSEQ_POSITION_OFFSET = 2

# Tensors with a row for every token, and the most rows that pad them to a round number.
_OF_VOCABULARY = (WORDS, "lm_head.bias")
_MAX_PADDING = 1024

# The released names of an encoder in fairseq's words.
_FAIRSEQ_ENCODER = (
    ("embeddings.word_embeddings.", "embed_tokens."),
    ("embeddings.position_embeddings.", "embed_positions."),
    ("embeddings.LayerNorm.", "emb_layer_norm."),
    ("encoder.layer.", "layers."),
    (".attention.self_attn.", ".self_attn."),
    (".attention.LayerNorm.", ".self_attn_layer_norm."),
    (".intermediate.dense.", ".fc1."),
    (".output.dense.", ".fc2."),
    (".output.LayerNorm.", ".final_layer_norm."),
)
_FAIRSEQ_HEADS = (
    ("binary_head.", "encoder.binary_head."),
    ("lm_head.", "encoder.lm_head."),
    ("scl_head.dense.", "encoder.seq_head.dense."),
    ("scl_head.LayerNorm.", "encoder.seq_head.layer_norm."),
    ("auxiliary.lm_head.LayerNorm.", "auxiliary.lm_head.layer_norm."),
    ("auxiliary.lm_head.", "auxiliary.lm_head."),
)
_FAIRSEQ_TASK_HEADS = {"classifier.": ".out_proj.weight", "qa_outputs.": ".start_logits."}


class Checkpoint:
    """The tensors of a checkpoint, by the names that the released classes give them."""

    def __init__(self, file: TensorFile) -> None:
        self.path, self.folder = file.path, os.path.dirname(file.path)
        self.settings = file.settings
        self.notes: list[str] = []
        self._file = file
        self._names = frozenset(file.names)
        # The released classes' name of each tensor that was taken, by the file's.
        self.used: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._padded_rows = 0
        self.is_fairseq = any(".sentence_encoder." in name for name in file.names)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def layers(self, prefix: str = "") -> int:
        """The number of an encoder's layers."""
        layers = 0
        while f"{prefix}encoder.layer.{layers}.output.LayerNorm.weight" in self:
            layers += 1
        return layers

    def without_padding(self, rows: int, vocabulary_size: int) -> int:
        """Has `take` leave out the rows that only round a table's size up."""
        padding = rows - vocabulary_size
        if padding > _MAX_PADDING:
            raise UserError(
                f"{self.path} has a table of {rows} words, {padding} more than the vocabulary "
                "beside it: that is another model's."
            )
        if padding:
            self._padded_rows = rows
            self.notes.append(
                f"the table of words has {rows} rows for a vocabulary of {vocabulary_size}: the "
                f"last {padding}, which are of no word, are left out"
            )
        return vocabulary_size

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor without counting it as used; see `take`."""
        key = self._find(name)
        if key is None:
            raise UserError(f"{self.path}: {self._candidate_names(name)[0]} is missing.")
        return self._file.read(key)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads a tensor and counts it as used."""
        tensor = self.read(name)
        if name.endswith(POSITIONS):
            tensor = self._positions(tensor, shape)
        if name.endswith(_OF_VOCABULARY) and len(tensor) == self._padded_rows:
            tensor = tensor[: shape[0]]
        if tensor.shape != shape:
            raise UserError(
                f"{self.path}: {self._find(name)} has the shape {tensor.shape}, not {shape}."
            )
        check_finite(tensor, f"{self.path}: {self._find(name)}")
        self.use(name)
        return tensor

    def use(self, name: str) -> None:
        """Counts a tensor as used; see `take`."""
        self.used[self._find(name)] = name

    def explain(self, name: str, reason: str) -> None:
        """Notes why a tensor is not used."""
        self._reasons[self._find(name)] = reason

    def unused(self) -> dict[str, str]:
        """The file's tensors that were not taken, and why not, where that is known."""
        rest = sorted(self._names - self.used.keys())
        return {key: self._reasons.get(key, "") for key in rest}

    def _find(self, name: str) -> str | None:
        return next((key for key in self._candidate_names(name) if key in self._names), None)

    def _candidate_names(self, name: str) -> list[str]:
        """The names that a file may have for a tensor, the likeliest first."""
        return self._fairseq_names(name) if self.is_fairseq else [released_name(name), name]

    def _fairseq_names(self, name: str) -> list[str]:
        for head, mark in _FAIRSEQ_TASK_HEADS.items():
            if name.startswith(head):
                return [f"{self._fairseq_task_head(mark)}.{name.removeprefix(head)}"]
        for released, ours in _FAIRSEQ_HEADS:
            if name.startswith(released):
                spelling = ours + name.removeprefix(released)
                return [spelling, spelling.replace("encoder.", "decoder.", 1)]
        owner = "auxiliary" if name.startswith(AUXILIARY) else "encoder"
        spelling = name.removeprefix(AUXILIARY)
        for released, ours in _FAIRSEQ_ENCODER:
            spelling = spelling.replace(released, ours)
        spellings = [spelling, spelling.replace("in_proj.", "in_proj_")]
        # fairseq named an encoder "decoder" once, and its own classes still read that.
        owners = [owner, "decoder"] if owner == "encoder" else [owner]
        return [f"{owner}.sentence_encoder.{each}" for owner in owners for each in spellings]

    def _fairseq_task_head(self, mark: str) -> str:
        """The name that the fine-tuning gave its head."""
        pattern = re.compile(r"(classification_heads\.[^.]+)" + re.escape(mark))
        heads = sorted({found[1] for name in self._names if (found := pattern.match(name))})
        if len(heads) > 1:
            raise UserError(
                f"{self.path} has several heads, {' and '.join(heads)}: a preset has room for one."
            )
        return heads[0] if heads else "classification_heads.none"

    def _positions(self, table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if self.is_fairseq and len(table) == shape[0] + _FAIRSEQ_POSITION_OFFSET:
            table = table[_FAIRSEQ_POSITION_OFFSET:]
        rows = len(table)
        if rows == shape[0] or table.shape[1:] != shape[1:]:
            return table
        done = "the first are taken" if rows > shape[0] else "they are repeated"
        note = f"{rows} positions for a model of {shape[0]}: {done}, as the released classes do"
        if note not in self.notes:
            self.notes.append(note)
        return np.resize(table, shape)


def find_weights(official: str) -> str:
    """Finds the weights in a released folder."""
    if files.is_file(official):
        return official
    if not files.is_dir(official):
        raise UserError(f"--official={official} does not exist.")
    for name in _WEIGHTS:
        path = os.path.join(official, name)
        if files.is_file(path):
            return path
    raise UserError(f"--official={official} has no weights: none of {', '.join(_WEIGHTS)}.")


def read_configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads the architecture of a checkpoint's model."""
    path = os.path.join(checkpoint.folder, CONFIG_FILENAME)
    given = read_json(path) if files.is_file(path) else None
    if given is None and not checkpoint.is_fairseq:
        raise UserError(f"{checkpoint.folder} has no {CONFIG_FILENAME} beside the weights.")
    sizes = _fairseq_configuration(checkpoint) if checkpoint.is_fairseq else {}
    configuration = _DEFAULTS | sizes | (given or {})
    for key in SIZES | RATES:
        value = configuration.get(key)
        if not isinstance(value, int if key in SIZES else int | float):
            wanted = "a whole number" if key in SIZES else "a number"
            raise UserError(f"{path}: {key} must be {wanted}, not {value!r}.")
    for key, value in _ONLY.items():
        if configuration[key] != value:
            raise UserError(f"{path}: {key} is {configuration[key]!r}; COCO-LM's is {value!r}.")
    if "embeddings.token_type_embeddings.weight" in checkpoint:
        raise UserError(
            f"{checkpoint.path}: token_type_embeddings are of a model with segment embeddings, "
            "which COCO-LM does not have."
        )
    dropout = configuration["hidden_dropout_prob"]
    other = configuration.get("attention_probs_dropout_prob", dropout)
    if other != dropout:
        checkpoint.notes.append(
            f"dropout is {dropout} everywhere, not {other} on the attention probabilities"
        )
    return configuration


def _fairseq_configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    settings = checkpoint.settings
    vocabulary_size, hidden_size = checkpoint.read(WORDS).shape
    rows = len(checkpoint.read(POSITIONS))
    bins, heads = 0, settings.get("encoder_attention_heads")
    if RELATIVE_POSITIONS in checkpoint:
        bins, heads = checkpoint.read(RELATIVE_POSITIONS).shape
    if bins and "max_rel_pos" not in settings:
        checkpoint.notes.append("max_rel_pos is not in the file: 128, as fairseq would take it")
    zero_dropout = settings.get("generator_sample_mode") == "zero-dropout"
    dropout = settings.get("dropout", _DEFAULTS["hidden_dropout_prob"])
    auxiliary_dropout = 0.0 if zero_dropout else dropout
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": checkpoint.layers(),
        "num_attention_heads": heads,
        "intermediate_size": len(checkpoint.read(INTERMEDIATE)),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": settings.get("attention_dropout", dropout),
        # The table's rows are two more than the positions where nothing says how many these are.
        "max_position_embeddings": settings.get("max_positions") or rows - 2,
        "rel_pos_bins": bins,
        "max_rel_pos": settings.get("max_rel_pos", 128),
        "layer_norm_eps": 1e-5,
        "auxiliary": {"hidden_dropout_prob": auxiliary_dropout},
    }

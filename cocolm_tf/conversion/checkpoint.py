"""A released checkpoint being read: its tensors by name, and which of them were used."""

import os
import re

import numpy as np

from cocolm_tf import files
from cocolm_tf.conversion.layout import AUXILIARY, POSITIONS, WORDS, released_name
from cocolm_tf.conversion.tensor_files import TensorFile, check_finite
from cocolm_tf.errors import UserError

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
        self.path = file.path
        self.settings = file.settings
        self.notes: list[str] = []
        self._file = file
        self._names = frozenset(file.names)
        self._used: dict[str, str] = {}
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
        self._used[self._find(name)] = name

    def explain(self, name: str, reason: str) -> None:
        """Notes why a tensor is not used."""
        self._reasons[self._find(name)] = reason

    def unused(self) -> dict[str, str]:
        """The file's tensors that were not taken, and why not, where that is known."""
        rest = sorted(self._names - self._used.keys())
        return {key: self._reasons.get(key, "") for key in rest}

    @property
    def used(self) -> dict[str, str]:
        """The released classes' name of each tensor that was taken, by the file's."""
        return dict(self._used)

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
    names = (
        "model.safetensors",
        "model.safetensors.index.json",
        "weights.npz",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.pt",
    )
    for name in names:
        path = os.path.join(official, name)
        if files.is_file(path):
            return path
    raise UserError(f"--official={official} has no weights: none of {', '.join(names)}.")

"""The correspondence of the released format's tensors and our variables.

The names are those of the released PyTorch classes, without the `cocolm.` that they put before
the main model's; `docs/conversion.md` lists them. Beyond these, the auxiliary model's encoder is
written and read with `auxiliary.` before its names, and the heads of pretraining by fairseq's
names of them: the released classes have no place for either, and ignore them.
"""

import dataclasses
import math
from collections.abc import Iterator

import keras
import numpy as np

from cocolm_tf.conversion.tensor_files import Tensor
from cocolm_tf.modeling.backbone import CocoLMBackbone

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
# Not the released classes': that of an auxiliary model narrower than the tables.
PROJECTION = "embeddings.projection"
RELATIVE_POSITIONS = "relative_attention_bias.weight"
AUXILIARY = "auxiliary."
MAIN = "cocolm."
# What belongs to the released classes' main model, and not to a head on it.
_MAIN_MODEL = ("embeddings.", "encoder.", RELATIVE_POSITIONS, "scl_head.")

# Ours and theirs, by head. A kernel is [inputs, outputs] here and [outputs, inputs] there.
HEADS = {
    "copy_head": {
        "kernel": ("binary_head.out_proj.weight",),
        "bias": ("binary_head.out_proj.bias",),  # not in the paper
    },
    "lm_head": {"bias": ("lm_head.bias",)},
    "projection": {
        "dense.kernel": ("scl_head.dense.weight",),
        "dense.bias": ("scl_head.dense.bias",),
        "norm.gamma": ("scl_head.LayerNorm.weight",),
        "norm.beta": ("scl_head.LayerNorm.bias",),
    },
    "masked_lm_head": {
        "dense.kernel": ("auxiliary.lm_head.dense.weight",),
        "dense.bias": ("auxiliary.lm_head.dense.bias",),
        "norm.gamma": ("auxiliary.lm_head.LayerNorm.weight",),
        "norm.beta": ("auxiliary.lm_head.LayerNorm.bias",),
        "bias": ("auxiliary.lm_head.bias",),
    },
    # Of masked language modeling alone.
    "main_masked_lm_head": {
        "dense.kernel": ("masked_lm_head.dense.weight",),
        "dense.bias": ("masked_lm_head.dense.bias",),
        "norm.gamma": ("masked_lm_head.LayerNorm.weight",),
        "norm.beta": ("masked_lm_head.LayerNorm.bias",),
        "bias": ("masked_lm_head.bias",),
    },
    "classifier": {
        "dense.kernel": ("classifier.dense.weight",),
        "dense.bias": ("classifier.dense.bias",),
        "output.kernel": ("classifier.out_proj.weight",),
        "output.bias": ("classifier.out_proj.bias",),
    },
    # One layer here, of which there each output is a layer.
    "question_answerer": {
        "output.kernel": (
            "qa_outputs.start_logits.dense.weight",
            "qa_outputs.end_logits.dense.weight",
        ),
        "output.bias": (
            "qa_outputs.start_logits.dense.bias",
            "qa_outputs.end_logits.dense.bias",
        ),
    },
}


def released_name(name: str) -> str:
    """The name of a tensor in a file that the released classes load."""
    return MAIN + name if name.startswith(_MAIN_MODEL) else name


@dataclasses.dataclass(frozen=True)
class Entry:
    """Our variables and the tensors of the released format that hold the same numbers."""

    # The rows of the tensors, one tensor after the other, are the rows of the variables, one
    # variable after the other.
    names: tuple[str, ...]  # The tensors' names
    variables: tuple[keras.Variable, ...]  # The variables
    # Whether a tensor's rows are a variable's columns, as of a kernel. A kernel of a single output
    # may be a vector here; there it is a matrix of one row.
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each of the tensors."""
        shapes = [tuple(variable.shape) for variable in self.variables]
        if self.transposed:
            shapes = [(math.prod(shape[1:]), shape[0]) for shape in shapes]
        rows = sum(shape[0] for shape in shapes)
        return (rows // len(self.names), *shapes[0][1:])

    def assign(self, tensors: list[np.ndarray]) -> None:
        """Sets the variables from the tensors."""
        rows = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        for variable, part in zip(self.variables, np.split(rows, len(self.variables)), strict=True):
            part = part.T if self.transposed else part
            variable.assign(part.reshape(variable.shape))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors with the numbers of the variables, by name."""

        def make(number: int) -> np.ndarray:
            arrays = [np.asarray(variable) for variable in self.variables]
            if self.transposed:
                arrays = [array.reshape(len(array), -1).T for array in arrays]
            rows = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            return np.split(rows, len(self.names))[number]

        return {
            name: Tensor(self.shape, lambda number=number: make(number))
            for number, name in enumerate(self.names)
        }


def table_entries(backbone: CocoLMBackbone, prefix: str = "") -> Iterator[Entry]:
    """The entries of an encoder's word and position tables, which an auxiliary model may share."""
    yield Entry((prefix + WORDS,), (backbone.token_embedding.embeddings,))
    yield Entry((prefix + POSITIONS,), (backbone.position_embedding.position_embeddings,))


def encoder_entries(backbone: CocoLMBackbone, prefix: str = "") -> Iterator[Entry]:
    """The entries of an encoder's variables, without its tables."""

    def entry(name: str, *variables: keras.Variable, transposed: bool = False) -> Entry:
        return Entry((prefix + name,), variables, transposed)

    def norm(name: str, layer: keras.layers.LayerNormalization) -> Iterator[Entry]:
        yield entry(f"{name}.weight", layer.gamma)
        yield entry(f"{name}.bias", layer.beta)

    def dense(name: str, *layers: keras.layers.Dense) -> Iterator[Entry]:
        yield entry(f"{name}.weight", *(layer.kernel for layer in layers), transposed=True)
        yield entry(f"{name}.bias", *(layer.bias for layer in layers))

    yield from norm("embeddings.LayerNorm", backbone.get_layer("embeddings_norm"))
    if backbone.embedding_dim != backbone.hidden_dim:
        yield from dense(PROJECTION, backbone.get_layer("embeddings_projection"))
    if backbone.relative_position_bins:
        yield entry(RELATIVE_POSITIONS, backbone.get_layer("attention_bias").table)
    for number, block in enumerate(backbone.blocks):
        layer = f"encoder.layer.{number}"
        attention = f"{layer}.attention"
        yield from dense(f"{attention}.self_attn.in_proj", block.query, block.key, block.value)
        yield from dense(f"{attention}.self_attn.out_proj", block.attention_output)
        yield from norm(f"{attention}.LayerNorm", block.attention_norm)
        yield from dense(f"{layer}.intermediate.dense", block.intermediate)
        yield from dense(f"{layer}.output.dense", block.output_dense)
        yield from norm(f"{layer}.output.LayerNorm", block.output_norm)


def head_entries(head: str, variables: dict[str, keras.Variable]) -> Iterator[Entry]:
    """The entries of a head's variables."""
    for name, released in HEADS[head].items():
        if head == "copy_head" and name not in variables:
            continue
        yield Entry(released, (variables[name],), transposed=name.endswith("kernel"))

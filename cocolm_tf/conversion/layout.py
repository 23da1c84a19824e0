"""The correspondence of the released format and our models: sizes, tensors and heads.

The names are those of the released PyTorch classes, without the `cocolm.` that they put before
the main model's; `docs/conversion.md` lists them. Beyond these, the auxiliary model's encoder is
written and read with `auxiliary.` before its names, and the heads of pretraining by fairseq's
names of them: the released classes have no place for either, and ignore them.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from cocolm_tf.conversion.tensor_files import check_finite
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone

CONFIG_FILENAME = "config.json"

# The keys of the released `config.json`, and `CocoLMBackbone`'s arguments.
SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "rel_pos_bins": "relative_position_bins",
    "max_rel_pos": "relative_position_max_distance",
}
RATES = {
    "hidden_dropout_prob": "dropout",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
# Not the released classes': that of an auxiliary model narrower than the tables.
PROJECTION = "embeddings.projection"
RELATIVE_POSITIONS = "relative_attention_bias.weight"
AUXILIARY = "auxiliary."
# What belongs to the released classes' main model, and not to a head on it.
_MAIN_MODEL = ("embeddings.", "encoder.", RELATIVE_POSITIONS, "scl_head.")

# A variable of a head: its dimensions, and the tensors of the released format that hold it. The
# dimensions are V, the vocabulary; H, the main model's width; A and E, the widths of the auxiliary
# model and of its tables; I and L, the hidden and the output units of a classifier; or a number.
HeadVariable = tuple[str, tuple[str, ...]]


def _transform(released: str, shape: str) -> dict[str, HeadVariable]:
    return {
        "dense.kernel": (shape, (f"{released}.dense.weight",)),
        "dense.bias": (shape[1], (f"{released}.dense.bias",)),
        "norm.gamma": (shape[1], (f"{released}.LayerNorm.weight",)),
        "norm.beta": (shape[1], (f"{released}.LayerNorm.bias",)),
    }


# The released format has a layer for each output of the question answerer.
_ANSWERS = ("qa_outputs.start_logits.dense", "qa_outputs.end_logits.dense")
# The variables of each head by their names in a preset.
HEADS: dict[str, dict[str, HeadVariable]] = {
    "copy_head": {
        "kernel": ("H", ("binary_head.out_proj.weight",)),
        "bias": ("1", ("binary_head.out_proj.bias",)),  # not in the paper
    },
    "lm_head": {"bias": ("V", ("lm_head.bias",))},
    "projection": _transform("scl_head", "HH"),
    "masked_lm_head": {
        **_transform("auxiliary.lm_head", "AE"),
        "bias": ("V", ("auxiliary.lm_head.bias",)),
    },
    # Of masked language modeling alone.
    "main_masked_lm_head": {
        **_transform("masked_lm_head", "HH"),
        "bias": ("V", ("masked_lm_head.bias",)),
    },
    "classifier": {
        "dense.kernel": ("HI", ("classifier.dense.weight",)),
        "dense.bias": ("I", ("classifier.dense.bias",)),
        "output.kernel": ("IL", ("classifier.out_proj.weight",)),
        "output.bias": ("L", ("classifier.out_proj.bias",)),
    },
    "question_answerer": {
        "output.kernel": ("H2", tuple(f"{name}.weight" for name in _ANSWERS)),
        "output.bias": ("2", tuple(f"{name}.bias" for name in _ANSWERS)),
    },
}


def released_name(name: str) -> str:
    """The name of a tensor in a file that the released classes load."""
    return f"cocolm.{name}" if name.startswith(_MAIN_MODEL) else name


def configuration_of(
    backbone: CocoLMBackbone, auxiliary: CocoLMBackbone | None, need_pooler: bool
) -> dict[str, Any]:
    """The `config.json` of an encoder, as the released classes read it."""
    if backbone.embedding_dim != backbone.hidden_dim:
        raise UserError(
            f"the model's embeddings are {backbone.embedding_dim} wide and its hidden states "
            f"{backbone.hidden_dim}: the released classes know one width."
        )
    configuration = {
        "model_type": "cocolm",
        **{key: getattr(backbone, name) for key, name in (SIZES | RATES).items()},
        "hidden_act": "gelu",
        "attention_probs_dropout_prob": backbone.dropout,
        "cls_dropout_prob": backbone.dropout,
        "type_vocab_size": 0,
        "layer_norm_type": "post",
        "need_pooler": need_pooler,
    }
    if auxiliary is not None:
        configuration["auxiliary"] = {
            "num_attention_heads": auxiliary.num_heads,
            "hidden_dropout_prob": auxiliary.dropout,
        }
    return configuration


def configured_labels(names: Sequence[str]) -> dict[str, Any]:
    """What `config.json` says of the names of a classifier's classes."""
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


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
        """The shape of each tensor."""
        shapes = [tuple(variable.shape) for variable in self.variables]
        if self.transposed:
            shapes = [(math.prod(rest), width) for width, *rest in shapes]
        return sum(shape[0] for shape in shapes) // len(self.names), *shapes[0][1:]

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors with the numbers of the variables, by name."""
        arrays = [np.asarray(variable) for variable in self.variables]
        if self.transposed:
            arrays = [array.reshape(len(array), -1).T for array in arrays]
        rows = np.split(np.concatenate(arrays), len(self.names))
        return dict(zip(self.names, rows, strict=True))

    def assign(self, tensors: list[np.ndarray]) -> None:
        """Sets the variables from the tensors."""
        rows = np.split(np.concatenate(tensors), len(self.variables))
        for variable, part in zip(self.variables, rows, strict=True):
            variable.assign((part.T if self.transposed else part).reshape(variable.shape))


def released_tensors(entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The tensors of a file that the released classes load; UserError if one is not finite."""
    tensors = {}
    for entry in entries:
        for name, tensor in entry.tensors().items():
            check_finite(tensor, f"the preset's {name}")
            tensors[released_name(name)] = tensor
    return tensors


def table_entries(backbone: CocoLMBackbone, prefix: str = "") -> list[Entry]:
    """The entries of an encoder's word and position tables, which an auxiliary model may share."""
    return [
        Entry((prefix + WORDS,), (backbone.token_embedding.embeddings,)),
        Entry((prefix + POSITIONS,), (backbone.position_embedding.position_embeddings,)),
    ]


def encoder_entries(backbone: CocoLMBackbone, prefix: str = "") -> Iterator[Entry]:
    """The entries of an encoder's variables, without its tables."""

    def norm(name: str, layer: keras.layers.LayerNormalization) -> Iterator[Entry]:
        yield Entry((f"{prefix}{name}.weight",), (layer.gamma,))
        yield Entry((f"{prefix}{name}.bias",), (layer.beta,))

    def dense(name: str, *layers: keras.layers.Dense) -> Iterator[Entry]:
        kernels = tuple(layer.kernel for layer in layers)
        yield Entry((f"{prefix}{name}.weight",), kernels, transposed=True)
        yield Entry((f"{prefix}{name}.bias",), tuple(layer.bias for layer in layers))

    yield from norm("embeddings.LayerNorm", backbone.get_layer("embeddings_norm"))
    if backbone.embedding_dim != backbone.hidden_dim:
        yield from dense(PROJECTION, backbone.get_layer("embeddings_projection"))
    if backbone.relative_position_bins:
        table = backbone.get_layer("attention_bias").table
        yield Entry((prefix + RELATIVE_POSITIONS,), (table,))
    for number, block in enumerate(backbone.blocks):
        layer = f"encoder.layer.{number}"
        attention = f"{layer}.attention"
        yield from dense(f"{attention}.self_attn.in_proj", block.query, block.key, block.value)
        yield from dense(f"{attention}.self_attn.out_proj", block.attention_output)
        yield from norm(f"{attention}.LayerNorm", block.attention_norm)
        yield from dense(f"{layer}.intermediate.dense", block.intermediate)
        yield from dense(f"{layer}.output.dense", block.output_dense)
        yield from norm(f"{layer}.output.LayerNorm", block.output_norm)


def head_entries(head: str, variables: Mapping[str, keras.Variable]) -> Iterator[Entry]:
    """The entries of a head's variables."""
    for name, (_, released) in HEADS[head].items():
        if head == "copy_head" and name not in variables:
            continue
        yield Entry(released, (variables[name],), transposed=name.endswith("kernel"))

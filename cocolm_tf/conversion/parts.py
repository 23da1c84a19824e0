"""The parts of a model, filled from a released checkpoint."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from cocolm_tf.conversion.architecture import auxiliary_arguments, backbone_arguments
from cocolm_tf.conversion.checkpoint import Checkpoint
from cocolm_tf.conversion.layout import (
    AUXILIARY,
    HEADS,
    POSITIONS,
    WORDS,
    Entry,
    encoder_entries,
    head_entries,
    table_entries,
)
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone

# Written a second time by PyTorch, where one matrix serves several layers.
_TIED_TO_WORDS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "auxiliary.lm_head.weight",
    "auxiliary.lm_head.decoder.weight",
)
_COPY_BIAS = "binary_head.out_proj.bias"

# The variables of a head, by their names in `layout.HEADS`.
Head = dict[str, keras.Variable]


def read_main(configuration: dict[str, Any], checkpoint: Checkpoint) -> CocoLMBackbone:
    """Builds the main model of a checkpoint.

    Args:
        configuration: As `read_configuration` gives it.
        checkpoint: The tensors.

    Returns:
        The encoder.

    Raises:
        UserError: If the sizes do not go together, or a tensor is missing or of another shape.

    Example:
    ```python
    backbone = read_main(configuration, checkpoint)
    ```
    """
    backbone = _build(backbone_arguments(configuration), checkpoint)
    _load(table_entries(backbone), checkpoint)
    _load(encoder_entries(backbone), checkpoint)
    return backbone


def read_auxiliary(
    backbone: CocoLMBackbone, configuration: dict[str, Any], checkpoint: Checkpoint
) -> CocoLMBackbone | None:
    """Builds the auxiliary model of a checkpoint.

    Args:
        backbone: The main model, whose word and position tables it shares, unless the checkpoint
            has others for it.
        configuration: As `read_configuration` gives it.
        checkpoint: The tensors.

    Returns:
        The encoder, or None if there is none, or one of another kind.

    Raises:
        UserError: If a tensor is missing or of another shape.

    Example:
    ```python
    auxiliary = read_auxiliary(backbone, configuration, checkpoint)
    ```
    """
    if not checkpoint.layers(AUXILIARY):
        return None
    if f"{AUXILIARY}embed_linear.weight" in checkpoint:
        checkpoint.notes.append(
            "the auxiliary model is left out: its words pass a linear layer before their "
            "positions are added, and ours would after"
        )
        return None
    arguments = auxiliary_arguments(configuration, checkpoint)
    own = [name for name in (WORDS, POSITIONS) if _differs(f"{AUXILIARY}{name}", name, checkpoint)]
    if own:
        auxiliary = _build(arguments, checkpoint)
        for table, entry in zip(
            table_entries(backbone), table_entries(auxiliary, AUXILIARY), strict=True
        ):
            if table.names[0] in own:
                _load([entry], checkpoint)
            else:
                entry.variables[0].assign(table.variables[0])
    else:
        auxiliary = _build(arguments, checkpoint, embeddings_of=backbone)
    _load(encoder_entries(auxiliary, AUXILIARY), checkpoint)
    return auxiliary


def read_heads(
    configuration: dict[str, Any], auxiliary: CocoLMBackbone | None, checkpoint: Checkpoint
) -> dict[str, Head]:
    """Reads those heads that a checkpoint has.

    Args:
        configuration: As `read_configuration` gives it.
        auxiliary: The auxiliary model, if there is one.
        checkpoint: The tensors.

    Returns:
        The variables of each head, by the names of `layout.HEADS`.

    Raises:
        UserError: If a tensor is missing or of another shape, or an LM head is not tied to the
            word embeddings.

    Example:
    ```python
    heads = read_heads(configuration, None, checkpoint)
    ```
    """
    heads = {
        head: variables
        for head in HEADS
        if (variables := _read_head(head, configuration, auxiliary, checkpoint))
    }
    for name in _TIED_TO_WORDS:
        if _differs(name, WORDS, checkpoint):
            raise UserError(
                f"{checkpoint.path}: {name} differs from the word embeddings; COCO-LM's LM heads "
                "are tied to them."
            )
    if _COPY_BIAS in checkpoint:
        value = float(checkpoint.read(_COPY_BIAS).ravel()[0])
        checkpoint.explain(_COPY_BIAS, f"{value:.4g}; the paper's copy head has no bias")
    return heads


def _build(arguments: dict[str, Any], checkpoint: Checkpoint, **kwargs: Any) -> CocoLMBackbone:
    try:
        return CocoLMBackbone(**arguments, **kwargs)
    except ValueError as error:
        message = " ".join(str(error).split())
        raise UserError(f"{checkpoint.path}: its model cannot be built: {message}") from error


def _load(entries: Iterable[Entry], checkpoint: Checkpoint) -> None:
    for entry in entries:
        entry.assign([checkpoint.take(name, entry.shape) for name in entry.names])


def _differs(name: str, original: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor is there and is not another one over again; if it is, it has been used."""
    if name not in checkpoint:
        return False
    if not np.array_equal(checkpoint.read(name), checkpoint.read(original)):
        return True
    checkpoint.use(name)
    return False


def _read_head(
    head: str,
    configuration: dict[str, Any],
    auxiliary: CocoLMBackbone | None,
    checkpoint: Checkpoint,
) -> Head:
    """The variables of a head; none if the checkpoint does not have it."""
    names = [name for released in HEADS[head].values() for name in released]
    needed = head == "projection" and configuration["need_pooler"]
    if not needed and not any(name in checkpoint for name in names):
        return {}
    if head == "masked_lm_head" and auxiliary is None:
        return {}
    activation = checkpoint.settings.get("pooler_activation_fn", "gelu")
    if head == "classifier" and activation != "gelu":
        for name in filter(checkpoint.__contains__, names):
            checkpoint.explain(name, f"its activation is {activation}, ours is GELU")
        return {}
    variables = {
        name: keras.Variable(np.zeros(shape, np.float32), name=name.replace(".", "_"))
        for name, shape in _head_shapes(head, configuration, auxiliary, checkpoint).items()
    }
    _load(head_entries(head, variables), checkpoint)
    return variables


def _head_shapes(
    head: str,
    configuration: dict[str, Any],
    auxiliary: CocoLMBackbone | None,
    checkpoint: Checkpoint,
) -> dict[str, tuple[int, ...]]:
    vocabulary_size, width = configuration["vocab_size"], configuration["hidden_size"]
    if head == "copy_head":
        return {"kernel": (width,)}
    if head == "lm_head":
        return {"bias": (vocabulary_size,)}
    if head == "projection":
        return _transform_shapes(width, width)
    if head == "main_masked_lm_head":
        return _transform_shapes(width, width) | {"bias": (vocabulary_size,)}
    if head == "masked_lm_head":
        shapes = _transform_shapes(auxiliary.hidden_dim, auxiliary.embedding_dim)
        return shapes | {"bias": (vocabulary_size,)}
    if head == "question_answerer":
        return {"output.kernel": (width, 2), "output.bias": (2,)}
    inner = len(checkpoint.read("classifier.dense.weight"))
    labels = len(checkpoint.read("classifier.out_proj.weight"))
    return {
        "dense.kernel": (width, inner),
        "dense.bias": (inner,),
        "output.kernel": (inner, labels),
        "output.bias": (labels,),
    }


def _transform_shapes(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        "dense.kernel": (inputs, outputs),
        "dense.bias": (outputs,),
        "norm.gamma": (outputs,),
        "norm.beta": (outputs,),
    }

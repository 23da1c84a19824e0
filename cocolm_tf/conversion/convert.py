"""Released checkpoints to presets, and presets to released checkpoints."""

import dataclasses
import json
import os
from typing import Any

import keras
import numpy as np

from cocolm_tf.conversion.architecture import (
    FILENAME,
    auxiliary_arguments,
    backbone_arguments,
    configuration_of,
    read_configuration,
    read_json,
)
from cocolm_tf.conversion.checkpoint import Checkpoint, find_weights
from cocolm_tf.conversion.layout import (
    AUXILIARY,
    HEADS,
    POSITIONS,
    WORDS,
    Entry,
    encoder_entries,
    head_entries,
    released_name,
    table_entries,
)
from cocolm_tf.conversion.tensor_files import (
    FORMATS,
    Tensor,
    has_pytorch,
    open_tensors,
    write_tensors,
)
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.output_folder import check_output_folder, new_folder
from cocolm_tf.tokenization.tokenizer import (
    CONFIG_FILENAME,
    DICTIONARY_FILENAME,
    MODEL_FILENAME,
    CocoLMTokenizer,
)
from cocolm_tf.tokenization.vocabulary import MODEL_FILENAME as RELEASED_MODEL_FILENAME
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.model_card import Facts, write_model_card
from cocolm_tf.training.preset import (
    AUXILIARY_DIRECTORY,
    HEADS_FILENAME,
    read_backbone,
    write_models,
)
from cocolm_tf.training.pretraining_card import describe_encoder

TASK_HEADS_FILENAME = "task_heads.npz"
TASK_HEADS = ("classifier", "question_answerer")
_TOKENIZER_CONFIGURATION = "tokenizer_config.json"

# Written a second time by PyTorch, where one matrix serves several layers.
_TIED_TO_WORDS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "auxiliary.lm_head.weight",
    "auxiliary.lm_head.decoder.weight",
)
_COPY_BIAS = "binary_head.out_proj.bias"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did with each tensor.

    Args:
        source: Where the tensors came from.
        used: The released classes' name of each tensor that was converted, by the source's.
        unused: Tensors that were not, and why not, where that is known.
        notes: What else is worth knowing.

    Example:
    ```python
    print(convert_to_preset("released", "converted").text())
    ```
    """

    source: str
    used: dict[str, str]
    unused: dict[str, str]
    notes: tuple[str, ...]

    def text(self) -> str:
        """Lays it out for reading."""
        lines = [f"{self.source}: {len(self.used)} tensors used, {len(self.unused)} not"]
        lines += [
            f"not used: {name}" + (f" ({reason})" if reason else "")
            for name, reason in self.unused.items()
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def convert_to_preset(official: str, preset: str, overwrite: bool = False) -> Conversion:
    """Makes a preset of a released checkpoint.

    The preset has all that the checkpoint has: the main model, the tokenizer, the auxiliary model,
    and the heads of pretraining and of tasks.

    Args:
        official: A folder in the released Hugging Face-style format (`config.json`, weights as
            `model.safetensors`, `weights.npz` or `pytorch_model.bin`, and `sp.model` and
            `dict.txt`), or in fairseq's (`model.pt`); or the file of weights in it.
        preset: The preset; it appears when it is complete.
        overwrite: Whether to replace `preset` if it is not empty.

    Returns:
        What became of each tensor.

    Raises:
        UserError: If a file is missing or damaged, or a tensor is missing or of another shape.

    Example:
    ```python
    conversion = convert_to_preset("released", "converted")
    backbone = CocoLMBackbone.from_preset("converted")
    ```
    """
    check_output_folder(preset, overwrite)
    path = find_weights(official)
    folder = os.path.dirname(path)
    checkpoint = Checkpoint(open_tensors(path))
    configuration = read_configuration(folder, checkpoint)
    tokenizer = _read_tokenizer(folder, configuration["vocab_size"])
    if tokenizer is None:
        checkpoint.notes.append(f"{folder} has no {RELEASED_MODEL_FILENAME}: no tokenizer")

    backbone = _build(backbone_arguments(configuration), os.path.join(folder, FILENAME))
    _load(table_entries(backbone), checkpoint)
    _load(encoder_entries(backbone), checkpoint)
    auxiliary = _read_auxiliary(backbone, configuration, checkpoint)
    heads = {
        head: variables
        for head in HEADS
        if (variables := _read_head(head, configuration, auxiliary, checkpoint))
    }
    for name in _TIED_TO_WORDS:
        if name in checkpoint:
            _check_tied(name, checkpoint)
    if _COPY_BIAS in checkpoint:
        value = float(checkpoint.read(_COPY_BIAS).ravel()[0])
        checkpoint.explain(_COPY_BIAS, f"{value:.4g}; the paper's copy head has no bias")

    with new_folder(preset) as unfinished:
        write_models(
            unfinished,
            backbone,
            auxiliary,
            {
                f"{head}.{name}": variable
                for head, variables in heads.items()
                if head not in TASK_HEADS
                for name, variable in variables.items()
            },
        )
        task_heads = {head: heads[head] for head in TASK_HEADS if head in heads}
        if task_heads:
            np.savez(
                os.path.join(unfinished, TASK_HEADS_FILENAME),
                **{
                    f"{head}.{name}": np.asarray(variable)
                    for head, variables in task_heads.items()
                    for name, variable in variables.items()
                },
            )
        if tokenizer is not None:
            tokenizer.save_to_preset(unfinished)
        write_model_card(unfinished, _facts(official, preset, backbone))
    return Conversion(path, checkpoint.used, checkpoint.unused(), tuple(checkpoint.notes))


def convert_to_official(
    preset: str, official: str, weights_format: str = "", overwrite: bool = False
) -> Conversion:
    """Writes a preset in the released Hugging Face-style format.

    Args:
        preset: The preset.
        official: The folder; it appears when it is complete.
        weights_format: `bin`, which the released classes load and which takes PyTorch,
            `safetensors` or `npz`. Nothing: `bin` where PyTorch is installed, else `safetensors`.
        overwrite: Whether to replace `official` if it is not empty.

    Returns:
        What became of each weight.

    Raises:
        UserError: If there is no preset, or the released classes cannot hold such a model.

    Example:
    ```python
    convert_to_official("runs/first/preset", "released", weights_format="safetensors")
    ```
    """
    check_output_folder(official, overwrite)
    if not os.path.isfile(os.path.join(preset, FILENAME)):
        raise UserError(f"--preset={preset} is not a preset: it has no {FILENAME}.")
    notes = []
    if not weights_format:
        weights_format = "bin" if has_pytorch() else "safetensors"
        if weights_format != "bin":
            notes.append(
                f"PyTorch is not installed, so the weights are {FORMATS[weights_format]}; the "
                f"released classes read {FORMATS['bin']}"
            )
    backbone = read_backbone(preset)
    entries = [*table_entries(backbone), *encoder_entries(backbone)]
    auxiliary = None
    if os.path.isdir(os.path.join(preset, AUXILIARY_DIRECTORY)):
        auxiliary = read_backbone(os.path.join(preset, AUXILIARY_DIRECTORY))
        if not _same_tables(backbone, auxiliary):
            entries += table_entries(auxiliary, AUXILIARY)
        entries += encoder_entries(auxiliary, AUXILIARY)
    heads, unknown = _read_preset_heads(preset)
    for head, variables in heads.items():
        entries += head_entries(head, variables)

    configuration = configuration_of(backbone, auxiliary, need_pooler="projection" in heads)
    if "classifier" in heads:
        configuration["num_labels"] = heads["classifier"]["output.bias"].shape[0]
    tensors = _tensors(entries)
    with new_folder(official) as unfinished:
        write_tensors(os.path.join(unfinished, FORMATS[weights_format]), tensors)
        _write_json(os.path.join(unfinished, FILENAME), configuration)
        if os.path.isfile(os.path.join(preset, CONFIG_FILENAME)):
            _write_tokenizer(load_vocabulary(preset), unfinished)
        else:
            notes.append(f"{preset} has no {CONFIG_FILENAME}: no tokenizer")
    used = {name: name for name in tensors}
    return Conversion(preset, used, dict.fromkeys(unknown, "not a head of COCO-LM"), tuple(notes))


def _facts(official: str, preset: str, backbone: CocoLMBackbone) -> Facts:
    """What a card can say of a checkpoint that others trained."""
    return Facts(
        os.path.basename(os.path.abspath(preset)),
        description=f"Converted from a checkpoint in the released format, `{official}`.",
        model_type=describe_encoder(backbone),
        usage=f'backbone = cocolm_tf.CocoLMBackbone.from_preset("{preset}")',
    )


def _build(arguments: dict[str, Any], path: str, **kwargs: Any) -> CocoLMBackbone:
    try:
        return CocoLMBackbone(**arguments, **kwargs)
    except ValueError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def _load(entries: Any, checkpoint: Checkpoint) -> None:
    for entry in entries:
        entry.assign([checkpoint.take(name, entry.shape) for name in entry.names])


def _read_auxiliary(
    backbone: CocoLMBackbone, configuration: dict[str, Any], checkpoint: Checkpoint
) -> CocoLMBackbone | None:
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
        auxiliary = _build(arguments, checkpoint.path)
        for table, entry in zip(
            table_entries(backbone), table_entries(auxiliary, AUXILIARY), strict=True
        ):
            if table.names[0] in own:
                _load([entry], checkpoint)
            else:
                entry.variables[0].assign(table.variables[0])
    else:
        auxiliary = _build(arguments, checkpoint.path, embeddings_of=backbone)
    _load(encoder_entries(auxiliary, AUXILIARY), checkpoint)
    return auxiliary


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
) -> dict[str, keras.Variable]:
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


def _check_tied(name: str, checkpoint: Checkpoint) -> None:
    if _differs(name, WORDS, checkpoint):
        raise UserError(
            f"{checkpoint.path}: {name} differs from the word embeddings; COCO-LM's LM heads "
            "are tied to them."
        )


def _read_preset_heads(preset: str) -> tuple[dict[str, dict[str, keras.Variable]], list[str]]:
    """The heads of a preset, and what else stands among them."""
    arrays: dict[str, np.ndarray] = {}
    for filename in (HEADS_FILENAME, TASK_HEADS_FILENAME):
        path = os.path.join(preset, filename)
        if os.path.isfile(path):
            file = open_tensors(path)
            arrays |= {name: file.read(name) for name in file.names}
    heads = {}
    for head, names in HEADS.items():
        if any(f"{head}.{name}" in arrays for name in names):
            heads[head] = {name: keras.Variable(arrays.pop(f"{head}.{name}")) for name in names}
    return heads, sorted(arrays)


def _same_tables(backbone: CocoLMBackbone, auxiliary: CocoLMBackbone) -> bool:
    return all(
        np.array_equal(one.variables[0], other.variables[0])
        for one, other in zip(table_entries(backbone), table_entries(auxiliary), strict=True)
    )


def _tensors(entries: list[Entry]) -> dict[str, Tensor]:
    return {
        released_name(name): tensor for entry in entries for name, tensor in entry.tensors().items()
    }


def _read_tokenizer(folder: str, vocabulary_size: int) -> CocoLMTokenizer | None:
    files = [os.path.join(folder, n) for n in (RELEASED_MODEL_FILENAME, DICTIONARY_FILENAME)]
    if not any(map(os.path.isfile, files)):
        return None
    for path in files:
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing: a vocabulary is two files.")
    configuration = os.path.join(folder, _TOKENIZER_CONFIGURATION)
    lowercase = False
    if os.path.isfile(configuration):
        lowercase = bool(read_json(configuration).get("do_lower_case", False))
    tokenizer = CocoLMTokenizer(*files, lowercase=lowercase)
    if tokenizer.vocabulary_size() > vocabulary_size:
        raise UserError(
            f"{files[1]} makes a vocabulary of {tokenizer.vocabulary_size()}, the model's has "
            f"{vocabulary_size}."
        )
    return tokenizer


def _write_tokenizer(tokenizer: CocoLMTokenizer, folder: str) -> None:
    tokenizer.save_assets(folder)
    os.rename(os.path.join(folder, MODEL_FILENAME), os.path.join(folder, RELEASED_MODEL_FILENAME))
    _write_json(
        os.path.join(folder, _TOKENIZER_CONFIGURATION), {"do_lower_case": tokenizer.lowercase}
    )


def _write_json(path: str, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")

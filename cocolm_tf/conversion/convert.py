"""Converts released checkpoints to presets, and presets to released checkpoints."""

import dataclasses
import os

import keras
import numpy as np

from cocolm_tf import files
from cocolm_tf.conversion.architecture import (
    FILENAME,
    configuration_of,
    read_configuration,
    read_label_names,
)
from cocolm_tf.conversion.checkpoint import Checkpoint, find_weights
from cocolm_tf.conversion.layout import (
    AUXILIARY,
    HEADS,
    Entry,
    encoder_entries,
    head_entries,
    released_name,
    table_entries,
)
from cocolm_tf.conversion.parts import (
    TASK_HEADS,
    Head,
    label_names_of,
    read_auxiliary,
    read_heads,
    read_main,
    read_task_heads,
    read_tokenizer,
    write_classifier,
    write_task_heads,
    write_tokenizer,
)
from cocolm_tf.conversion.tensor_files import (
    FORMATS,
    Tensor,
    check_finite,
    has_pytorch,
    open_tensors,
    write_json,
    write_tensors,
)
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME
from cocolm_tf.tokenization.vocabulary import MODEL_FILENAME, load_vocabulary
from cocolm_tf.training.model_card import Facts, write_model_card
from cocolm_tf.training.preset import (
    AUXILIARY_DIRECTORY,
    read_backbone,
    saved_heads,
    write_models,
)
from cocolm_tf.training.pretraining_card import describe_encoder


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
        """Formats it for a terminal."""
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
    files.check_output_folder(preset, overwrite)
    folder, weights = os.path.split(find_weights(official))
    with files.local_copy(folder or ".") as local:
        conversion = _convert_to_preset(local, weights, official, preset, overwrite)
        notes = tuple(note.replace(local, folder) for note in conversion.notes)
    return dataclasses.replace(conversion, source=files.join(folder, weights), notes=notes)


def _convert_to_preset(
    folder: str, weights: str, official: str, preset: str, overwrite: bool
) -> Conversion:
    path = os.path.join(folder, weights)
    checkpoint = Checkpoint(open_tensors(path))
    configuration = read_configuration(folder, checkpoint)
    tokenizer = read_tokenizer(folder, configuration["vocab_size"])
    if tokenizer is None:
        checkpoint.notes.append(f"{folder} has no {MODEL_FILENAME}: no tokenizer")
    else:
        configuration["vocab_size"] = checkpoint.without_padding(
            configuration["vocab_size"], tokenizer.vocabulary_size()
        )

    backbone = read_main(configuration, checkpoint)
    auxiliary = read_auxiliary(backbone, configuration, checkpoint)
    heads = read_heads(configuration, auxiliary, checkpoint)
    task_heads = {head: heads.pop(head) for head in TASK_HEADS if head in heads}

    with files.new_folder(preset, overwrite, FILENAME) as unfinished:
        write_models(
            unfinished,
            backbone,
            auxiliary,
            {
                f"{head}.{name}": variable
                for head, variables in heads.items()
                for name, variable in variables.items()
            },
        )
        write_task_heads(unfinished, task_heads)
        if "classifier" in task_heads:
            head = task_heads["classifier"]
            names = read_label_names(configuration, head["output.bias"].shape[0], checkpoint.notes)
            write_classifier(unfinished, backbone, tokenizer, head, names)
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
    files.check_output_folder(official, overwrite)
    if not files.is_file(os.path.join(preset, FILENAME)):
        raise UserError(f"--preset={preset} is not a preset: it has no {FILENAME}.")
    notes = []
    if not weights_format:
        weights_format = "bin" if has_pytorch() else "safetensors"
        if weights_format != "bin":
            notes.append(
                f"PyTorch is not installed, so the weights are {FORMATS[weights_format]}; the "
                f"released classes read {FORMATS['bin']}"
            )
    with files.local_copy(preset) as local:
        return _convert_to_official(local, preset, official, weights_format, overwrite, notes)


def _convert_to_official(
    folder: str, preset: str, official: str, weights_format: str, overwrite: bool, notes: list[str]
) -> Conversion:
    backbone = read_backbone(folder)
    entries = [*table_entries(backbone), *encoder_entries(backbone)]
    auxiliary = None
    if files.is_dir(os.path.join(folder, AUXILIARY_DIRECTORY)):
        auxiliary = read_backbone(os.path.join(folder, AUXILIARY_DIRECTORY))
        if not _same_tables(backbone, auxiliary):
            entries += table_entries(auxiliary, AUXILIARY)
        entries += encoder_entries(auxiliary, AUXILIARY)
    heads, unknown = read_preset_heads(folder)
    for head, variables in heads.items():
        entries += head_entries(head, variables)

    configuration = configuration_of(backbone, auxiliary, need_pooler="projection" in heads)
    if "classifier" in heads:
        configuration["num_labels"] = heads["classifier"]["output.bias"].shape[0]
        if names := label_names_of(folder):
            configuration["id2label"] = {str(number): name for number, name in enumerate(names)}
            configuration["label2id"] = {name: number for number, name in enumerate(names)}
    tensors = _tensors(entries)
    with files.new_folder(official, overwrite, FILENAME) as unfinished:
        write_tensors(os.path.join(unfinished, FORMATS[weights_format]), tensors)
        write_json(os.path.join(unfinished, FILENAME), configuration)
        if files.is_file(os.path.join(folder, CONFIG_FILENAME)):
            write_tokenizer(load_vocabulary(folder), unfinished)
        else:
            notes.append(f"{preset} has no {CONFIG_FILENAME}: no tokenizer")
    used = {name: name for name in tensors}
    return Conversion(preset, used, dict.fromkeys(unknown, "not a head of COCO-LM"), tuple(notes))


def _facts(official: str, preset: str, backbone: CocoLMBackbone) -> Facts:
    """The model card's facts of a checkpoint that others trained."""
    return Facts(
        files.name(preset),
        description=f"Converted from a checkpoint in the released format, `{official}`.",
        model_type=describe_encoder(backbone),
        usage=f'backbone = cocolm_tf.CocoLMBackbone.from_preset("{preset}")',
    )


def read_preset_heads(preset: str) -> tuple[dict[str, Head], list[str]]:
    """The heads of a preset, and what else stands among them."""
    arrays: dict[str, np.ndarray] = read_task_heads(preset) | saved_heads(preset)
    heads = {}
    for head, names in HEADS.items():
        found = [name for name in names if f"{head}.{name}" in arrays]
        if found:
            heads[head] = {name: keras.Variable(arrays.pop(f"{head}.{name}")) for name in found}
    return heads, sorted(arrays)


def _same_tables(backbone: CocoLMBackbone, auxiliary: CocoLMBackbone) -> bool:
    return all(
        np.array_equal(one.variables[0], other.variables[0])
        for one, other in zip(table_entries(backbone), table_entries(auxiliary), strict=True)
    )


def _tensors(entries: list[Entry]) -> dict[str, Tensor]:
    return {
        released_name(name): _finite(name, tensor)
        for entry in entries
        for name, tensor in entry.tensors().items()
    }


def _finite(name: str, tensor: Tensor) -> Tensor:
    """A tensor that is checked for non-finite numbers when it is made."""

    def make() -> np.ndarray:
        array = tensor.make()
        check_finite(array, f"the preset's {name}")
        return array

    return Tensor(tensor.shape, make)

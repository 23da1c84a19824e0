"""Converts released checkpoints to presets, and presets to released checkpoints."""

import dataclasses
import json
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from cocolm_tf import files
from cocolm_tf.conversion.checkpoint import (
    INTERMEDIATE,
    Checkpoint,
    find_weights,
    read_configuration,
)
from cocolm_tf.conversion.layout import (
    AUXILIARY,
    CONFIG_FILENAME,
    HEADS,
    POSITIONS,
    RATES,
    RELATIVE_POSITIONS,
    SIZES,
    WORDS,
    Entry,
    configuration_of,
    configured_labels,
    encoder_entries,
    head_entries,
    released_tensors,
    table_entries,
)
from cocolm_tf.conversion.tensor_files import (
    FORMATS,
    has_pytorch,
    open_tensors,
    read_json,
    write_json,
    write_tensors,
)
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import (
    CocoLMTextClassifier,
    CocoLMTextClassifierPreprocessor,
)
from cocolm_tf.finetuning.models.text_embedder import CocoLMTextEmbedder
from cocolm_tf.finetuning.presets import load_task
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization import tokenizer as tokenizers
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import MODEL_FILENAME, load_vocabulary
from cocolm_tf.training.model_card import Facts, write_model_card
from cocolm_tf.training.preset import (
    AUXILIARY_DIRECTORY,
    read_backbone,
    saved_heads,
    write_models,
)
from cocolm_tf.training.pretraining_card import describe_encoder

TASK_HEADS = ("classifier", "question_answerer")
TASK_HEADS_FILENAME = "task_heads.npz"
_TASK_FILENAME = "task.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"

# Duplicates in PyTorch's files, where one matrix serves several layers.
_TIED_TO_WORDS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "auxiliary.lm_head.weight",
    "auxiliary.lm_head.decoder.weight",
)

# The variables of a head, by their names in `HEADS`.
Head = dict[str, keras.Variable]


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

    Args:
        official: A folder with the weights, `config.json` and the vocabulary, in the released
            Hugging Face-style format or in fairseq's; or the file of weights in such a folder.
        preset: The folder of the preset; it appears when it is complete.
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
        checkpoint = Checkpoint(open_tensors(os.path.join(local, weights)))
        configuration = read_configuration(checkpoint)
        tokenizer = _read_tokenizer(local, configuration["vocab_size"])
        if tokenizer is None:
            checkpoint.notes.append(f"{folder or '.'} has no {MODEL_FILENAME}: no tokenizer")
        else:
            configuration["vocab_size"] = checkpoint.without_padding(
                configuration["vocab_size"], tokenizer.vocabulary_size()
            )
        backbone = _build(_backbone_arguments(configuration), checkpoint)
        _load([*table_entries(backbone), *encoder_entries(backbone)], checkpoint)
        auxiliary = _read_auxiliary(backbone, configuration, checkpoint)
        heads = _read_heads(configuration, auxiliary, checkpoint)
        task_heads = {head: heads.pop(head) for head in TASK_HEADS if head in heads}

        with files.new_folder(preset, overwrite, CONFIG_FILENAME) as unfinished:
            write_models(unfinished, backbone, auxiliary, _by_full_name(heads))
            if task_heads:
                path = os.path.join(unfinished, TASK_HEADS_FILENAME)
                write_tensors(path, _by_full_name(task_heads))
            if "classifier" in task_heads:
                head = task_heads["classifier"]
                classes = head["output.bias"].shape[0]
                names = read_label_names(configuration, classes, checkpoint.notes)
                _write_classifier(unfinished, backbone, tokenizer, head, names)
            if tokenizer is not None:
                tokenizer.save_to_preset(unfinished)
            facts = Facts(
                files.name(preset),
                description=f"Converted from a checkpoint in the released format, `{official}`.",
                model_type=describe_encoder(backbone),
                usage=f'backbone = cocolm_tf.CocoLMBackbone.from_preset("{preset}")',
            )
            write_model_card(unfinished, facts)
    source = files.join(folder, weights)
    return Conversion(source, checkpoint.used, checkpoint.unused(), tuple(checkpoint.notes))


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
    if not files.is_file(os.path.join(preset, CONFIG_FILENAME)):
        raise UserError(f"--preset={preset} is not a preset: it has no {CONFIG_FILENAME}.")
    notes = []
    if not weights_format:
        weights_format = "bin" if has_pytorch() else "safetensors"
        if weights_format != "bin":
            notes.append(
                f"PyTorch is not installed, so the weights are {FORMATS[weights_format]}; the "
                f"released classes read {FORMATS['bin']}"
            )
    with files.local_copy(preset) as local:
        backbone, auxiliary = read_backbone(local), None
        entries = [*table_entries(backbone), *encoder_entries(backbone)]
        if files.is_dir(os.path.join(local, AUXILIARY_DIRECTORY)):
            auxiliary = read_backbone(os.path.join(local, AUXILIARY_DIRECTORY))
            if not _same_tables(backbone, auxiliary):
                entries += table_entries(auxiliary, AUXILIARY)
            entries += encoder_entries(auxiliary, AUXILIARY)
        heads, unknown = preset_heads(local)
        for head, variables in heads.items():
            entries += head_entries(head, variables)

        configuration = configuration_of(backbone, auxiliary, need_pooler="projection" in heads)
        if "classifier" in heads:
            configuration["num_labels"] = heads["classifier"]["output.bias"].shape[0]
            if names := label_names_of(local):
                configuration |= configured_labels(names)
        tensors = released_tensors(entries)
        with files.new_folder(official, overwrite, CONFIG_FILENAME) as unfinished:
            write_tensors(os.path.join(unfinished, FORMATS[weights_format]), tensors)
            write_json(os.path.join(unfinished, CONFIG_FILENAME), configuration)
            if files.is_file(os.path.join(local, tokenizers.CONFIG_FILENAME)):
                write_tokenizer(load_vocabulary(local), unfinished)
            else:
                notes.append(f"{preset} has no {tokenizers.CONFIG_FILENAME}: no tokenizer")
    used = {name: name for name in tensors}
    return Conversion(preset, used, dict.fromkeys(unknown, "not a head of COCO-LM"), tuple(notes))


# --- The models of a released checkpoint ---


def _backbone_arguments(configuration: dict[str, Any]) -> dict[str, Any]:
    return {name: configuration[key] for key, name in (SIZES | RATES).items()}


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
    """Whether a tensor is there and no duplicate of another; a duplicate counts as used."""
    if name not in checkpoint:
        return False
    if not np.array_equal(checkpoint.read(name), checkpoint.read(original)):
        return True
    checkpoint.use(name)
    return False


def _read_auxiliary(
    backbone: CocoLMBackbone, configuration: dict[str, Any], checkpoint: Checkpoint
) -> CocoLMBackbone | None:
    """Builds the auxiliary model of a checkpoint."""
    if not checkpoint.layers(AUXILIARY):
        return None
    if f"{AUXILIARY}embed_linear.weight" in checkpoint:
        checkpoint.notes.append(
            "the auxiliary model is left out: its words pass a linear layer before their "
            "positions are added, and ours would after"
        )
        return None

    def width(name: str) -> int:
        return len(checkpoint.read(AUXILIARY + name))

    given = {key: configuration[key] for key in ("num_attention_heads", "hidden_dropout_prob")}
    given |= configuration.get("auxiliary", {})
    has_bias = AUXILIARY + RELATIVE_POSITIONS in checkpoint
    arguments = _backbone_arguments(configuration) | {
        "num_layers": checkpoint.layers(AUXILIARY),
        "num_heads": given["num_attention_heads"],
        # After the projection, where there is one.
        "hidden_dim": width("encoder.layer.0.output.LayerNorm.weight"),
        "intermediate_dim": width(INTERMEDIATE),
        "dropout": given["hidden_dropout_prob"],
        "relative_position_bins": width(RELATIVE_POSITIONS) if has_bias else 0,
        "embedding_dim": width("embeddings.LayerNorm.weight"),
    }
    own = [name for name in (WORDS, POSITIONS) if _differs(AUXILIARY + name, name, checkpoint)]
    if own:
        auxiliary = _build(arguments, checkpoint)
        tables = zip(table_entries(backbone), table_entries(auxiliary, AUXILIARY), strict=True)
        for table, entry in tables:
            if table.names[0] in own:
                _load([entry], checkpoint)
            else:
                entry.variables[0].assign(table.variables[0])
    else:
        auxiliary = _build(arguments, checkpoint, embeddings_of=backbone)
    _load(encoder_entries(auxiliary, AUXILIARY), checkpoint)
    return auxiliary


def _read_heads(
    configuration: dict[str, Any], auxiliary: CocoLMBackbone | None, checkpoint: Checkpoint
) -> dict[str, Head]:
    """Reads those heads that a checkpoint has."""
    sizes = {"V": configuration["vocab_size"], "H": configuration["hidden_size"], "1": 1, "2": 2}
    if auxiliary is not None:
        sizes |= {"A": auxiliary.hidden_dim, "E": auxiliary.embedding_dim}
    heads = {}
    for head, variables in HEADS.items():
        names = [name for _, released in variables.values() for name in released]
        present = [name for name in names if name in checkpoint]
        needed = head == "projection" and configuration["need_pooler"]
        if not (needed or present) or (head == "masked_lm_head" and auxiliary is None):
            continue
        if head == "classifier":
            activation = checkpoint.settings.get("pooler_activation_fn", "gelu")
            if activation != "gelu":
                for name in present:
                    checkpoint.explain(name, f"its activation is {activation}, ours is GELU")
                continue
            sizes["I"] = len(checkpoint.read("classifier.dense.weight"))
            sizes["L"] = len(checkpoint.read("classifier.out_proj.weight"))
        heads[head] = {}
        for name, (shape, released) in variables.items():
            if head != "copy_head" or name == "kernel" or released[0] in checkpoint:
                zeros = np.zeros([sizes[dimension] for dimension in shape], np.float32)
                heads[head][name] = keras.Variable(zeros, name=name.replace(".", "_"))
        _load(head_entries(head, heads[head]), checkpoint)
    for name in _TIED_TO_WORDS:
        if _differs(name, WORDS, checkpoint):
            raise UserError(
                f"{checkpoint.path}: {name} differs from the word embeddings; COCO-LM's LM heads "
                "are tied to them."
            )
    return heads


def read_label_names(
    configuration: dict[str, Any], classes: int, notes: list[str]
) -> list[str] | None:
    """Reads the names of a classifier's classes."""
    given = configuration.get("id2label")
    if not isinstance(given, dict):
        return None
    numbers = [str(number) for number in range(classes)]
    if set(given) != set(numbers) or len(set(map(str, given.values()))) != classes:
        notes.append(f"id2label does not name the {classes} classes of the head: it is left out")
        return None
    names = [str(given[number]) for number in numbers]
    return None if names == [f"LABEL_{number}" for number in numbers] else names


def _read_tokenizer(folder: str, vocabulary_size: int) -> CocoLMTokenizer | None:
    """Reads the tokenizer of a released checkpoint."""
    names = (MODEL_FILENAME, tokenizers.DICTIONARY_FILENAME)
    paths = [os.path.join(folder, name) for name in names]
    if not any(map(files.is_file, paths)):
        return None
    for path in paths:
        if not files.is_file(path):
            raise UserError(f"{path} is missing: a vocabulary is two files.")
    config = os.path.join(folder, _TOKENIZER_CONFIG)
    given = read_json(config) if files.is_file(config) else {}
    tokenizer = CocoLMTokenizer(*paths, lowercase=bool(given.get("do_lower_case", False)))
    if tokenizer.vocabulary_size() > vocabulary_size:
        raise UserError(
            f"{paths[1]} makes a vocabulary of {tokenizer.vocabulary_size()}, the model's has "
            f"{vocabulary_size}."
        )
    return tokenizer


def write_tokenizer(tokenizer: CocoLMTokenizer, folder: str) -> None:
    """Writes a tokenizer into the folder of a released checkpoint."""
    tokenizer.save_assets(folder)
    written = os.path.join(folder, tokenizers.MODEL_FILENAME)
    files.rename(written, os.path.join(folder, MODEL_FILENAME))
    write_json(os.path.join(folder, _TOKENIZER_CONFIG), {"do_lower_case": tokenizer.lowercase})


# --- The heads of a preset ---


def _by_full_name(heads: dict[str, Head]) -> dict[str, np.ndarray]:
    return {
        f"{head}.{name}": np.asarray(variable)
        for head, variables in heads.items()
        for name, variable in variables.items()
    }


def _write_classifier(
    directory: str,
    backbone: CocoLMBackbone,
    tokenizer: CocoLMTokenizer | None,
    head: Head,
    label_names: list[str] | None,
) -> None:
    """Writes a classifier's preset as fine-tuning would, for every program to take it."""
    inner, classes = head["output.kernel"].shape
    preprocessor = None
    if tokenizer is not None:
        preprocessor = CocoLMTextClassifierPreprocessor(tokenizer, backbone.max_sequence_length)
    classifier = CocoLMTextClassifier(
        backbone, classes, preprocessor, label_names=label_names, hidden_dim=inner
    )
    for name, variable in _task_head(classifier)["classifier"].items():
        variable.assign(head[name])
    classifier.save_to_preset(directory)


def _task_head(task: keras.Model) -> dict[str, Head]:
    """The head of a fine-tuned model; none of an embedder, which is its encoder."""
    if isinstance(task, CocoLMTextClassifier):
        dense, output = task.pooled_dense, task.output_dense
        head = {"dense.kernel": dense.kernel, "dense.bias": dense.bias}
        return {"classifier": head | {"output.kernel": output.kernel, "output.bias": output.bias}}
    if isinstance(task, CocoLMQuestionAnswerer):
        output = task.answer_logits
        return {"question_answerer": {"output.kernel": output.kernel, "output.bias": output.bias}}
    return {}


def preset_heads(directory: str) -> tuple[dict[str, Head], list[str]]:
    """The heads of a preset, and what else stands among them."""
    arrays = saved_heads(directory)
    path = os.path.join(directory, TASK_HEADS_FILENAME)
    if files.is_file(path):
        file = open_tensors(path)
        arrays |= {name: file.read(name) for name in file.names}
    if files.is_file(os.path.join(directory, _TASK_FILENAME)):
        # Tokenizing is not wanted, and a converted preset may have no tokenizer.
        kinds = [CocoLMTextClassifier, CocoLMQuestionAnswerer, CocoLMTextEmbedder]
        arrays |= _by_full_name(_task_head(load_task(directory, kinds, preprocessor=None)))
    heads = {}
    for head, names in HEADS.items():
        found = [name for name in names if f"{head}.{name}" in arrays]
        if found:
            heads[head] = {name: keras.Variable(arrays.pop(f"{head}.{name}")) for name in found}
    return heads, sorted(arrays)


def label_names_of(directory: str) -> list[str] | None:
    """Reads the names of a preset's classes; None where it has none."""
    path = os.path.join(directory, _TASK_FILENAME)
    if not files.is_file(path):
        return None
    return json.loads(files.read_text(path)).get("config", {}).get("label_names")


def _same_tables(backbone: CocoLMBackbone, auxiliary: CocoLMBackbone) -> bool:
    return all(
        np.array_equal(one.variables[0], other.variables[0])
        for one, other in zip(table_entries(backbone), table_entries(auxiliary), strict=True)
    )

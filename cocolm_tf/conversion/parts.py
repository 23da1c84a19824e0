"""The parts of a model: read from a released checkpoint, and in a preset."""

import json
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from cocolm_tf import files
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
from cocolm_tf.conversion.tensor_files import open_tensors, read_json, write_json
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import (
    CocoLMTextClassifier,
    CocoLMTextClassifierPreprocessor,
)
from cocolm_tf.finetuning.models.text_embedder import CocoLMTextEmbedder
from cocolm_tf.finetuning.presets import load_task
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import (
    DICTIONARY_FILENAME,
    MODEL_FILENAME,
    CocoLMTokenizer,
)
from cocolm_tf.tokenization.vocabulary import MODEL_FILENAME as RELEASED_MODEL_FILENAME

# Duplicates in PyTorch's files, where one matrix serves several layers.
_TIED_TO_WORDS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "auxiliary.lm_head.weight",
    "auxiliary.lm_head.decoder.weight",
)

# The variables of a head, by their names in `layout.HEADS`.
Head = dict[str, keras.Variable]

TASK_HEADS = ("classifier", "question_answerer")
TASK_HEADS_FILENAME = "task_heads.npz"
_TASK_FILENAME = "task.json"
_CONFIGURATION = "tokenizer_config.json"


def read_main(configuration: dict[str, Any], checkpoint: Checkpoint) -> CocoLMBackbone:
    """Builds the main model of a checkpoint."""
    backbone = _build(backbone_arguments(configuration), checkpoint)
    _load(table_entries(backbone), checkpoint)
    _load(encoder_entries(backbone), checkpoint)
    return backbone


def read_auxiliary(
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
    """Reads those heads that a checkpoint has."""
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
    """Whether a tensor is there and no duplicate of another; a duplicate counts as used."""
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
        has_bias = HEADS[head]["bias"][0] in checkpoint
        return {"kernel": (width,)} | ({"bias": (1,)} if has_bias else {})
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


def write_task_heads(directory: str, heads: dict[str, dict[str, keras.Variable]]) -> None:
    """Writes the heads of tasks into a preset."""
    arrays = {
        f"{head}.{name}": np.asarray(variable)
        for head, variables in heads.items()
        for name, variable in variables.items()
    }
    if arrays:
        np.savez(os.path.join(directory, TASK_HEADS_FILENAME), **arrays)


def write_classifier(
    directory: str,
    backbone: CocoLMBackbone,
    tokenizer: CocoLMTokenizer | None,
    head: dict[str, keras.Variable],
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
    classifier.pooled_dense.set_weights([head["dense.kernel"], head["dense.bias"]])
    classifier.output_dense.set_weights([head["output.kernel"], head["output.bias"]])
    classifier.save_to_preset(directory)


def label_names_of(directory: str) -> list[str] | None:
    """Reads the names of a preset's classes; None where it has none."""
    path = os.path.join(directory, _TASK_FILENAME)
    if not files.is_file(path):
        return None
    return json.loads(files.read_text(path)).get("config", {}).get("label_names")


def read_task_heads(directory: str) -> dict[str, np.ndarray]:
    """Reads the heads of tasks from a preset."""
    path, heads = os.path.join(directory, TASK_HEADS_FILENAME), {}
    if files.is_file(path):
        file = open_tensors(path)
        heads = {name: file.read(name) for name in file.names}
    if files.is_file(os.path.join(directory, _TASK_FILENAME)):
        heads |= {name: np.asarray(value) for name, value in _fine_tuned_head(directory).items()}
    return heads


def _fine_tuned_head(directory: str) -> dict[str, keras.Variable]:
    # Tokenizing is not wanted, and a converted preset may have no tokenizer.
    kinds = [CocoLMTextClassifier, CocoLMQuestionAnswerer, CocoLMTextEmbedder]
    task = load_task(directory, kinds, preprocessor=None)
    if isinstance(task, CocoLMTextEmbedder):
        return {}  # An embedder is its encoder.
    if isinstance(task, CocoLMTextClassifier):
        return {
            "classifier.dense.kernel": task.pooled_dense.kernel,
            "classifier.dense.bias": task.pooled_dense.bias,
            "classifier.output.kernel": task.output_dense.kernel,
            "classifier.output.bias": task.output_dense.bias,
        }
    return {
        "question_answerer.output.kernel": task.answer_logits.kernel,
        "question_answerer.output.bias": task.answer_logits.bias,
    }


def read_tokenizer(folder: str, vocabulary_size: int) -> CocoLMTokenizer | None:
    """Reads the tokenizer of a released checkpoint."""
    paths = [os.path.join(folder, n) for n in (RELEASED_MODEL_FILENAME, DICTIONARY_FILENAME)]
    if not any(map(files.is_file, paths)):
        return None
    for path in paths:
        if not files.is_file(path):
            raise UserError(f"{path} is missing: a vocabulary is two files.")
    configuration = os.path.join(folder, _CONFIGURATION)
    lowercase = False
    if files.is_file(configuration):
        lowercase = bool(read_json(configuration).get("do_lower_case", False))
    tokenizer = CocoLMTokenizer(*paths, lowercase=lowercase)
    if tokenizer.vocabulary_size() > vocabulary_size:
        raise UserError(
            f"{paths[1]} makes a vocabulary of {tokenizer.vocabulary_size()}, the model's has "
            f"{vocabulary_size}."
        )
    return tokenizer


def write_tokenizer(tokenizer: CocoLMTokenizer, folder: str) -> None:
    """Writes a tokenizer into the folder of a released checkpoint."""
    tokenizer.save_assets(folder)
    released = os.path.join(folder, RELEASED_MODEL_FILENAME)
    files.rename(os.path.join(folder, MODEL_FILENAME), released)
    write_json(os.path.join(folder, _CONFIGURATION), {"do_lower_case": tokenizer.lowercase})

"""The heads of tasks that a preset carries: a classifier's and a question answerer's."""

import json
import os
from typing import Any

import keras
import numpy as np

from cocolm_tf import files
from cocolm_tf.conversion.tensor_files import open_tensors
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.text_classifier_preprocessor import CocoLMTextClassifierPreprocessor
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

TASK_HEADS = ("classifier", "question_answerer")
TASK_HEADS_FILENAME = "task_heads.npz"
_TASK_FILENAME = "task.json"


def write_task_heads(directory: str, heads: dict[str, dict[str, keras.Variable]]) -> None:
    """Writes the heads of tasks into a preset.

    Args:
        directory: The preset.
        heads: The variables of each head, by the names of `layout.HEADS`; none, no file.

    Example:
    ```python
    write_task_heads("converted", {"classifier": variables})
    ```
    """
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
    """Writes a preset of a classifier as fine-tuning would, which every program takes as such.

    Args:
        directory: The preset.
        backbone: The encoder.
        tokenizer: Its tokenizer, if there is one.
        head: The variables by the names of `layout.HEADS`.
        label_names: The classes in order, if they have names.

    Example:
    ```python
    write_classifier("converted", backbone, tokenizer, heads["classifier"], ["bad", "good"])
    ```
    """
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
    """Reads the names of a preset's classes; None where it has none.

    Example:
    ```python
    label_names_of("runs/reviews")  # ["bad", "good"]
    ```
    """
    path = os.path.join(directory, _TASK_FILENAME)
    if not files.is_file(path):
        return None
    return json.loads(files.read_text(path)).get("config", {}).get("label_names")


def read_task_heads(directory: str) -> dict[str, np.ndarray]:
    """Reads the heads of tasks from a preset.

    Args:
        directory: The preset: of a converted checkpoint, or of a task that was fine-tuned.

    Returns:
        Arrays by the head and the name of each variable, as `classifier.output.bias`.

    Raises:
        UserError: If the preset is that of a task without a place in the released format.

    Example:
    ```python
    read_task_heads("converted")["classifier.output.bias"]
    ```
    """
    path, heads = os.path.join(directory, TASK_HEADS_FILENAME), {}
    if files.is_file(path):
        file = open_tensors(path)
        heads = {name: file.read(name) for name in file.names}
    if files.is_file(os.path.join(directory, _TASK_FILENAME)):
        heads |= {name: np.asarray(value) for name, value in _fine_tuned_head(directory).items()}
    return heads


def _fine_tuned_head(directory: str) -> dict[str, keras.Variable]:
    task = _read_task(directory)
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


def _read_task(directory: str) -> CocoLMTextClassifier | CocoLMQuestionAnswerer:
    path = os.path.join(directory, _TASK_FILENAME)
    try:
        name = json.loads(files.read_text(path))["registered_name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not describe a model.") from error
    classes: dict[str, Any] = {
        keras.saving.get_registered_name(one): one
        for one in (CocoLMTextClassifier, CocoLMQuestionAnswerer)
    }
    if name not in classes:
        raise UserError(
            f"{path} describes a {name}, which has no place in the released format: that has "
            f"{' and '.join(classes)}."
        )
    # Tokenizing is not wanted, and a converted preset may have no tokenizer.
    return classes[name].from_preset(directory, preprocessor=None)

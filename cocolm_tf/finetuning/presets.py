"""Presets as programs take them: checked, told apart, and with the weights that are wanted."""

import contextlib
import fnmatch
import json
import os

import numpy as np

from cocolm_tf import files
from cocolm_tf.errors import UserError

_CONFIG_FILENAME = "config.json"
_FETCHED = ("kaggle://", "hf://", "modelscope://")
_BACKBONE = "cocolm_tf>CocoLMBackbone"
# Where `training.preset` and `conversion` keep heads; not imported, as they need TensorFlow.
_HEADS_FILENAME, _LM_BIAS = "pretraining_heads.npz", "lm_head.bias"
_TASK_HEADS_FILENAME = "task_heads.npz"
# What a preset of a fine-tuned task has, with a head of its own.
_TASK_FILENAME = "task.json"
_TASKS = {
    "classifier": "cocolm_tf>CocoLMTextClassifier",
    "question_answerer": "cocolm_tf>CocoLMQuestionAnswerer",
}


def local_preset(preset: str | os.PathLike[str]) -> contextlib.AbstractContextManager[str]:
    """A local path to a preset, see `files.local_copy`; what KerasHub fetches stays as it is."""
    preset = os.fspath(preset)
    fetched = preset.startswith(_FETCHED)
    return contextlib.nullcontext(preset) if fetched else files.local_copy(preset)


def backbone_config(preset: str) -> dict[str, object]:
    """Reads the architecture of a preset's encoder.

    Args:
        preset: The folder.

    Returns:
        The arguments of `CocoLMBackbone`.

    Raises:
        UserError: If the folder is no preset with a `CocoLMBackbone`, its weights and its
            tokenizer.

    Example:
    ```python
    backbone_config("runs/first/preset")["hidden_dim"]
    ```
    """
    path = os.path.join(preset, _CONFIG_FILENAME)
    if not files.is_file(path):
        raise UserError(f"--preset={preset} is not a preset: it has no {_CONFIG_FILENAME}.")
    try:
        config = json.loads(files.read_text(path))
        registered_name, arguments = config["registered_name"], config["config"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not describe a model.") from error
    if registered_name != _BACKBONE:
        raise UserError(f"{path} describes a {registered_name}, not a {_BACKBONE}.")
    names = files.list_dir(preset)
    for pattern, what in (("model*.weights.h5", "weights"), ("tokenizer.json", "tokenizer")):
        if not fnmatch.filter(names, pattern):
            raise UserError(f"--preset={preset} has no {what}: there is no {pattern}.")
    return arguments


def language_model_bias(preset: str) -> np.ndarray:
    """Reads the bias of the language modeling head that the main model was pretrained with.

    Its matrix is the word embeddings, so a preset that has the bias has the head.

    Args:
        preset: A folder.

    Returns:
        [vocabulary_size].

    Raises:
        UserError: If there is none, with the reason why prompts then cannot work.

    Example:
    ```python
    language_model_bias("runs/first/preset").shape
    ```
    """
    path = os.path.join(preset, _HEADS_FILENAME)
    heads = {}
    if files.is_file(path):
        with files.open_read(path) as file:
            heads = dict(np.load(file))
    if _LM_BIAS not in heads:
        raise UserError(
            f"{preset} has no language modeling head ({_HEADS_FILENAME} with {_LM_BIAS}): its main "
            "model never learned to tell which word belongs somewhere, so no label word can be "
            "scored. Pretrain it with objective.lm_weight above 0, or fine-tune it as a classifier."
        )
    return heads[_LM_BIAS]


def converted_head(preset: str, head: str) -> dict[str, np.ndarray]:
    """Reads the head of a task that the preset of a converted checkpoint carries.

    Args:
        preset: A local folder; anything else has none.
        head: `classifier` or `question_answerer`.

    Returns:
        The weights by their names, as `output.bias`; none if there is no such head, or `task.json`
        is of such a task, whose own head then counts.

    Example:
    ```python
    converted_head("converted", "classifier")["output.bias"].shape  # [num_classes]
    ```
    """
    path = os.path.join(preset, _TASK_HEADS_FILENAME)
    if preset.startswith(_FETCHED) or not files.is_file(path) or _task_name(preset) == _TASKS[head]:
        return {}
    arrays = np.load(path)
    prefix = f"{head}."
    return {
        name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)
    }


def _task_name(preset: str) -> str:
    """The registered name of the task that a preset is of; empty where it is of none."""
    path = os.path.join(preset, _TASK_FILENAME)
    if not files.is_file(path):
        return ""
    try:
        return str(json.loads(files.read_text(path))["registered_name"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not describe a model.") from error

"""Presets as programs take them: checks, what kind they are, and the weights of their heads."""

import contextlib
import fnmatch
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cocolm_tf import files
from cocolm_tf.errors import UserError

_CONFIG_FILENAME = "config.json"
_FETCHED = ("kaggle://", "hf://", "modelscope://")
_BACKBONE = "cocolm_tf>CocoLMBackbone"
# Where `training.preset` and `conversion` keep heads; not imported, as they need TensorFlow.
_HEADS_FILENAME, _LM_BIAS = "pretraining_heads.npz", "lm_head.bias"
_TASK_HEADS_FILENAME = "task_heads.npz"
# In a preset of a fine-tuned model, which has a head of its own.
_TASK_FILENAME = "task.json"
_TASKS = {
    "classifier": "cocolm_tf>CocoLMTextClassifier",
    "question_answerer": "cocolm_tf>CocoLMQuestionAnswerer",
}


def local_preset(preset: str | os.PathLike[str]) -> contextlib.AbstractContextManager[str]:
    """A local copy of a preset, see `files.local_copy`; a handle of KerasHub's stays as it is."""
    preset = os.fspath(preset)
    fetched = preset.startswith(_FETCHED)
    return contextlib.nullcontext(preset) if fetched else files.local_copy(preset)


def backbone_config(preset: str) -> dict[str, object]:
    """The arguments of a preset's `CocoLMBackbone`; `UserError` if anything of it is missing."""
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
    """Reads the main model's language modeling bias, [V]; `UserError` if it was trained without."""
    # The head's matrix is the word embeddings, so a preset that has the bias has the whole head.
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
    """The head of a converted checkpoint, arrays as `output.bias`; {} where there is none."""
    # `head` is `classifier` or `question_answerer`. A preset that was fine-tuned since has
    # `task.json`, whose own head is the one to take.
    path = os.path.join(preset, _TASK_HEADS_FILENAME)
    if preset.startswith(_FETCHED) or not files.is_file(path) or task_name(preset) == _TASKS[head]:
        return {}
    arrays = np.load(path)
    prefix = f"{head}."
    return {
        name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)
    }


def task_name(preset: str) -> str:
    """The registered name of a preset's task; empty where it is of an encoder alone."""
    path = os.path.join(preset, _TASK_FILENAME)
    if not files.is_file(path):
        return ""
    try:
        return str(json.loads(files.read_text(path))["registered_name"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not describe a model.") from error


def load_task(preset: str, kinds: Sequence[type[Any]], **changes: Any) -> Any:
    """Loads a fine-tuned model with its head; `UserError` if it is of none of these classes."""
    path, name = os.path.join(preset, _TASK_FILENAME), task_name(preset)
    by_name = {f"cocolm_tf>{kind.__name__}": kind for kind in kinds}
    if name not in by_name:
        raise UserError(f"{path} describes a {name}, which is none of {', '.join(by_name)}.")
    try:
        return by_name[name].from_preset(preset, **changes)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not describe a model.") from error

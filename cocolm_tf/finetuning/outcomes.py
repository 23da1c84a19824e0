"""What a run leaves behind, whatever its task."""

import math
import os
import time
from typing import Any

import keras_hub

from cocolm_tf.costs.step_benchmark import describe_device
from cocolm_tf.files import new_folder
from cocolm_tf.finetuning.best_epoch import BestEpoch
from cocolm_tf.training.model_card import Facts, write_model_card
from cocolm_tf.versions import own_versions

PRESET_DIRECTORY = "preset"

DIVERGED = {"diverged": True, "headline": "diverged"}
"""The results of a run whose outputs never were finite."""


def describe_run(model: keras_hub.models.Task, best: BestEpoch, started: float) -> dict[str, Any]:
    """Says what there is to say of any run.

    Args:
        model: What was trained.
        best: What watched it.
        started: What `time.monotonic()` was at the beginning.

    Returns:
        `examples_per_second`, `seconds`, `parameters` (of the encoder), `device` and `versions`,
        which JSON can hold.

    Example:
    ```python
    results |= describe_run(classifier, best, started)
    ```
    """
    return {
        "examples_per_second": best.examples_per_second,
        "seconds": time.monotonic() - started,
        "parameters": sum(math.prod(v.shape) for v in model.backbone.variables),
        "device": describe_device(),
        "versions": own_versions(),
    }


def save_model(model: keras_hub.models.Task, facts: Facts, folder: str) -> None:
    """Saves a model as a preset with its model card.

    Args:
        model: What was trained.
        facts: For the card.
        folder: Of the run; the preset is in it when it is complete.

    Example:
    ```python
    save_model(classifier, classifier_facts(run, data, results), "runs/rte/seed_0")
    ```
    """
    with new_folder(os.path.join(folder, PRESET_DIRECTORY), True, "config.json") as preset:
        model.save_to_preset(preset)
        write_model_card(preset, facts)

"""The families of tasks that models are fine-tuned on."""

import importlib
from collections.abc import Mapping
from typing import Any

from cocolm_tf.finetuning.tasks.task import FAMILY_KEY, Task

FAMILIES = {
    "classification": ("classification", "ClassificationTask"),
    "superglue": ("classification", "SuperGlueClassificationTask"),
    "prompting": ("prompting", "PromptingTask"),
    "question_answering": ("question_answering", "QuestionAnsweringTask"),
    "tokens": ("tokens", "TokensTask"),
    "embedding": ("embedding", "EmbeddingTask"),
}
"""The module and the name of the class of each family."""


def task_of(spec: Mapping[str, Any]) -> Task:
    """Makes the task that `Task.spec()` was called on."""
    fields = dict(spec)
    module, name = FAMILIES[fields.pop(FAMILY_KEY)]
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(**fields)

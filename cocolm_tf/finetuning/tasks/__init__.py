"""The families of tasks that models are fine-tuned on, each in a module of its own."""

import importlib
from collections.abc import Mapping
from typing import Any

from cocolm_tf.finetuning.tasks.task import FAMILY_KEY, Task

FAMILIES = {
    "classification": "ClassificationTask",
    "question_answering": "QuestionAnsweringTask",
    "prompting": "PromptingTask",
    "embedding": "EmbeddingTask",
    "superglue": "SuperGlueClassificationTask",
    "tokens": "TokensTask",
}
"""The name of the class of each family, which the module of the family's name has."""


def task_of(spec: Mapping[str, Any]) -> Task:
    """Makes the task that `Task.spec()` was called on."""
    fields = dict(spec)
    family = fields.pop(FAMILY_KEY)
    module = importlib.import_module(f"{__name__}.{family}")
    return getattr(module, FAMILIES[family])(**fields)

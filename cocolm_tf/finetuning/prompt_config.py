"""What defines prompt-based fine-tuning: settings, templates and label words, read from YAML."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from official.modeling import hyperparams

from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.prompt_classifier import Template
from cocolm_tf.training import config_file
from cocolm_tf.training.config import PRECISIONS

# What the "classes" of a regression are called.
REGRESSION_LABELS = ("low", "high")


@dataclasses.dataclass
class PromptConfig(hyperparams.Config):
    """The settings of every run; the defaults are those of LM-BFF and of the paper's Table 4.

    Example:
    ```python
    config, prompt = load_prompt_config("configs/finetune/prompts.yaml", "sst2")
    ```
    """

    # One run for each; the best on the dev examples counts.
    learning_rates: list = dataclasses.field(default_factory=lambda: [3e-6, 4e-6, 5e-6])
    batch_size: int = 8
    steps: int = 1000
    # Steps between two looks at the dev examples.
    validation_interval: int = 100
    weight_decay: float = 0.0
    dropout: float = 0.1
    # Whether an example of each class, with its label word, follows each prompt.
    demonstrations: bool = True
    # How many sets of demonstrations a prediction is the mean of.
    draws: int = 16
    # The longest row; 0 for as many tokens as the model has positions for.
    sequence_length: int = 0
    precision: str = "float32"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a task is asked.

    Args:
        template: As for `Template`.
        words: For every class, in order, the words to choose its label word from.

    Example:
    ```python
    Prompt("{first} It was {mask} .", [["terrible"], ["great"]])
    ```
    """

    template: str
    words: Sequence[Sequence[str]]


def load_prompt_config(
    path: str, task: str, overrides: str | Sequence[str] = ""
) -> tuple[PromptConfig, Prompt]:
    """Reads settings, and the template and the label words of a task.

    Args:
        path: A YAML file with `settings` and `tasks`.
        task: One of `GLUE_TASKS`.
        overrides: What `--params_override` takes, for the settings.

    Returns:
        The settings, complete with defaults, and the prompt.

    Raises:
        UserError: Naming the file and the key that is wrong.

    Example:
    ```python
    load_prompt_config("configs/finetune/prompts.yaml", "rte", "steps=100")
    ```
    """
    values = config_file.parse_file(path)
    if not isinstance(values, dict) or set(values) - {"settings", "tasks"}:
        raise UserError(f"{path}: a file of prompts has `settings` and `tasks`.")
    config = PromptConfig()
    config_file.override(config, values.get("settings") or {}, f"{path}: settings")
    names = [path, *config_file.apply_overrides(config, overrides)]
    _check(config, " ".join(names))
    tasks = values.get("tasks") or {}
    if not isinstance(tasks, dict) or task not in tasks:
        raise UserError(f"{path}: tasks has no {task}, so there is no prompt for it.")
    return config, _prompt(tasks[task], task, f"{path}: tasks.{task}")


def _check(config: PromptConfig, name: str) -> None:
    config_file.check_types(config, name)
    rates = config.learning_rates
    if not rates or not all(isinstance(rate, float) and rate > 0 for rate in rates):
        raise UserError(f"{name}: learning_rates is a list of positive numbers, not {rates}.")
    for key in ("batch_size", "steps", "validation_interval", "draws"):
        if getattr(config, key) < 1:
            raise UserError(f"{name}: {key} must be at least 1, not {getattr(config, key)}.")
    for key in ("weight_decay", "sequence_length"):
        if getattr(config, key) < 0:
            raise UserError(f"{name}: {key} must be 0 or more, not {getattr(config, key)}.")
    if not 0 <= config.dropout < 1:
        raise UserError(f"{name}: dropout must be in [0, 1), not {config.dropout}.")
    if config.steps % config.validation_interval:
        raise UserError(
            f"{name}: steps={config.steps} must be a multiple of "
            f"validation_interval={config.validation_interval}."
        )
    config_file.check_choice(name, "precision", config.precision, PRECISIONS)


def _prompt(values: Any, task: str, name: str) -> Prompt:
    if not isinstance(values, dict) or set(values) != {"template", "words"}:
        raise UserError(f"{name} has a `template` and `words`.")
    classes = GLUE_TASKS[task].label_names or REGRESSION_LABELS
    words = values["words"]
    if not isinstance(words, dict) or set(words) != set(classes):
        raise UserError(f"{name}.words has the words of {', '.join(classes)}.")
    listed = [
        [words[label]] if isinstance(words[label], str) else words[label] for label in classes
    ]
    for label, choices in zip(classes, listed, strict=True):
        if not isinstance(choices, list) or not all(isinstance(word, str) for word in choices):
            raise UserError(
                f"{name}.words.{label} is a word or a list of words, not {choices!r}: quote "
                "what YAML takes for something else, as yes and no."
            )
    template = Template(str(values["template"]))
    if template.num_texts != len(GLUE_TASKS[task].texts):
        raise UserError(
            f"{name}.template has {template.num_texts} text(s), the task "
            f"{len(GLUE_TASKS[task].texts)}."
        )
    return Prompt(template.source, listed)

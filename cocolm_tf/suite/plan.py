"""The runs of a suite, worked out and checked before the first of them begins."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cocolm_tf import files
from cocolm_tf.data.glue import GLUE_TASKS, read_glue
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig, load_finetuning_config
from cocolm_tf.finetuning.flags import suitable_config
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.jobs import leave_devices
from cocolm_tf.suite.definition import Row, Suite
from cocolm_tf.training.config import PretrainingConfig, load_config

# Sizes that an auxiliary model must share with a row that takes it over.
_AUXILIARY_SIZES = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim")
_MODEL_SIZES = (
    "vocabulary_size",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    "relative_position_bins",
    "relative_position_max_distance",
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much each row reads; the configuration's `trainer.train_steps` where neither is given."""

    train_steps: int = 0  # 0 if `tokens` or the configuration says
    tokens: int = 0  # Padding included; the last step is a whole one

    def overrides(self) -> list[str]:
        """The overrides that set it in a configuration."""
        if self.tokens:
            return [f"trainer.train_tokens={self.tokens}"]
        steps = f"trainer.train_steps={self.train_steps},trainer.train_tokens=0"
        return [steps] if self.train_steps else []


@dataclasses.dataclass(frozen=True)
class Task:
    """A task that every row is fine-tuned on."""

    name: str  # Its value of `finetune_glue.py --task`, and its folder
    title: str  # Its name in tables
    data: dict[str, dict[str, Any]]  # See `ClassificationTask`
    config: FinetuningConfig  # The same for all runs


class Run(NamedTuple):
    """One run of a suite: the pretraining of a row, or its fine-tuning on a task with a seed."""

    row: Row
    task: Task | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a suite.

    Args:
        suite: The rows.
        configs: From the name of each row that is pretrained to its configuration.
        tasks: What all rows are fine-tuned on, in the order of the table's columns.
        seeds: How many times each row is fine-tuned on each task.

    Example:
    ```python
    suite = load_suite("table3", "configs/suites")
    configs = pretraining_configs(suite, "configs/pretrain/small.yaml", "runs/table3")
    rows = architectures(suite, configs)
    tasks = glue_tasks(["rte"], "glue_data", rows, finetuning_configs="configs/finetune")
    Plan(suite, configs, tasks, seeds=5)
    ```
    """

    suite: Suite
    configs: Mapping[str, PretrainingConfig]
    tasks: Sequence[Task]
    seeds: int

    def runs(self) -> list[Run]:
        """All runs in their order: pretrainings, then fine-tunings by seeds, tasks and rows."""
        rows = self.suite.rows
        runs = [Run(row, None, 0) for row in rows if row.name in self.configs]
        for seed in range(self.seeds):
            runs += [Run(row, task, seed) for task in self.tasks for row in rows]
        return runs

    def source(self, row: Row) -> Row:
        """The row whose preset a row is fine-tuned from, with its weights or not."""
        name = row.random_weights_of or row.name
        return next(row for row in self.suite.rows if row.name == name)


def pretraining_configs(
    suite: Suite,
    config_file: str,
    output_dir: str,
    overrides: Sequence[str] = (),
    of_rows: Mapping[str, Sequence[str]] | None = None,
    budget: Budget | None = None,
) -> dict[str, PretrainingConfig]:
    """Applies each row's changes to the configuration that the rows share.

    Args:
        suite: The rows.
        config_file: The shared configuration.
        output_dir: Where the suite will run: rows take presets and checkpoints of other rows there.
        overrides: Changes for all rows, as `--params_override` takes them.
        of_rows: Further changes by row, which are applied last.
        budget: How much each row reads; None for what the configuration says.

    Returns:
        The configuration of each row that is pretrained, by its name.

    Raises:
        UserError: If a configuration is wrong, or a row cannot take the auxiliary model of another.

    Example:
    ```python
    pretraining_configs(suite, "configs/pretrain/small.yaml", "runs/table3")["coco_lm"]
    ```
    """
    configs: dict[str, PretrainingConfig] = {}
    for row in suite.rows:
        if not row.is_pretrained:
            continue
        changes = [*overrides, *row.changes, *(of_rows or {}).get(row.name, ())]
        if row.auxiliary_of:
            _check_auxiliary_of(row, configs[row.auxiliary_of])
            preset = preset_folder(output_dir, row.auxiliary_of)
            changes.append(f"{{auxiliary: {{replacements: frozen, preset: '{preset}'}}}}")
        if row.decay_from:
            source, _, step = row.decay_from.rpartition("@")
            run = files.absolute(run_folder(output_dir, source))
            changes.append(f"{{trainer: {{decay_from: '{run}@{step}'}}}}")
        config = load_config(config_file, [*changes, *(budget.overrides() if budget else [])])
        if row.auxiliary_of:
            _check_sizes(row, config, configs[row.auxiliary_of])
        configs[row.name] = config
    return configs


def architectures(
    suite: Suite, configs: Mapping[str, PretrainingConfig]
) -> dict[str, Mapping[str, Any]]:
    """The arguments of each row's `CocoLMBackbone`, but for rows of another row's architecture.

    Raises:
        UserError: If a row's preset is none.

    Example:
    ```python
    architectures(suite, configs)["coco_lm"]["hidden_dim"]  # 768
    ```
    """
    found = {row.name: backbone_config(row.preset) for row in suite.rows if row.preset}
    return found | {name: config.as_dict()["model"] for name, config in configs.items()}


def glue_tasks(
    names: Sequence[str],
    data_dir: str | None,
    sizes_of_rows: Mapping[str, Mapping[str, Any]],
    config_file: str = "",
    overrides: Sequence[str] = (),
    finetuning_configs: str = "",
) -> list[Task]:
    """Reads the tasks that the rows are fine-tuned on, and their settings.

    Args:
        names: Tasks of `GLUE_TASKS`.
        data_dir: The folder of GLUE's files; None for TensorFlow Datasets.
        sizes_of_rows: What `architectures` gave, whose width and positions the settings must suit.
        config_file: The settings; empty for those in `finetuning_configs` that suit the width.
        overrides: Changes of the settings, as `--params_override` takes them.
        finetuning_configs: The folder of the settings to choose from.

    Returns:
        The tasks, in the order of the names.

    Raises:
        UserError: If there is no such task, or its data or settings are wrong.

    Example:
    ```python
    rows = architectures(suite, configs)
    glue_tasks(["rte"], "glue_data", rows, finetuning_configs="configs/finetune")
    ```
    """
    leave_devices()
    tasks = []
    for name in names:
        if name not in GLUE_TASKS:
            raise UserError(f"--tasks are of {', '.join(GLUE_TASKS)}, not {name!r}.")
        width = next(iter(sizes_of_rows.values()))["hidden_dim"]
        path = config_file or suitable_config(width, finetuning_configs)
        config, _ = load_finetuning_config(path, name, overrides)
        data = {"task": name, "data_dir": data_dir and files.absolute(data_dir)}
        for row, sizes in sizes_of_rows.items():
            if config.data.sequence_length > sizes["max_sequence_length"]:
                raise UserError(
                    f"{path}: data.sequence_length={config.data.sequence_length} is more than the "
                    f"{sizes['max_sequence_length']} positions of {row}."
                )
        # Read here so that a mistake in it is reported now, not when all rows are pretrained.
        tasks.append(Task(name, read_glue(**data).name, {"glue": data}, config))
    return tasks


def pretraining_folder(output_dir: str, row: str) -> str:
    """The folder of a row's pretraining job; its run is in the folder `run` there."""
    return os.path.join(output_dir, "pretraining", row)


def run_folder(output_dir: str, row: str) -> str:
    """The `--model_dir` of a row's pretraining."""
    return os.path.join(pretraining_folder(output_dir, row), "run")


def preset_folder(output_dir: str, row: str) -> str:
    """The folder of the preset of a row that is pretrained."""
    return os.path.join(files.absolute(run_folder(output_dir, row)), "preset")


def _check_auxiliary_of(row: Row, other: PretrainingConfig) -> None:
    if other.objective.name != "coco_lm" or other.auxiliary.replacements != "auxiliary":
        raise UserError(
            f"row {row.name}: auxiliary_of: {row.auxiliary_of} trains no auxiliary model."
        )


def _check_sizes(row: Row, config: PretrainingConfig, other: PretrainingConfig) -> None:
    for section, keys in (("auxiliary", _AUXILIARY_SIZES), ("model", _MODEL_SIZES)):
        for key in keys:
            mine, its = (getattr(getattr(one, section), key) for one in (config, other))
            if mine != its:
                raise UserError(
                    f"row {row.name} has {section}.{key}={mine} and {row.auxiliary_of}, whose "
                    f"auxiliary model it is to take, {its}: they must be the same."
                )

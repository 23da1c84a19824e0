"""What a suite's runs are, worked out and checked before the first of them begins."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cocolm_tf import files
from cocolm_tf.data.glue import GLUE_TASKS, read_glue
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig, load_finetuning_config
from cocolm_tf.finetuning.flags import suitable_config
from cocolm_tf.jobs import leave_devices
from cocolm_tf.suite.definition import Row, Suite
from cocolm_tf.training.config import PretrainingConfig, load_config

# What an auxiliary model must have in common with the row that takes it over.
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
        """What it changes of a configuration."""
        if self.tokens:
            return [f"trainer.train_tokens={self.tokens}"]
        steps = f"trainer.train_steps={self.train_steps},trainer.train_tokens=0"
        return [steps] if self.train_steps else []


@dataclasses.dataclass(frozen=True)
class Task:
    """A task that every row is fine-tuned on."""

    name: str  # As `finetune_glue.py --task` takes it, and of its folder
    title: str  # What tables call it
    data: dict[str, dict[str, Any]]  # See `ClassificationTask`
    config: FinetuningConfig  # Of every run


class Run(NamedTuple):
    """One run of a suite: the pretraining of a row, or its fine-tuning on a task with a seed."""

    row: Row
    task: Task | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a suite."""

    suite: Suite  # Whose
    # From the name of each row that is pretrained, its configuration.
    configs: Mapping[str, PretrainingConfig]
    tasks: Sequence[Task]  # In the order of the table's columns
    seeds: int  # How many fine-tunings of each row and task

    def runs(self) -> list[Run]:
        """All of them in their order: pretrainings, then fine-tunings by seeds, tasks and rows."""
        rows = self.suite.rows
        runs = [Run(row, None, 0) for row in rows if row.name in self.configs]
        for seed in range(self.seeds):
            runs += [Run(row, task, seed) for task in self.tasks for row in rows]
        return runs

    def architecture(self, row: Row) -> str:
        """The name of the row whose preset a row is fine-tuned from, with its weights or not."""
        return row.random_weights_of or row.name


def pretraining_configs(
    suite: Suite,
    config_file: str,
    output_dir: str,
    overrides: Sequence[str] = (),
    of_rows: Mapping[str, Sequence[str]] | None = None,
    budget: Budget | None = None,
) -> dict[str, PretrainingConfig]:
    """Puts the rows over the configuration that they share."""
    configs: dict[str, PretrainingConfig] = {}
    for row in suite.rows:
        if row.random_weights_of:
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


def glue_tasks(
    names: Sequence[str],
    data_dir: str | None,
    configs: Mapping[str, PretrainingConfig],
    config_file: str = "",
    overrides: Sequence[str] = (),
    finetuning_configs: str = "",
) -> list[Task]:
    """Reads what the rows are to be fine-tuned on, and how."""
    leave_devices()
    tasks = []
    for name in names:
        if name not in GLUE_TASKS:
            raise UserError(f"--tasks are of {', '.join(GLUE_TASKS)}, not {name!r}.")
        width = next(iter(configs.values())).model.hidden_dim
        path = config_file or suitable_config(width, finetuning_configs)
        config, _ = load_finetuning_config(path, name, overrides)
        data = {"task": name, "data_dir": data_dir and files.absolute(data_dir)}
        for row, of_row in configs.items():
            if config.data.sequence_length > of_row.model.max_sequence_length:
                raise UserError(
                    f"{path}: data.sequence_length={config.data.sequence_length} is more than the "
                    f"{of_row.model.max_sequence_length} positions of {row}."
                )
        # A mistake in it is told now, and not when all is pretrained.
        tasks.append(Task(name, read_glue(**data).name, {"glue": data}, config))
    return tasks


def pretraining_folder(output_dir: str, row: str) -> str:
    """Where a row is pretrained; its run is in the folder `run` there."""
    return os.path.join(output_dir, "pretraining", row)


def run_folder(output_dir: str, row: str) -> str:
    """The `--model_dir` of a row's pretraining."""
    return os.path.join(pretraining_folder(output_dir, row), "run")


def preset_folder(output_dir: str, row: str) -> str:
    """Where a row's preset will be."""
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

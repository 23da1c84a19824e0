"""A suite: the rows of a table, each by what it changes of a configuration they share; their runs.

rows:
  coco_lm:                                   # the name of its folder; it changes nothing
    title: COCO-LM                           # what tables call it
  converged_auxiliary:
    title: w. converged auxiliary
    group: Training signal
    changes: ../ablations/converged_auxiliary.yaml  # by its path from this file; or several
    auxiliary_of: coco_lm                    # the row above that its auxiliary model is from
  shallow:
    changes: [{model: {num_layers: 3}}]      # or values in place
  half:
    decay_from: coco_lm@500                  # branches off the row above: trainer.decay_from
    changes: [{trainer: {train_steps: 550}}]
  from_scratch:
    title: from scratch
    random_weights_of: coco_lm               # not pretrained: that row's architecture, afresh
  soup:
    preset: ../soup                          # not pretrained here: a folder, by its path from this
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cocolm_tf import files
from cocolm_tf.data.glue import GLUE_TASKS, read_glue
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig, load_finetuning_config
from cocolm_tf.finetuning.flags import suitable_config
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.jobs import leave_devices
from cocolm_tf.training.config import PretrainingConfig, load_config
from cocolm_tf.training.config_file import parse_file

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
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OWN_TRAINING = ("changes", "auxiliary_of", "decay_from")
_NO_TRAINING = ("random_weights_of", "preset")
_KEYS = ("title", "group", *_OWN_TRAINING, *_NO_TRAINING)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a suite.

    Args:
        name: The name of its folder.
        title: Its name in tables.
        group: Its group in tables; may be empty.
        changes: What it changes of the shared configuration, each as `--params_override` takes
            it; later ones hold where they disagree.
        auxiliary_of: The row whose auxiliary model it samples from, frozen; empty for its own.
        decay_from: ROW@STEP, the row whose run it branches off to let the learning rate decay, and
            the checkpoint; empty for a run from the beginning.
        random_weights_of: The row whose architecture it is fine-tuned in from random weights,
            instead of being pretrained; empty for other rows.
        preset: The folder that it is fine-tuned from, instead of being pretrained; empty for
            other rows.

    Example:
    ```python
    Row("rtd_only", "RTD only", changes=("configs/ablations/rtd_only.yaml",))
    ```
    """

    name: str
    title: str
    group: str = ""
    changes: tuple[str, ...] = ()
    auxiliary_of: str = ""
    decay_from: str = ""
    random_weights_of: str = ""
    preset: str = ""

    @property
    def is_pretrained(self) -> bool:
        """Whether the suite pretrains it."""
        return not (self.random_weights_of or self.preset)

    def needs(self) -> tuple[str, ...]:
        """The names of the rows that must be pretrained before this one."""
        return tuple(filter(None, (self.auxiliary_of, self.decay_from.rpartition("@")[0])))


@dataclasses.dataclass(frozen=True)
class Suite:
    """The rows of a table, in their order.

    Args:
        name: The name of its file, without the ending.
        rows: At least one. A row comes after those that it needs.

    Example:
    ```python
    load_suite("table3", "configs/suites").rows[0].title  # "COCO-LM"
    ```
    """

    name: str
    rows: tuple[Row, ...]


def load_suite(suite: str, suites: str) -> Suite:
    """Reads a suite and checks it.

    Args:
        suite: A name of a file in `suites` without its ending, or a YAML file of the form above.
        suites: The folder of the suites that go by their names.

    Returns:
        The suite.

    Raises:
        UserError: If there is no such suite, or naming the file and what is wrong in it.

    Example:
    ```python
    load_suite("baselines", "configs/suites")
    ```
    """
    path = os.path.join(suites, f"{suite}.yaml")
    if not files.is_file(path):
        path = suite
    if not files.is_file(path):
        known = [name[:-5] for name in files.list_dir(suites) if name.endswith(".yaml")]
        raise UserError(f"--suite is one of {', '.join(known)} or a YAML file, not {suite!r}.")
    values = parse_file(path)
    rows = values.get("rows") if isinstance(values, dict) else None
    if not isinstance(rows, dict) or not rows or set(values) != {"rows"}:
        raise UserError(f"{path}: a suite has the key rows, with the rows by their names.")
    read: dict[str, Row] = {}
    for name, fields in rows.items():
        read[name] = _row(path, name, fields, read)
    return Suite(os.path.splitext(os.path.basename(path))[0], tuple(read.values()))


def _row(path: str, name: Any, fields: Any, above: Mapping[str, Row]) -> Row:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: rows.{name}: a row's name is that of its folder: letters, digits, _, - and . "
            "only."
        )
    where = f"{path}: rows.{name}"
    fields = {} if fields is None else fields
    if not isinstance(fields, dict):
        raise UserError(f"{where} takes keys and their values, not {fields!r}.")
    for key, value in fields.items():
        if key not in _KEYS:
            raise UserError(f"{where}.{key} does not exist; a row has {', '.join(_KEYS)}.")
        if key != "changes" and not isinstance(value, str):
            raise UserError(f"{where}.{key} must be of type str, not {value!r}.")
    decay_from = fields.get("decay_from")
    if decay_from is not None and not re.fullmatch(r".+@\d+", decay_from):
        raise UserError(f"{where}.decay_from must be ROW@STEP, not {decay_from!r}.")
    for key in ("auxiliary_of", "decay_from", "random_weights_of"):
        other = fields.get(key)
        if key == "decay_from" and other:
            other = other.rpartition("@")[0]
        source = above.get(other)
        may_be_preset = key == "random_weights_of" and source and source.preset
        if other is not None and not may_be_preset and not (source and source.is_pretrained):
            raise UserError(f"{where}.{key}: {other} is no pretrained row above this one.")
    for key in _NO_TRAINING:
        excluded = [other for other in (*_OWN_TRAINING, *_NO_TRAINING) if other != key]
        if key in fields and fields.keys() & set(excluded):
            raise UserError(
                f"{where} has {key}: it is not pretrained, so it cannot have "
                f"{', '.join(excluded[:-1])} or {excluded[-1]}."
            )
    preset = fields.get("preset", "")
    if preset:
        preset = files.absolute(files.join(os.path.dirname(path), preset))
        if not files.is_dir(preset):
            raise UserError(f"{where}.preset: {preset} is not a folder.")
    changes = fields.get("changes", [])
    changes = changes if isinstance(changes, list) else [changes]
    return Row(
        name,
        fields.get("title", name),
        fields.get("group", ""),
        tuple(_change(where, path, change) for change in changes),
        fields.get("auxiliary_of", ""),
        fields.get("decay_from", ""),
        fields.get("random_weights_of", ""),
        preset,
    )


def _change(where: str, path: str, change: Any) -> str:
    """A change as `--params_override` takes it."""
    if isinstance(change, dict):
        return json.dumps(change)
    if not isinstance(change, str):
        raise UserError(f"{where}.changes are YAML files or values by their keys, not {change!r}.")
    file = files.normal(files.join(os.path.dirname(path), change))
    if not files.is_file(file):
        raise UserError(f"{where}.changes: {file} does not exist.")
    return file


def row_overrides(suite: Suite, flags: Sequence[str]) -> dict[str, list[str]]:
    """Sorts further changes by the rows that they are for."""
    pretrained = [row.name for row in suite.rows if row.is_pretrained]
    found: dict[str, list[str]] = {}
    for flag in flags:
        name, colon, override = flag.partition(":")
        if not colon or name not in pretrained:
            raise UserError(
                f"--row_override={flag}: give ROW:OVERRIDE, where the row is one of "
                f"{', '.join(pretrained)}."
            )
        found.setdefault(name, []).append(override)
    return found


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
    budget: str = "",
) -> dict[str, PretrainingConfig]:
    """Applies each row's changes to the configuration that the rows share.

    Args:
        suite: The rows.
        config_file: The shared configuration.
        output_dir: Where the suite will run: rows take presets and checkpoints of other rows there.
        overrides: Changes for all rows, as `--params_override` takes them.
        of_rows: Further changes by row, which are applied last.
        budget: A change for all rows that comes last: how much each of them reads.

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
        config = load_config(config_file, [*changes, budget])
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
            own, theirs = (getattr(getattr(one, section), key) for one in (config, other))
            if own != theirs:
                raise UserError(
                    f"row {row.name} has {section}.{key}={own} and {row.auxiliary_of}, whose "
                    f"auxiliary model it is to take, {theirs}: they must be the same."
                )

"""The flags that the fine-tuning programs share, and the experiment that they define."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cocolm_tf import files
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.data.table_task import table_name
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.presets import backbone_config

if TYPE_CHECKING:
    from cocolm_tf.finetuning.tasks.task import Task

# The flags are the key flags of the programs that define them, so that their --help shows them.
flags.disclaim_key_flags()

# None of several hosts, each of which would run all of an experiment's jobs.
STRATEGIES = ("one_device", "mirrored", "tpu")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]*")
# The least width of the encoders that a file of released settings is for.
_CONFIGS = ((1024, "large_pp.yaml"), (768, "base_pp.yaml"), (0, "small.yaml"))


def define_start_flags(
    flag_values: flags.FlagValues = flags.FLAGS, search_reduction: int = 3
) -> None:
    """Defines the flags of every fine-tuning program."""
    flags.DEFINE_string(
        "preset", None, "Folder of the pretrained model to start from.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the results. Runs that are in it already are not done again.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "config_file",
        "",
        "YAML file of settings. By default the one in configs/finetune that suits the program and "
        "the size of the model.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "params_override",
        [],
        "Changes to the settings: a.b=1,c.d=x, or a YAML file. Repeatable.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "processes",
        1,
        "How many runs to do at a time, each a process of its own.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_alias("jobs", "processes", flag_values=flag_values)
    flags.DEFINE_integer(
        "search_reduction",
        search_reduction,
        "A search goes on with one in so many of its combinations after each stage, and trains "
        "these so many times as long; 1 trains all of them to the end.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "distribution_strategy",
        "one_device",
        STRATEGIES,
        "Over which devices each run is spread: one, all GPUs that it has, or a TPU.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "tpu",
        "",
        "Address of the TPU, or local, for --distribution_strategy=tpu.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "metric",
        "",
        "The metric that chooses the best epoch and the best run, of those of the kind of task. By "
        "default its first.",
        flag_values=flag_values,
    )
    flags.mark_flags_as_required(["preset", "output_dir"], flag_values=flag_values)


def define_run_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of every program that learns from a whole training set."""
    define_start_flags(flag_values)
    flags.DEFINE_integer(
        "seeds",
        1,
        "How many runs to make that differ in their random seeds only.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "search",
        False,
        "Go through the configuration's grid first, and take what is best on the dev set.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "train_fraction",
        1.0,
        "The share of the training rows to learn from, of every label the same; another draw for "
        "every seed.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "from_scratch",
        False,
        "Start from random weights in the preset's architecture, for comparison.",
        flag_values=flag_values,
    )


def define_classifier_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the programs that fine-tune text classifiers."""
    flags.DEFINE_string(
        "class_weights",
        "",
        "How much an example of each class counts: balanced, all classes alike however many "
        "examples they have, or CLASS=WEIGHT,... By default all examples alike.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "ensemble",
        False,
        "Measure the mean of what the runs of all seeds predict, too, and submit it.",
        flag_values=flag_values,
    )


def define_table_flags(flag_values: flags.FlagValues = flags.FLAGS, required: bool = True) -> None:
    """Defines the flags that name a user's own tables."""
    texts = {
        "train_file": (None, "Table to learn from: .tsv, .csv or .jsonl, with named columns."),
        "name": (
            "",
            "What the task is called in results, and its folder. By default as the table to learn "
            "from.",
        ),
        "dev_file": ("", "Table to choose the best epoch by."),
        "test_file": ("", "Table to predict; it needs no labels."),
        "text_column": (None, "Column of the texts."),
        "second_text_column": ("", "Column of the second texts, for pairs."),
        "label_column": (None, "Column of the labels."),
        "encoding": (
            "",
            "Encoding of the tables that have no byte order mark, as cp1252. By default UTF-8.",
        ),
        "delimiter": (
            "",
            "What separates the columns of .csv and .tsv, as ';' or '\\t'. By default a comma and "
            "a tab.",
        ),
    }
    for name, (default, text) in texts.items():
        flags.DEFINE_string(name, default, text, flag_values=flag_values)
    flags.DEFINE_float(
        "dev_fraction",
        0.1,
        "Without --dev_file: the share of the training rows to split off for it.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "regression", False, "Predict the labels as numbers.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "max_bad_share",
        0.0,
        "The share of a file's rows that may be left out because something is wrong with them.",
        flag_values=flag_values,
    )
    if required:
        names = ["train_file", "text_column", "label_column"]
        flags.mark_flags_as_required(names, flag_values=flag_values)


def table_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The arguments of `read_table_task`, from the flags of `define_table_flags`."""
    for flag in ("train_file", "text_column", "label_column"):
        if not flag_values[flag].value:
            raise UserError(f"--{flag} is missing: tables are read by it.")
    name = flag_values.name
    if name and (name != table_name(name) or not _NAME.fullmatch(name)):
        raise UserError(
            f"--name={name}: it is the name of a folder, of letters, digits, _, - and spaces, and "
            "not that of a task that is built in."
        )
    paths = {flag: flag_values[flag].value for flag in ("train_file", "dev_file", "test_file")}
    table = {flag: files.absolute(path) if path else "" for flag, path in paths.items()}
    columns = ("text_column", "label_column", "second_text_column")
    kept = (*columns, "dev_fraction", "regression", "max_bad_share")
    table |= {flag: flag_values[flag].value for flag in kept}
    table["name"] = name or table_name(flag_values.train_file)
    # Only where they are given, so that runs from before there were such flags are resumed.
    optional = ("encoding", "delimiter")
    return table | {flag: flag_values[flag].value for flag in optional if flag_values[flag].value}


def define_glue_flags(flag_values: flags.FlagValues = flags.FLAGS, required: bool = True) -> None:
    """Defines the flags that name a task of GLUE."""
    flags.DEFINE_enum("task", None, list(GLUE_TASKS), "The task.", flag_values=flag_values)
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of GLUE's official TSV files, with RTE/train.tsv and so on. Without it, TensorFlow "
        "Datasets.",
        flag_values=flag_values,
    )
    if required:
        flags.mark_flag_as_required("task", flag_values=flag_values)


def check_start_flags(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """Checks the flags of `define_start_flags`; returns the encoder's arguments."""
    # Without TensorFlow, so that mistakes are reported at once.
    files.check_writable(flag_values.output_dir, "--output_dir")
    if flag_values.config_file and not files.is_file(flag_values.config_file):
        raise UserError(f"--config_file={flag_values.config_file} does not exist.")
    if flag_values.tpu and flag_values.distribution_strategy != "tpu":
        raise UserError("--tpu goes with --distribution_strategy=tpu.")
    if flag_values.distribution_strategy == "tpu" and flag_values.processes > 1:
        raise UserError("--processes: a TPU does one run at a time.")
    return backbone_config(flag_values.preset)


def suitable_config(width: int, configs: str) -> str:
    """The path of the settings for an encoder of this width, in a folder of configurations."""
    suits = next(file for narrowest, file in _CONFIGS if width >= narrowest)
    return os.path.join(configs, suits)


def run_from_flags(
    name: str,
    make_task: "Callable[..., Task]",
    configs: str,
    changes: Mapping[str, tuple[str, Any]] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
    settings: str | None = None,
    config_file: str = "",
    seeds: Sequence[int] | None = None,
) -> str:
    """Runs the experiment that the flags define; returns the path of its table of results."""
    # `name` is the task's and the experiment's folder's. `make_task` gets the arguments of `Task`;
    # it is called when the flags are known to be right, and may import TensorFlow. `configs` is the
    # folder of the configurations to choose from where neither a flag nor `config_file` names one.
    # `changes` are made to the configuration, by the flag that asks for each: its key and value.
    # `settings` is the key in the configuration's `tasks`: None for `name`, empty for none. Each of
    # `seeds` has a search of its own; None for those that `--seeds` and `--search` ask for.
    fields = {"train_fraction": 1.0, "from_scratch": False}
    fields = {key: getattr(flag_values, key, value) for key, value in fields.items()}
    if not 0 < fields["train_fraction"] <= 1:
        raise UserError(f"--train_fraction={fields['train_fraction']} must be in (0, 1].")
    width = check_start_flags(flag_values)["hidden_dim"]
    config_file = flag_values.config_file or config_file or suitable_config(width, configs)

    # Imported after the flags are checked, so that mistakes in them are reported at once.
    from cocolm_tf.finetuning.config import load_finetuning_config, with_values
    from cocolm_tf.finetuning.experiment import Experiment, run_experiment

    settings = name if settings is None else settings
    config, grid = load_finetuning_config(config_file, settings, flag_values.params_override)
    for flag, (key, value) in (changes or {}).items():
        config = with_values(config, {key: value}, f"--{flag}")
    if seeds is None and flag_values.search and not grid:
        raise UserError(f"--search: {config_file} has no `search` to go through.")
    task = make_task(
        preset=flag_values.preset, config=config.as_dict(), metric=flag_values.metric, **fields
    )
    experiment = Experiment(
        name,
        task,
        grid if seeds is not None or flag_values.search else {},
        range(flag_values.seeds) if seeds is None else seeds,
        flag_values.search_reduction,
        search_each_seed=seeds is not None,
        ensemble=getattr(flag_values, "ensemble", False),
    )
    options = {
        "distribution_strategy": flag_values.distribution_strategy,
        **({"tpu": flag_values.tpu} if flag_values.tpu else {}),
    }
    return run_experiment(experiment, flag_values.output_dir, flag_values.processes, options)

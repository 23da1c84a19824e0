"""The flags that the fine-tuning programs share, and the experiment that they define."""

import functools
import os
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from cocolm_tf import files
from cocolm_tf.command import shipped
from cocolm_tf.data.table_task import table_name
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.presets import backbone_config

# The flags are the key flags of the programs that define them, so that their --help shows them.
flags.disclaim_key_flags()

# None of several hosts, each of which would run all of an experiment's jobs.
STRATEGIES = ("one_device", "mirrored", "tpu")
TABLE_FORMATS = "a table (.tsv, .csv or .jsonl) with named columns"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]*")
# The least width of the encoders that a file of released settings is for.
_CONFIGS = ((1024, "large_pp.yaml"), (768, "base_pp.yaml"), (0, "small.yaml"))
_KINDS = ("string", "multi_string", "integer", "float", "bool", "enum")


def define_start_flags(
    flag_values: flags.FlagValues = flags.FLAGS, search_reduction: int = 3
) -> None:
    """Defines the flags of every fine-tuning program."""
    define = _definers(flag_values)
    define.string("preset", None, "Folder of the pretrained model to start from.")
    define.string(
        "output_dir", None, "Folder of the results. Runs that are in it already are not done again."
    )
    define.string(
        "config_file",
        "",
        "YAML file of settings. By default the one in configs/finetune that suits the program and "
        "the size of the model.",
    )
    define.multi_string(
        "params_override",
        [],
        "Changes to the settings: a.b=1,c.d=x, or a YAML file. Repeatable.",
    )
    define.integer(
        "processes", 1, "How many runs to do at a time, each a process of its own.", lower_bound=1
    )
    flags.DEFINE_alias("jobs", "processes", flag_values=flag_values)
    define.integer(
        "search_reduction",
        search_reduction,
        "Successive halving: after each stage of a search, one in so many of its combinations is "
        "trained further, so many times as long; 1 trains all of them to the end.",
        lower_bound=1,
    )
    define.enum(
        "distribution_strategy",
        "one_device",
        STRATEGIES,
        "Over which devices each run is spread: one, all GPUs that it has, or a TPU.",
    )
    define.string("tpu", "", "Address of the TPU, or local, for --distribution_strategy=tpu.")
    define.string(
        "metric",
        "",
        "The metric that chooses the best epoch and the best run, of those of the kind of task. By "
        "default its first.",
    )
    flags.mark_flags_as_required(["preset", "output_dir"], flag_values=flag_values)


def define_run_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of every program that learns from a whole training set."""
    define_start_flags(flag_values)
    define = _definers(flag_values)
    define.integer(
        "seeds", 1, "How many runs to make that differ in their random seeds only.", lower_bound=1
    )
    define.bool(
        "search",
        False,
        "Go through the configuration's grid first, and take what is best on the dev set.",
    )
    define.float(
        "train_fraction",
        1.0,
        "The share of the training rows to learn from, of every label the same; another draw for "
        "every seed.",
    )
    define.bool(
        "from_scratch",
        False,
        "Start from random weights in the preset's architecture, for comparison.",
    )


def define_classifier_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the programs that fine-tune text classifiers."""
    define = _definers(flag_values)
    define.string(
        "class_weights",
        "",
        "How much an example of each class counts: balanced, all classes alike however many "
        "examples they have, or CLASS=WEIGHT,... By default all examples alike.",
    )
    define.bool(
        "ensemble",
        False,
        "Measure the mean of what the runs of all seeds predict, too, and submit it.",
    )


def define_benchmark_flags(
    tasks: Sequence[str], layout: str, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines the flags that name a task of GLUE or SuperGLUE, whose files have a layout."""
    define = _definers(flag_values)
    define.enum("task", None, list(tasks), "The task.")
    define.string(
        "data_dir", "", f"Folder of the official {layout}. Without it, TensorFlow Datasets."
    )


def benchmark_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The arguments of `read_glue` and `read_superglue`, from `define_benchmark_flags`."""
    data_dir = files.absolute(flag_values.data_dir) if flag_values.data_dir else None
    return {"task": flag_values.task, "data_dir": data_dir}


def define_file_flags(
    formats: str, has_test: bool = True, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines the flags that name a user's own files, and say how to read them."""
    define = _definers(flag_values)
    define.string("train_file", None, f"File to learn from: {formats}.")
    define.string("dev_file", "", "File to choose the best epoch by.")
    if has_test:
        define.string("test_file", "", "File to predict; it needs no labels.")
    define.float(
        "dev_fraction", 0.1, "Without --dev_file: the share of the training rows to split off."
    )
    define.string(
        "name",
        "",
        "What the task is called in results, and its folder. By default as the file to learn from.",
    )
    define.float(
        "max_bad_share",
        0.0,
        "The share of a file's rows that may be left out because something is wrong with them.",
    )
    define.string(
        "encoding",
        "",
        "Encoding of the files that have no byte order mark, as cp1252. By default UTF-8.",
    )
    define.string(
        "delimiter",
        "",
        "What separates columns, as ';' or '\\t'. By default a comma in .csv, a tab in .tsv, and a "
        "tab or white space in CoNLL's files.",
    )


def define_table_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that name a user's own tables of labeled texts."""
    define_file_flags(TABLE_FORMATS, flag_values=flag_values)
    define = _definers(flag_values)
    define.string("text_column", None, "Column of the texts.")
    define.string("second_text_column", "", "Column of the second texts, for pairs.")
    define.string("label_column", None, "Column of the labels.")
    define.bool("regression", False, "Predict the labels as numbers.")


def data_from_flags(
    names: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
    """The values of flags by their names, paths made absolute, and the `name` of the task."""
    name = flag_values.name
    if name and (name != table_name(name) or not _NAME.fullmatch(name)):
        raise UserError(
            f"--name={name}: it is the name of a folder, of letters, digits, _, - and spaces, and "
            "not that of a task that is built in."
        )
    data = {flag: flag_values[flag].value for flag in names}
    for flag, value in data.items():
        if value and flag.endswith(("_file", "_dir")):
            data[flag] = files.absolute(value)
    return data | {"name": name or table_name(flag_values.train_file)}


def table_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The arguments of `read_table_task`, from the flags of `define_table_flags`."""
    for flag in ("train_file", "text_column", "label_column"):
        if not flag_values[flag].value:
            raise UserError(f"--{flag} is missing: tables are read by it.")
    names = ["train_file", "dev_file", "test_file", "dev_fraction", "max_bad_share"]
    names += ["text_column", "second_text_column", "label_column", "regression"]
    # Only where they are given, so that runs from before there were such flags are resumed.
    names += [flag for flag in ("encoding", "delimiter") if flag_values[flag].value]
    return data_from_flags(names, flag_values)


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


def shipped_config(name: str) -> str:
    """The path of a configuration of fine-tuning that comes with the project."""
    return os.path.join(shipped("configs"), "finetune", name)


def suitable_config(width: int, configs: str = "") -> str:
    """The path of the settings for an encoder of this width, in a folder of configurations."""
    suits = next(file for narrowest, file in _CONFIGS if width >= narrowest)
    return os.path.join(configs, suits) if configs else shipped_config(suits)


def run_from_flags(
    name: str,
    family: str,
    arguments: Mapping[str, Any],
    *,
    changes: Mapping[str, tuple[str, Any]] | None = None,
    settings: str | None = None,
    config_file: str = "",
    seeds: Sequence[int] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> str:
    """Runs the experiment that the flags define; returns the path of its table of results."""
    # `name` is the task's and the experiment's folder's; `family` and `arguments` are those of the
    # task, beside what all tasks have. `changes` are made to the configuration, by the flag that
    # asks for each: its key and value. `settings` is the key in the configuration's `tasks`: None
    # for `name`, empty for none. `config_file` is the configuration where no flag names one; empty
    # for the one that suits the encoder. Each of `seeds` has a search of its own; None for those
    # that `--seeds` and `--search` ask for.
    fields = {"train_fraction": 1.0, "from_scratch": False}
    fields = {key: getattr(flag_values, key, value) for key, value in fields.items()}
    if not 0 < fields["train_fraction"] <= 1:
        raise UserError(f"--train_fraction={fields['train_fraction']} must be in (0, 1].")
    width = check_start_flags(flag_values)["hidden_dim"]
    config_file = flag_values.config_file or config_file or suitable_config(width)

    # Imported after the flags are checked, so that mistakes in them are reported at once.
    from cocolm_tf.finetuning.config import load_finetuning_config, with_values
    from cocolm_tf.finetuning.experiment import Experiment, run_experiment
    from cocolm_tf.finetuning.tasks import FAMILY_KEY, task_of

    settings = name if settings is None else settings
    config, grid = load_finetuning_config(config_file, settings, flag_values.params_override)
    for flag, (key, value) in (changes or {}).items():
        config = with_values(config, {key: value}, f"--{flag}")
    search = seeds is not None or flag_values.search
    if seeds is None and search and not grid:
        raise UserError(f"--search: {config_file} has no `search` to go through.")
    fields |= {"preset": flag_values.preset, "metric": flag_values.metric}
    experiment = Experiment(
        name,
        task_of({FAMILY_KEY: family, "config": config.as_dict(), **fields, **arguments}),
        grid if search else {},
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


def _definers(flag_values: flags.FlagValues) -> types.SimpleNamespace:
    """The functions of absl that define flags of each kind, for these flag values."""
    of_kind = {
        kind: functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=flag_values)
        for kind in _KINDS
    }
    return types.SimpleNamespace(**of_kind)

"""The flags that the fine-tuning programs share, and the experiment that they define."""

import os
import re
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

FLAGS = flags.FLAGS

# None of several hosts, each of which would run all of an experiment's jobs.
STRATEGIES = ("one_device", "mirrored", "tpu")
TABLE_FORMATS = "a table (.tsv, .csv or .jsonl) with named columns"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]*")
# The least width of the encoders that a file of released settings is for.
_CONFIGS = ((1024, "large_pp.yaml"), (768, "base_pp.yaml"), (0, "small.yaml"))


def define_start_flags(search_reduction: int = 3) -> None:
    """Defines the flags of every fine-tuning program."""
    flags.DEFINE_string("preset", None, "Folder of the pretrained model to start from.")
    flags.DEFINE_string(
        "output_dir", None, "Folder of the results. Runs that are in it already are not done again."
    )
    flags.DEFINE_string(
        "config_file",
        "",
        "YAML file of settings. By default the one in configs/finetune that suits the program and "
        "the size of the model.",
    )
    flags.DEFINE_multi_string(
        "params_override",
        [],
        "Changes to the settings: a.b=1,c.d=x, or a YAML file. Repeatable.",
    )
    flags.DEFINE_integer(
        "processes", 1, "How many runs to do at a time, each a process of its own.", lower_bound=1
    )
    flags.DEFINE_alias("jobs", "processes")
    flags.DEFINE_integer(
        "search_reduction",
        search_reduction,
        "Successive halving: after each stage of a search, one in so many of its combinations is "
        "trained further, so many times as long; 1 trains all of them to the end.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "distribution_strategy",
        "one_device",
        STRATEGIES,
        "Over which devices each run is spread: one, all GPUs that it has, or a TPU.",
    )
    flags.DEFINE_string("tpu", "", "Address of the TPU, or local, for --distribution_strategy=tpu.")
    flags.DEFINE_string(
        "metric",
        "",
        "The metric that chooses the best epoch and the best run, of those of the kind of task. By "
        "default its first.",
    )
    flags.mark_flags_as_required(["preset", "output_dir"])


def define_run_flags() -> None:
    """Defines the flags of every program that learns from a whole training set."""
    define_start_flags()
    flags.DEFINE_integer(
        "seeds", 1, "How many runs to make that differ in their random seeds only.", lower_bound=1
    )
    flags.DEFINE_bool(
        "search",
        False,
        "Go through the configuration's grid first, and take what is best on the dev set.",
    )
    flags.DEFINE_float(
        "train_fraction",
        1.0,
        "The share of the training rows to learn from, of every label the same; another draw for "
        "every seed.",
    )
    flags.DEFINE_bool(
        "from_scratch",
        False,
        "Start from random weights in the preset's architecture, for comparison.",
    )


def define_classifier_flags() -> None:
    """Defines the flags of the programs that fine-tune text classifiers."""
    flags.DEFINE_string(
        "class_weights",
        "",
        "How much an example of each class counts: balanced, all classes alike however many "
        "examples they have, or CLASS=WEIGHT,... By default all examples alike.",
    )
    flags.DEFINE_bool(
        "ensemble",
        False,
        "Measure the mean of what the runs of all seeds predict, too, and submit it.",
    )


def define_benchmark_flags(tasks: Sequence[str], layout: str) -> None:
    """Defines the flags that name a task of GLUE or SuperGLUE, whose files have a layout."""
    flags.DEFINE_enum("task", None, list(tasks), "The task.")
    flags.DEFINE_string(
        "data_dir", "", f"Folder of the official {layout}. Without it, TensorFlow Datasets."
    )


def benchmark_from_flags() -> dict[str, Any]:
    """The arguments of `read_glue` and `read_superglue`, from `define_benchmark_flags`."""
    data_dir = files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None
    return {"task": FLAGS.task, "data_dir": data_dir}


def define_file_flags(formats: str, has_test: bool = True) -> None:
    """Defines the flags that name a user's own files, and say how to read them."""
    flags.DEFINE_string("train_file", None, f"File to learn from: {formats}.")
    flags.DEFINE_string("dev_file", "", "File to choose the best epoch by.")
    if has_test:
        flags.DEFINE_string("test_file", "", "File to predict; it needs no labels.")
    flags.DEFINE_float(
        "dev_fraction", 0.1, "Without --dev_file: the share of the training rows to split off."
    )
    flags.DEFINE_string(
        "name",
        "",
        "What the task is called in results, and its folder. By default as the file to learn from.",
    )
    flags.DEFINE_float(
        "max_bad_share",
        0.0,
        "The share of a file's rows that may be left out because something is wrong with them.",
    )
    flags.DEFINE_string(
        "encoding",
        "",
        "Encoding of the files that have no byte order mark, as cp1252. By default UTF-8.",
    )
    flags.DEFINE_string(
        "delimiter",
        "",
        "What separates columns, as ';' or '\\t'. By default a comma in .csv, a tab in .tsv, and a "
        "tab or white space in CoNLL's files.",
    )


def define_table_flags() -> None:
    """Defines the flags that name a user's own tables of labeled texts."""
    define_file_flags(TABLE_FORMATS)
    flags.DEFINE_string("text_column", None, "Column of the texts.")
    flags.DEFINE_string("second_text_column", "", "Column of the second texts, for pairs.")
    flags.DEFINE_string("label_column", None, "Column of the labels.")
    flags.DEFINE_bool("regression", False, "Predict the labels as numbers.")


def data_from_flags(names: Sequence[str]) -> dict[str, Any]:
    """The values of flags by their names, paths made absolute, and the `name` of the task."""
    name = FLAGS.name
    if name and (name != table_name(name) or not _NAME.fullmatch(name)):
        raise UserError(
            f"--name={name}: it is the name of a folder, of letters, digits, _, - and spaces, and "
            "not that of a task that is built in."
        )
    data = {flag: FLAGS[flag].value for flag in names}
    for flag, value in data.items():
        if value and flag.endswith(("_file", "_dir")):
            data[flag] = files.absolute(value)
    return data | {"name": name or table_name(FLAGS.train_file)}


def table_from_flags() -> dict[str, Any]:
    """The arguments of `read_table_task`, from the flags of `define_table_flags`."""
    for flag in ("train_file", "text_column", "label_column"):
        if not FLAGS[flag].value:
            raise UserError(f"--{flag} is missing: tables are read by it.")
    names = ["train_file", "dev_file", "test_file", "dev_fraction", "max_bad_share"]
    names += ["text_column", "second_text_column", "label_column", "regression"]
    # Only where they are given, so that runs from before there were such flags are resumed.
    names += [flag for flag in ("encoding", "delimiter") if FLAGS[flag].value]
    return data_from_flags(names)


def check_start_flags() -> dict[str, Any]:
    """Checks the flags of `define_start_flags`; returns the encoder's arguments."""
    # Without TensorFlow, so that mistakes are reported at once.
    files.check_writable(FLAGS.output_dir, "--output_dir")
    if FLAGS.config_file and not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")
    if FLAGS.tpu and FLAGS.distribution_strategy != "tpu":
        raise UserError("--tpu goes with --distribution_strategy=tpu.")
    if FLAGS.distribution_strategy == "tpu" and FLAGS.processes > 1:
        raise UserError("--processes: a TPU does one run at a time.")
    return backbone_config(FLAGS.preset)


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
) -> str:
    """Runs the experiment that the flags define; returns the path of its table of results."""
    # `name` is the task's and the experiment's folder's; `family` and `arguments` are those of the
    # task, beside what all tasks have. `changes` are made to the configuration, by the flag that
    # asks for each: its key and value. `settings` is the key in the configuration's `tasks`: None
    # for `name`, empty for none. `config_file` is the configuration where no flag names one; empty
    # for the one that suits the encoder. Each of `seeds` has a search of its own; None for those
    # that `--seeds` and `--search` ask for.
    fields = {"train_fraction": 1.0, "from_scratch": False}
    fields = {key: getattr(FLAGS, key, value) for key, value in fields.items()}
    if not 0 < fields["train_fraction"] <= 1:
        raise UserError(f"--train_fraction={fields['train_fraction']} must be in (0, 1].")
    width = check_start_flags()["hidden_dim"]
    config_file = FLAGS.config_file or config_file or suitable_config(width)

    # Imported after the flags are checked, so that mistakes in them are reported at once.
    from cocolm_tf.finetuning.config import load_finetuning_config, with_values
    from cocolm_tf.finetuning.experiment import Experiment, run_experiment
    from cocolm_tf.finetuning.tasks import FAMILY_KEY, task_of

    settings = name if settings is None else settings
    config, grid = load_finetuning_config(config_file, settings, FLAGS.params_override)
    for flag, (key, value) in (changes or {}).items():
        config = with_values(config, {key: value}, f"--{flag}")
    search = seeds is not None or FLAGS.search
    if seeds is None and search and not grid:
        raise UserError(f"--search: {config_file} has no `search` to go through.")
    fields |= {"preset": FLAGS.preset, "metric": FLAGS.metric}
    experiment = Experiment(
        name,
        task_of({FAMILY_KEY: family, "config": config.as_dict(), **fields, **arguments}),
        grid if search else {},
        range(FLAGS.seeds) if seeds is None else seeds,
        FLAGS.search_reduction,
        search_each_seed=seeds is not None,
        ensemble=getattr(FLAGS, "ensemble", False),
    )
    options = {
        "distribution_strategy": FLAGS.distribution_strategy,
        **({"tpu": FLAGS.tpu} if FLAGS.tpu else {}),
    }
    return run_experiment(experiment, FLAGS.output_dir, FLAGS.processes, options)

"""The flags that the fine-tuning programs share, and the experiment that they ask for."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from cocolm_tf import files
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.finetuning.run import Run

# The flags are those of the programs that ask for them, so that their --help shows them.
flags.disclaim_key_flags()

# The narrowest encoders that the released settings are for, and those settings.
_CONFIGS = ((1024, "large_pp.yaml"), (768, "base_pp.yaml"), (0, "small.yaml"))


def define_start_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of every fine-tuning program.

    Args:
        flag_values: Where to define them.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_start_flags(flag_values)
    flag_values(["program", "--preset=runs/first/preset", "--output_dir=runs/glue"])
    ```
    """
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
        "jobs",
        1,
        "How many runs to do at a time, each a process of its own.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.mark_flags_as_required(["preset", "output_dir"], flag_values=flag_values)


def define_run_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the programs whose runs are a `Run`.

    Args:
        flag_values: Where to define them.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_run_flags(flag_values)
    flag_values(["program", "--preset=runs/first/preset", "--output_dir=runs/glue", "--seeds=5"])
    ```
    """
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


def define_glue_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that name a task of GLUE.

    Args:
        flag_values: Where to define them.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_glue_flags(flag_values)
    flag_values(["program", "--task=rte"])
    ```
    """
    flags.DEFINE_enum("task", None, list(GLUE_TASKS), "The task.", flag_values=flag_values)
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of GLUE's official TSV files, with RTE/train.tsv and so on. Without it, TensorFlow "
        "Datasets.",
        flag_values=flag_values,
    )
    flags.mark_flag_as_required("task", flag_values=flag_values)


def check_start_flags(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """Checks what `define_start_flags` defined, without TensorFlow, so that it answers at once.

    Args:
        flag_values: Where the flags are.

    Returns:
        The architecture of the preset's encoder, see `backbone_config`.

    Raises:
        UserError: If a flag's value is wrong.

    Example:
    ```python
    check_start_flags()["hidden_dim"]
    ```
    """
    files.check_writable(flag_values.output_dir, "--output_dir")
    if flag_values.config_file and not files.is_file(flag_values.config_file):
        raise UserError(f"--config_file={flag_values.config_file} does not exist.")
    return backbone_config(flag_values.preset)


def suitable_config(width: int, configs: str) -> str:
    """Finds the settings for an encoder.

    Args:
        width: int. Its `hidden_dim`.
        configs: The folder of the configurations.

    Returns:
        The path of one of them.

    Example:
    ```python
    suitable_config(768, "configs/finetune")  # "configs/finetune/base_pp.yaml"
    ```
    """
    suits = next(file for narrowest, file in _CONFIGS if width >= narrowest)
    return os.path.join(configs, suits)


def run_from_flags(
    name: str,
    make_run: Callable[..., Run],
    configs: str,
    changes: Mapping[str, tuple[str, Any]] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
    settings: str | None = None,
) -> str:
    """Runs the experiment that the flags ask for.

    Args:
        name: Of the task, and of the experiment's folder.
        make_run: Gets the arguments of `Run`, and gives what the runs have in common.
        configs: The folder of the configurations to choose from where no flag names one.
        changes: To the configuration, by the names of the flags that ask for them: each a key and
            its value.
        flag_values: Where the flags are.
        settings: Which of the configuration's `tasks` it is; None for the one of its name, and
            `""` for none.

    Returns:
        The path of the table of results.

    Raises:
        UserError: If a flag's value is wrong, or as `run_experiment`.

    Example:
    ```python
    make_run = functools.partial(ClassificationRun, data={"glue": {"task": "rte"}})
    run_from_flags("rte", make_run, "configs/finetune")
    ```
    """
    if not 0 < flag_values.train_fraction <= 1:
        raise UserError(f"--train_fraction={flag_values.train_fraction} must be in (0, 1].")
    width = check_start_flags(flag_values)["hidden_dim"]
    config_file = flag_values.config_file or suitable_config(width, configs)

    # Imported once the flags are known, so that mistakes in them answer at once.
    from cocolm_tf.finetuning.config import load_finetuning_config, with_values
    from cocolm_tf.finetuning.experiment import Experiment, run_experiment

    settings = name if settings is None else settings
    config, grid = load_finetuning_config(config_file, settings, flag_values.params_override)
    for flag, (key, value) in (changes or {}).items():
        config = with_values(config, {key: value}, f"--{flag}")
    if flag_values.search and not grid:
        raise UserError(f"--search: {config_file} has no `search` to go through.")
    run = make_run(
        preset=flag_values.preset,
        config=config.as_dict(),
        train_fraction=flag_values.train_fraction,
        from_scratch=flag_values.from_scratch,
    )
    experiment = Experiment(name, run, grid if flag_values.search else {}, flag_values.seeds)
    return run_experiment(experiment, flag_values.output_dir, flag_values.jobs)

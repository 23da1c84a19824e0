"""The flags that the fine-tuning programs share, and the experiment that they ask for."""

import os
from typing import Any

from absl import flags

from cocolm_tf.errors import UserError

# The narrowest encoders that the released settings are for, and those settings.
_CONFIGS = ((1024, "large_pp.yaml"), (768, "base_pp.yaml"), (0, "small.yaml"))


def define_run_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags.

    Args:
        flag_values: Where to define them.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_run_flags(flag_values)
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
    flags.DEFINE_string(
        "config_file",
        "",
        "YAML file that defines a run; see configs/finetune. By default the one there that suits "
        "the size of the model.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "params_override",
        [],
        "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable.",
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


def run_from_flags(
    name: str,
    data: dict[str, dict[str, Any]],
    configs: str,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> str:
    """Runs the experiment that the flags ask for.

    Args:
        name: Of the task, and of the experiment's folder.
        data: See `ClassificationRun`.
        configs: The folder of the configurations to choose from where no flag names one.
        flag_values: Where the flags are.

    Returns:
        The path of the table of results.

    Raises:
        UserError: If a flag's value is wrong, or as `run_experiment`.

    Example:
    ```python
    run_from_flags("rte", {"glue": {"task": "rte", "data_dir": "glue_data"}}, "configs/finetune")
    ```
    """
    if not 0 < flag_values.train_fraction <= 1:
        raise UserError(f"--train_fraction={flag_values.train_fraction} must be in (0, 1].")
    if os.path.exists(flag_values.output_dir) and not os.path.isdir(flag_values.output_dir):
        raise UserError(f"--output_dir={flag_values.output_dir} is a file; it must be a folder.")
    config_file = flag_values.config_file
    if config_file and not os.path.isfile(config_file):
        raise UserError(f"--config_file={config_file} does not exist.")
    # Imported once the flags are known, so that mistakes in them answer at once.
    from cocolm_tf.finetuning.presets import backbone_config

    width = backbone_config(flag_values.preset)["hidden_dim"]
    config_file = config_file or suitable_config(width, configs)

    from cocolm_tf.finetuning.config import load_finetuning_config
    from cocolm_tf.finetuning.experiment import Experiment, run_experiment

    config, grid = load_finetuning_config(config_file, name, flag_values.params_override)
    if flag_values.search and not grid:
        raise UserError(f"--search: {config_file} has no `search` to go through.")
    experiment = Experiment(
        name,
        flag_values.preset,
        data,
        config,
        grid if flag_values.search else {},
        flag_values.seeds,
        flag_values.train_fraction,
        flag_values.from_scratch,
    )
    return run_experiment(experiment, flag_values.output_dir, flag_values.jobs)


def suitable_config(width: int, configs: str) -> str:
    """Chooses the settings that suit the size of a model.

    Args:
        width: Of its hidden states.
        configs: The folder of the configurations to choose from.

    Returns:
        The path of one.

    Example:
    ```python
    suitable_config(768, "configs/finetune")  # "configs/finetune/base_pp.yaml"
    ```
    """
    return os.path.join(configs, next(file for narrowest, file in _CONFIGS if width >= narrowest))

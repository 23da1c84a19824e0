"""The flags that the programs share which count or measure what a configuration costs."""

from absl import flags

from cocolm_tf import files
from cocolm_tf.cpus import available_cpus
from cocolm_tf.errors import UserError

# The flags are the key flags of the programs that define them, so that their --help shows them.
flags.disclaim_key_flags()

FLAGS = flags.FLAGS


def define_config_flags(required: bool = True) -> None:
    """Defines the flags that name a pretraining configuration."""
    flags.DEFINE_string(
        "config_file",
        None,
        "YAML file that defines the run; see configs/pretrain.",
        required=required,
    )
    flags.DEFINE_multi_string(
        "params_override",
        [],
        "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable.",
    )


def define_rounds_flags() -> None:
    """Defines the flags of the programs that time several contenders in turn."""
    flags.DEFINE_integer("rounds", 5, "How often each is timed.", lower_bound=1)
    flags.DEFINE_integer(
        "threads", available_cpus(), "The number of threads that each may use.", lower_bound=1
    )


def define_warmup_flag(steps: int) -> None:
    """Defines the flag of the programs that time single steps."""
    flags.DEFINE_integer(
        "warmup_steps",
        steps,
        "The number of steps before those that are timed, beside the first, which compiles.",
        lower_bound=0,
    )


def check_config_file() -> None:
    """Refuses a `--config_file` that is not there."""
    if FLAGS.config_file and not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")


def configuration_name() -> str:
    """The configuration as reports name it."""
    return " ".join([FLAGS.config_file, *FLAGS.params_override])


def described_configuration() -> dict[str, object]:
    """The configuration as results in JSON name it."""
    return {"config_file": FLAGS.config_file, "params_override": FLAGS.params_override}

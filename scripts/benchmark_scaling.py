"""Measures how a training step's cost grows with its sizes, beside how its FLOPs grow.

    benchmark_scaling.py --config_file=configs/pretrain/small.yaml --factors=0.5,2

Prints a table and, as the last line, the same numbers as JSON.
"""

import json
import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.errors import UserError

flags.DEFINE_string("config_file", None, "YAML file that defines the run; see configs/pretrain.")
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_list(
    "axes",
    ["trainer.batch_size", "data.sequence_length", "model.num_layers", "model.hidden_dim"]
    + ["model.vocabulary_size"],
    "The sizes to change, one at a time. With the width change the number of heads and the width "
    "of the feed-forward network.",
)
flags.DEFINE_list("factors", ["0.5", "2"], "By what to multiply each of them, beside 1.")
flags.DEFINE_integer("rounds", 5, "The number of steps of each to time.", lower_bound=1)
flags.DEFINE_integer(
    "warmup_steps",
    1,
    "The number of steps of each before them, beside the first, which compiles.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "threads", available_cpus(), "The number of threads that a step may use.", lower_bound=1
)
flags.mark_flag_as_required("config_file")

FLAGS = flags.FLAGS


def main() -> str:
    factors = [_number(text) for text in FLAGS.factors]
    if not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")
    # On a GPU the contenders share its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.benchmarking.scaling import format_scaling, measure_scaling
    from cocolm_tf.training.config import load_config

    result = measure_scaling(
        load_config(FLAGS.config_file, FLAGS.params_override),
        FLAGS.axes,
        factors,
        FLAGS.rounds,
        FLAGS.warmup_steps,
        FLAGS.threads,
    )
    print(f"sizes       {' '.join([FLAGS.config_file, *FLAGS.params_override])}")
    print(format_scaling(result))
    return json.dumps(
        {"config_file": FLAGS.config_file, "params_override": FLAGS.params_override} | result
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--factors has {text!r}: each must be a number above 0.")
    return value


if __name__ == "__main__":
    program.run(main)

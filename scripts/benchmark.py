"""Measures how fast a configuration pretrains on this machine, with random tokens.

    benchmark.py --config_file=configs/pretrain/small.yaml --steps=20 --mixed_precision

Prints a table and, as the last line, the same numbers as JSON. It trains on one device: the first
GPU, or the CPU.
"""

import json

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("config_file", None, "YAML file that defines the run; see configs/pretrain.")
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_integer("steps", 20, "The number of steps to time.", lower_bound=1)
flags.DEFINE_integer(
    "warmup_steps",
    2,
    "The number of steps before them, beside the first, which compiles.",
    lower_bound=0,
)
flags.DEFINE_bool("mixed_precision", False, "Compute in bfloat16: --precision=mixed_bfloat16.")
flags.DEFINE_enum(
    "precision",
    None,
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "What to compute in, instead of the configuration's runtime.precision.",
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "The number of sequences a step, instead of trainer.batch_size.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "sequence_length",
    None,
    "The number of tokens of a sequence, instead of data.sequence_length.",
    lower_bound=3,
)
flags.DEFINE_bool(
    "compiled_costs",
    False,
    "Count the FLOPs, bytes, kernels and host transfers of XLA's program of the step too. It is "
    "compiled once more for that, and must be compiled: runtime.jit_compile=true.",
)
flags.mark_flag_as_required("config_file")

FLAGS = flags.FLAGS


def main() -> str:
    overrides = FLAGS.params_override + _overrides_by_flags()
    if not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.costs.step_benchmark import benchmark, format_report
    from cocolm_tf.training.config import load_config

    config = load_config(FLAGS.config_file, overrides)
    result = benchmark(config, FLAGS.steps, FLAGS.warmup_steps, FLAGS.compiled_costs)
    print(f"{'configuration':24}{' '.join([FLAGS.config_file, *overrides])}")
    print(format_report(result))
    return json.dumps({"config_file": FLAGS.config_file, "params_override": overrides} | result)


def _overrides_by_flags() -> list[str]:
    precision = FLAGS.precision
    if FLAGS.mixed_precision:
        if precision not in (None, "mixed_bfloat16"):
            raise UserError(
                f"--mixed_precision means --precision=mixed_bfloat16: leave it out, or leave "
                f"--precision={precision} out."
            )
        precision = "mixed_bfloat16"
    values = {
        "runtime.precision": precision,
        "trainer.batch_size": FLAGS.batch_size,
        "data.sequence_length": FLAGS.sequence_length,
    }
    return [f"{key}={value}" for key, value in values.items() if value is not None]


if __name__ == "__main__":
    program.run(main)

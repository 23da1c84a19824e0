"""Measures how fast a configuration pretrains on this machine, with random tokens.

    benchmark.py --config_file=configs/pretrain/small.yaml --steps=20 --mixed_precision

Prints a table and, as the last line, the same numbers as JSON. It trains on one device: the first
GPU, or the CPU.
"""

import json

from absl import flags

from cocolm_tf import program
from cocolm_tf.costs import flags as shared
from cocolm_tf.errors import UserError

shared.define_config_flags()
shared.define_warmup_flag(2)
flags.DEFINE_integer("steps", 20, "The number of steps to time.", lower_bound=1)
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

FLAGS = flags.FLAGS


def main() -> str:
    if FLAGS.mixed_precision:
        if FLAGS.precision not in (None, "mixed_bfloat16"):
            raise UserError(
                f"--mixed_precision means --precision=mixed_bfloat16: leave it out, or leave "
                f"--precision={FLAGS.precision} out."
            )
        FLAGS.precision = "mixed_bfloat16"
    values = {
        "runtime.precision": FLAGS.precision,
        "trainer.batch_size": FLAGS.batch_size,
        "data.sequence_length": FLAGS.sequence_length,
    }
    FLAGS.params_override += [f"{key}={value}" for key, value in values.items() if value]
    shared.check_config_file()

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.costs.formatting import format_result
    from cocolm_tf.costs.step_benchmark import benchmark
    from cocolm_tf.training.config import load_config

    config = load_config(FLAGS.config_file, FLAGS.params_override)
    result = benchmark(config, FLAGS.steps, FLAGS.warmup_steps, FLAGS.compiled_costs)
    result = shared.described_configuration() | result
    print(format_result(result))
    return json.dumps(result)


if __name__ == "__main__":
    program.run(main)

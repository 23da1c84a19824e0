"""Measures how a training step's cost grows with its sizes, beside how its FLOPs grow.

    benchmark_scaling.py --config_file=configs/pretrain/small.yaml --factors=0.5,2

Prints a table and, as the last line, the same numbers as JSON.
"""

import json

from absl import flags

from cocolm_tf import program
from cocolm_tf.costs import flags as shared
from cocolm_tf.errors import UserError

shared.define_config_flags()
shared.define_rounds_flags()
shared.define_warmup_flag(1)
flags.DEFINE_list(
    "axes",
    ["trainer.batch_size", "data.sequence_length", "model.num_layers", "model.hidden_dim"]
    + ["model.vocabulary_size"],
    "The sizes to change, one at a time. With the width change the number of heads and the width "
    "of the feed-forward network.",
)
flags.DEFINE_list("factors", ["0.5", "2"], "By what to multiply each of them, beside 1.")

FLAGS = flags.FLAGS


def main() -> str:
    factors = [_number(text) for text in FLAGS.factors]
    shared.check_config_file()

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from benchmarks.pretraining import measure_scaling

    from cocolm_tf.costs.formatting import format_result
    from cocolm_tf.training.config import load_config

    result = measure_scaling(
        load_config(FLAGS.config_file, FLAGS.params_override),
        FLAGS.axes,
        factors,
        FLAGS.rounds,
        FLAGS.warmup_steps,
        FLAGS.threads,
    )
    result = shared.described_configuration() | result
    tables = {
        axis: {f"{row['value']:,}": row for row in rows} for axis, rows in result["axes"].items()
    }
    print(format_result(result, tables))
    return json.dumps(result)


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

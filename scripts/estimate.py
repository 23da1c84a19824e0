"""Estimates what a run will take, by arithmetic: memory, FLOPs, traffic and time.

    estimate.py --config_file=configs/pretrain/base.yaml --devices=8 --accelerator=h100

Prints tables; with --json, one line of JSON instead. docs/scaling.md explains the figures.
"""

import json
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.costs import flags as shared
from cocolm_tf.errors import UserError

shared.define_config_flags()
flags.DEFINE_integer("devices", 1, "The number of devices to train on.", lower_bound=1)
flags.DEFINE_multi_enum(
    "accelerator",
    None,
    ["a100-40gb", "a100", "h100", "h200", "v4", "v5e", "v5p", "v6e"],
    "What each device is. Repeatable; all, if it is not given.",
)
flags.DEFINE_float(
    "share_of_peak",
    None,
    "The share of the peak FLOPs that steps reach, instead of what was published for the size.",
    0.001,
    1.0,
)
flags.DEFINE_multi_string(
    "compiled",
    [],
    "A file with what compile_step.py printed of this configuration: the least time that its "
    "program allows, and its memory. Repeatable.",
)
flags.DEFINE_float(
    "share_of_memory", 0.9, "The share of the memory that tensors may take.", 0.01, 1.0
)
flags.DEFINE_float(
    "link_bandwidth",
    0.0,
    "GB/s that a device sends, where it is not its vendor's: of several hosts, the network's.",
    lower_bound=0.0,
)
flags.DEFINE_bool("json", False, "Print one line of JSON instead of tables.")

FLAGS = flags.FLAGS
_OF_COMPILED = ("target", "precision", "sequences", "rematerialize", "model_flops")
_OF_COMPILED += ("share_of_peak_at_most", "argument_bytes", "temporary_bytes")


def main() -> str:
    shared.check_config_file()

    # Imported once the flags are known: Model Garden's configurations import TensorFlow.
    from cocolm_tf.costs.accelerators import ACCELERATORS
    from cocolm_tf.costs.estimation import estimate, format_report
    from cocolm_tf.training.config import load_config

    result = estimate(
        load_config(FLAGS.config_file, FLAGS.params_override),
        FLAGS.devices,
        FLAGS.accelerator or list(ACCELERATORS),
        FLAGS.share_of_peak or 0.0,
        FLAGS.share_of_memory,
        FLAGS.link_bandwidth * 1e9,
        [_read_compiled(path) for path in FLAGS.compiled],
    )
    result = shared.described_configuration() | result
    return json.dumps(result) if FLAGS.json else format_report(result)


def _read_compiled(path: str) -> dict[str, Any]:
    try:
        result = json.loads(files.read_text(path).splitlines()[-1])
        return {key: result[key] for key in _OF_COMPILED}
    except (OSError, IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"--compiled={path} does not end with the JSON that compile_step.py prints: {error!r}."
        ) from error


if __name__ == "__main__":
    program.run(main)

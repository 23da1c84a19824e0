"""Times our training step beside those of other projects' ELECTRA, and beside parts of itself.

    benchmark_peers.py --config_file=configs/pretrain/small.yaml --rounds=5

All take turns in one run, one step at a time. Prints a table for each precision and, as the last
line, the same numbers as JSON. The peers come with `pip install 'cocolm-tf[peers]'`; one that is
not installed is left out.
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
    "contenders",
    ["electra", "rtd", "coco_lm_without_scl", "coco_lm_without_lm", "coco_lm"]
    + ["model_garden", "hugging_face"],
    "What to time. Ours: coco_lm, the configuration; coco_lm_without_scl and coco_lm_without_lm, "
    "one task less; rtd, without both; electra, rtd with nothing that the peers do not do. Peers: "
    "model_garden, model_garden_xla, hugging_face, hugging_face_eager, hugging_face_compiled.",
)
flags.DEFINE_list(
    "precisions", ["float32", "mixed_bfloat16"], "float32, mixed_bfloat16 or both, in turn."
)

FLAGS = flags.FLAGS


def main() -> str:
    for precision in FLAGS.precisions:
        if precision not in ("float32", "mixed_bfloat16"):
            raise UserError(
                f"--precisions has {precision!r}, but there are only float32 and mixed_bfloat16."
            )
    shared.check_config_file()

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from benchmarks.pretraining import compare

    from cocolm_tf.costs.formatting import format_result
    from cocolm_tf.training.config import load_config

    result = compare(
        load_config(FLAGS.config_file, FLAGS.params_override),
        FLAGS.contenders,
        FLAGS.precisions,
        FLAGS.rounds,
        FLAGS.warmup_steps,
        FLAGS.threads,
    )
    result = shared.described_configuration() | result
    print(format_result(result, result["precisions"]))
    return json.dumps(result)


if __name__ == "__main__":
    program.run(main)

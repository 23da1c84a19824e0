"""Times our training step beside those of other projects' ELECTRA, and beside parts of itself.

    benchmark_peers.py --config_file=configs/pretrain/small.yaml --rounds=5

All take turns in one run, one step at a time. Prints a table for each precision and, as the last
line, the same numbers as JSON. The peers come with `pip install 'cocolm-tf[peers]'`; one that is
not installed is left out.
"""

import json
import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.errors import UserError

flags.DEFINE_string("config_file", None, "YAML file that defines the sizes; see configs/pretrain.")
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable."
)
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
flags.DEFINE_integer("rounds", 5, "The number of steps of each to time.", lower_bound=1)
flags.DEFINE_integer(
    "warmup_steps",
    1,
    "The number of steps of each before them, beside the first, which compiles.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "threads", available_cpus(), "The number of threads that each may use.", lower_bound=1
)
flags.mark_flag_as_required("config_file")

FLAGS = flags.FLAGS


def main() -> str:
    for precision in FLAGS.precisions:
        if precision not in ("float32", "mixed_bfloat16"):
            raise UserError(
                f"--precisions has {precision!r}, but there are only float32 and mixed_bfloat16."
            )
    if not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")
    # On a GPU the contenders share its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from benchmarks.peers import compare, format_comparison

    from cocolm_tf.training.config import load_config

    result = compare(
        load_config(FLAGS.config_file, FLAGS.params_override),
        FLAGS.contenders,
        FLAGS.precisions,
        FLAGS.rounds,
        FLAGS.warmup_steps,
        FLAGS.threads,
    )
    print(f"sizes       {' '.join([FLAGS.config_file, *FLAGS.params_override])}")
    print(format_comparison(result))
    return json.dumps(
        {"config_file": FLAGS.config_file, "params_override": FLAGS.params_override} | result
    )


if __name__ == "__main__":
    program.run(main)

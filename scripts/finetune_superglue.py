"""Fine-tunes a pretrained model on a task of SuperGLUE, and measures it on the dev set.

    finetune_superglue.py --preset=runs/first/preset --task=boolq --data_dir=superglue \
        --output_dir=runs/superglue

Predictions of the test sets are written as the leaderboard takes them. See docs/finetuning.md.
"""

from absl import flags

from cocolm_tf import program
from cocolm_tf.data.superglue import SUPERGLUE_TASKS
from cocolm_tf.finetuning.flags import (
    benchmark_from_flags,
    define_benchmark_flags,
    define_run_flags,
    run_from_flags,
)

define_run_flags()
define_benchmark_flags(SUPERGLUE_TASKS, "folders, with BoolQ/train.jsonl and so on")
flags.mark_flag_as_required("task")

FLAGS = flags.FLAGS


def main() -> str:
    data = {"superglue": benchmark_from_flags()}
    # Not the settings of GLUE's RTE, nor its folder.
    return run_from_flags(f"superglue_{FLAGS.task}", "superglue", {"data": data})


if __name__ == "__main__":
    program.run(main)

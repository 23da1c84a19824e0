"""Fine-tunes a pretrained model on a task of SuperGLUE, and measures it on the dev set.

    finetune_superglue.py --preset=runs/first/preset --task=boolq --data_dir=superglue \
        --output_dir=runs/superglue

Predictions of the test sets are written as the leaderboard takes them. See docs/finetuning.md.
"""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.data.superglue import SUPERGLUE_TASKS
from cocolm_tf.finetuning.flags import define_run_flags, run_from_flags

define_run_flags()
flags.DEFINE_enum("task", None, list(SUPERGLUE_TASKS), "The task.")
flags.DEFINE_string(
    "data_dir",
    "",
    "Folder of SuperGLUE's official folders, with BoolQ/train.jsonl and so on. Without it, "
    "TensorFlow Datasets.",
)
flags.mark_flag_as_required("task")

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    data_dir = files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.superglue import SuperGlueClassificationTask

        return SuperGlueClassificationTask(
            data={"superglue": {"task": FLAGS.task, "data_dir": data_dir}}, **fields
        )

    # Not the settings of GLUE's RTE, nor its folder.
    name = f"superglue_{FLAGS.task}"
    return run_from_flags(name, make_task, os.path.join(ROOT, "configs", "finetune"))


if __name__ == "__main__":
    program.run(main)

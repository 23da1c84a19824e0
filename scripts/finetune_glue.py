"""Fine-tunes a pretrained model on a task of GLUE, and measures it on the dev set."""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.finetuning.flags import (
    define_classifier_flags,
    define_glue_flags,
    define_run_flags,
    run_from_flags,
)

define_run_flags()
define_glue_flags()
define_classifier_flags()

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    data_dir = files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.classification import ClassificationTask

        data = {"glue": {"task": FLAGS.task, "data_dir": data_dir}}
        return ClassificationTask(data=data, class_weights=FLAGS.class_weights, **fields)

    return run_from_flags(FLAGS.task, make_task, os.path.join(ROOT, "configs", "finetune"))


if __name__ == "__main__":
    program.run(main)

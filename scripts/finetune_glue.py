"""Fine-tunes a pretrained model on a task of GLUE, and measures it on the dev set."""

import functools
import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.finetuning.classification_run import ClassificationRun
from cocolm_tf.finetuning.run_flags import define_glue_flags, define_run_flags, run_from_flags

define_run_flags()
define_glue_flags()

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    data_dir = files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None
    data = {"glue": {"task": FLAGS.task, "data_dir": data_dir}}
    make_run = functools.partial(ClassificationRun, data=data)
    return run_from_flags(FLAGS.task, make_run, os.path.join(ROOT, "configs", "finetune"))


if __name__ == "__main__":
    program.run(main)

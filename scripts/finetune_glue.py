"""Fine-tunes a pretrained model on a task of GLUE, and measures it on the dev set."""

import os

from absl import flags

from cocolm_tf import program
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.finetuning.run_flags import define_run_flags, run_from_flags

flags.DEFINE_enum("task", None, list(GLUE_TASKS), "The task.")
flags.DEFINE_string(
    "data_dir",
    "",
    "Folder of GLUE's official TSV files, with RTE/train.tsv and so on. Without it, TensorFlow "
    "Datasets.",
)
define_run_flags()
flags.mark_flag_as_required("task")

FLAGS = flags.FLAGS
CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


def main() -> str:
    data_dir = os.path.abspath(FLAGS.data_dir) if FLAGS.data_dir else None
    data = {"glue": {"task": FLAGS.task, "data_dir": data_dir}}
    return run_from_flags(FLAGS.task, data, os.path.join(CONFIGS, "finetune"))


if __name__ == "__main__":
    program.run(main)

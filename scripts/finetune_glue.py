"""Fine-tunes a pretrained model on a task of GLUE, and measures it on the dev set."""

from absl import flags

from cocolm_tf import program
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.finetuning.flags import (
    benchmark_from_flags,
    define_benchmark_flags,
    define_classifier_flags,
    define_run_flags,
    run_from_flags,
)

define_run_flags()
define_benchmark_flags(GLUE_TASKS, "TSV files, with RTE/train.tsv and so on")
define_classifier_flags()
flags.mark_flag_as_required("task")

FLAGS = flags.FLAGS


def main() -> str:
    data = {"glue": benchmark_from_flags()}
    arguments = {"data": data, "class_weights": FLAGS.class_weights}
    return run_from_flags(FLAGS.task, "classification", arguments)


if __name__ == "__main__":
    program.run(main)

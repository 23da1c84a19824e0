"""Fine-tunes a pretrained model on a table of one's own: TSV, CSV or JSON lines."""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.finetuning.flags import (
    define_classifier_flags,
    define_run_flags,
    define_table_flags,
    run_from_flags,
    table_from_flags,
)

define_table_flags()
define_run_flags()
define_classifier_flags()

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    table = table_from_flags()

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.classification import ClassificationTask

        return ClassificationTask(
            data={"table": table}, class_weights=FLAGS.class_weights, **fields
        )

    configs = os.path.join(ROOT, "configs", "finetune")
    return run_from_flags(table["name"], make_task, configs, settings="")


if __name__ == "__main__":
    program.run(main)

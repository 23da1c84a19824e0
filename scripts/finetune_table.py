"""Fine-tunes a pretrained model on a table of one's own: TSV, CSV or JSON lines."""

from absl import flags

from cocolm_tf import program
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import (
    define_classifier_flags,
    define_run_flags,
    define_table_flags,
    run_from_flags,
    table_from_flags,
)

define_table_flags()
flags.DEFINE_bool(
    "multi_label", False, "A text has any number of labels, as --label_separator separates them."
)
flags.DEFINE_string("label_separator", ",", "multi_label: what is between two labels of a row.")
flags.DEFINE_bool(
    "tune_thresholds",
    False,
    "multi_label: choose on the dev set from which probability on a text has each label, for the "
    "best F1, instead of 0.5.",
)
define_run_flags()
define_classifier_flags()
flags.mark_flags_as_required(["train_file", "text_column", "label_column"])

FLAGS = flags.FLAGS


def main() -> str:
    table = table_from_flags()
    if FLAGS.multi_label:
        if not FLAGS.label_separator.strip("\t\r\n"):
            raise UserError("--label_separator must be text without tabs and line ends.")
        table["label_separator"] = FLAGS.label_separator
    elif FLAGS.tune_thresholds:
        raise UserError("--tune_thresholds goes with --multi_label.")
    arguments = {
        "data": {"table": table},
        "class_weights": FLAGS.class_weights,
        "tune_thresholds": FLAGS.tune_thresholds,
    }
    return run_from_flags(table["name"], "classification", arguments, settings="")


if __name__ == "__main__":
    program.run(main)

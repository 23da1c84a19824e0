"""Fine-tunes a pretrained model on a table of one's own: TSV, CSV or JSON lines."""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.data.table_task import table_name
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import define_run_flags, run_from_flags

flags.DEFINE_string(
    "train_file", None, "Table to learn from: .tsv, .csv or .jsonl, with named columns."
)
flags.DEFINE_string("dev_file", "", "Table to choose the best epoch by.")
flags.DEFINE_float(
    "dev_fraction", 0.1, "Without --dev_file: the share of the training rows to split off for it."
)
flags.DEFINE_string("test_file", "", "Table to predict; it needs no labels.")
flags.DEFINE_string("text_column", None, "Column of the texts.")
flags.DEFINE_string("second_text_column", "", "Column of the second texts, for pairs.")
flags.DEFINE_string("label_column", None, "Column of the labels.")
flags.DEFINE_bool("regression", False, "Predict the labels as numbers.")
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
flags.DEFINE_float(
    "max_bad_share",
    0.0,
    "The share of a file's rows that may be left out because something is wrong with them.",
)
flags.DEFINE_string(
    "encoding",
    "",
    "Encoding of the tables that have no byte order mark, as cp1252. By default UTF-8.",
)
flags.DEFINE_string(
    "delimiter",
    "",
    "What separates the columns of .csv and .tsv, as ';' or '\\t'. By default a comma and a tab.",
)
define_run_flags()
flags.mark_flags_as_required(["train_file", "text_column", "label_column"])

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    name = table_name(FLAGS.train_file)
    table = {
        "train_file": files.absolute(FLAGS.train_file),
        "text_column": FLAGS.text_column,
        "label_column": FLAGS.label_column,
        "second_text_column": FLAGS.second_text_column,
        "dev_file": files.absolute(FLAGS.dev_file) if FLAGS.dev_file else "",
        "dev_fraction": FLAGS.dev_fraction,
        "test_file": files.absolute(FLAGS.test_file) if FLAGS.test_file else "",
        "regression": FLAGS.regression,
        "max_bad_share": FLAGS.max_bad_share,
        "name": name,
    }
    # Only where they are given, so that runs from before there were such go on.
    table |= {flag: FLAGS[flag].value for flag in ("encoding", "delimiter") if FLAGS[flag].value}
    if FLAGS.multi_label:
        if not FLAGS.label_separator.strip("\t\r\n"):
            raise UserError("--label_separator must be text without tabs and line ends.")
        table["label_separator"] = FLAGS.label_separator
    elif FLAGS.tune_thresholds:
        raise UserError("--tune_thresholds goes with --multi_label.")

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.classification import ClassificationTask

        tune = FLAGS.tune_thresholds
        return ClassificationTask(data={"table": table}, tune_thresholds=tune, **fields)

    configs = os.path.join(ROOT, "configs", "finetune")
    return run_from_flags(name, make_task, configs, settings="")


if __name__ == "__main__":
    program.run(main)

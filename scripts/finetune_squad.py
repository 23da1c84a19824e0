"""Fine-tunes a pretrained model on SQuAD 2.0 or 1.1, and scores it on the dev set."""

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import define_run_flags, run_from_flags

define_run_flags()
flags.DEFINE_string(
    "train_file",
    "",
    "JSON file to learn from, in the format of SQuAD 2.0 or 1.1. Without it, TensorFlow Datasets' "
    "squad/v2.0.",
)
flags.DEFINE_string("dev_file", "", "JSON file to score on; it goes with --train_file.")
flags.DEFINE_integer(
    "sequence_length",
    None,
    "Tokens of a window with its question. By default 384, or what the model has positions for.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "stride",
    None,
    "Tokens from the beginning of one window of a context to that of the next. By default 128, or "
    "half of the context's room where that is less.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_question_length",
    None,
    "Tokens after which a question is cut off. By default 64, or a quarter of the window where "
    "that is less.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_answer_length",
    None,
    "Tokens of the longest answer. By default 30, or what windows are sure to hold where that is "
    "less.",
    lower_bound=1,
)
flags.DEFINE_integer("n_best", 20, "How many candidates to write for each question.", lower_bound=1)

FLAGS = flags.FLAGS


def main() -> str:
    given = {"train": FLAGS.train_file, "dev": FLAGS.dev_file}
    if bool(FLAGS.train_file) != bool(FLAGS.dev_file):
        raise UserError("--train_file and --dev_file go together: give both, or neither for TFDS.")
    for name, path in given.items():
        if path and not files.is_file(path):
            raise UserError(f"--{name}_file={path} does not exist.")
    names = ("stride", "max_question_length", "max_answer_length", "n_best")
    arguments = {name: FLAGS[name].value for name in names}
    arguments["files"] = {part: files.absolute(path) for part, path in given.items() if path}
    changes = {}
    if FLAGS.sequence_length:
        changes["sequence_length"] = ("data.sequence_length", FLAGS.sequence_length)
    return run_from_flags("squad", "question_answering", arguments, changes=changes)


if __name__ == "__main__":
    program.run(main)

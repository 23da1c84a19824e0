"""Shows what a pretraining run has learned: curves, results, and the model at work on sentences.

    report.py --model_dir=RUN --text='The cat sat on the mat.' --output_dir=OUT

OUT gets index.html, which needs no other file, and the plots as PNG files. The run may still be
going on; its models are demonstrated once it has ended.
"""

import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import check_encoding, text_lines

flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True)
flags.DEFINE_multi_string(
    "text", [], "A sentence to demonstrate on instead of those at hand. Repeatable."
)
flags.DEFINE_string("text_file", None, "A file of sentences to demonstrate on, one a line.")
flags.DEFINE_string(
    "encoding", "", "Encoding of --text_file without a byte order mark, as cp1252. Default: UTF-8."
)
flags.DEFINE_integer("seed", 0, "Decides what the demonstration masks and samples.", lower_bound=0)
flags.DEFINE_string("output_dir", None, "Folder to write the report to.", required=True)

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_dir(FLAGS.model_dir):
        raise UserError(f"--model_dir={FLAGS.model_dir} is not a folder.")
    files.check_writable(FLAGS.output_dir, "--output_dir")
    texts = FLAGS.text + _lines(FLAGS.text_file)
    if not files.is_file(os.path.join(FLAGS.model_dir, "metrics.jsonl")):
        raise UserError(
            f"{FLAGS.model_dir} has no metrics.jsonl: give the --model_dir of a pretraining run."
        )

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.analysis.run_report import write_report

    path, demonstration = write_report(FLAGS.model_dir, FLAGS.output_dir, texts, FLAGS.seed)
    if demonstration:
        print(demonstration.plain_text(), end="\n\n")
    return path


def _lines(path: str | None) -> list[str]:
    if path is None:
        return []
    check_encoding(FLAGS.encoding)
    try:
        lines = [line.strip() for line in text_lines(path, FLAGS.encoding) if line.strip()]
    except UserError as error:
        raise UserError(f"--text_file={error}") from error
    if not lines:
        raise UserError(f"--text_file={path} has no sentences: write one a line.")
    return lines


if __name__ == "__main__":
    program.run(main)

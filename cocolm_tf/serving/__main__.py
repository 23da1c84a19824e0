"""Asks an export, as in python -m cocolm_tf.serving DIR --text='The cat sit on the mat.'.

DIR is what scripts/export_saved_model.py wrote: the folder of all versions, or of one. Without
--signature the default one is asked. With --page instead of --text, a web page on this machine asks
while you type. With --input=texts.jsonl --output=results.jsonl all lines of a file are asked about:
JSON strings, or objects with the signature's inputs.
"""

import os
import sys

from absl import flags

from cocolm_tf import program
from cocolm_tf.errors import UserError

flags.DEFINE_multi_string("text", [], "A text to ask about. Repeatable.")
flags.DEFINE_multi_string("second", [], "The second text of each pair, for classify. Repeatable.")
flags.DEFINE_multi_string(
    "context", [], "The context of each question in --text, for answer. Repeatable."
)
flags.DEFINE_enum(
    "signature",
    None,
    ["embed", "correct", "classify", "classify_pairs", "answer", "tag"],
    "What to ask, instead of the export's default.",
)
flags.DEFINE_float(
    "threshold",
    0.5,
    "correct: how probable it must be that a word does not belong for it to be marked.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_enum(
    "color", "auto", ["auto", "always", "never"], "Whether to print in color: auto, in a terminal."
)
flags.DEFINE_bool("page", False, "Serve a web page, until Ctrl-C.")
flags.DEFINE_integer("port", 8080, "page: where on this machine.", lower_bound=0, upper_bound=65535)

flags.DEFINE_string("input", None, "A file of JSON lines to ask about, instead of --text.")
flags.DEFINE_string("output", None, "input: where the answers go. It is resumed if it was ended.")
flags.DEFINE_integer(
    "batch_size", 32, "input: lines asked about together.", lower_bound=1, upper_bound=64
)

FLAGS = flags.FLAGS


def main(directory: str) -> str:
    """Asks, and prints the answer; or answers a file, or serves a page."""
    # An argument may be no UTF-8.
    text, second, context = (
        [os.fsencode(value).decode("utf-8", "replace") for value in values]
        for values in (FLAGS.text, FLAGS.second, FLAGS.context)
    )
    if not (FLAGS.page or FLAGS.input or FLAGS.output or text):
        raise UserError("there is nothing to ask: give a --text, --input or --page.")
    if bool(FLAGS.input) != bool(FLAGS.output) or (FLAGS.input and text):
        raise UserError("--input and --output go together, and without --text.")
    for name, values in (("second", second), ("context", context)):
        if values and len(values) != len(text):
            raise UserError(f"--{name} is given {len(values)} times, but --text {len(text)}.")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.serving.client import TEXT_INPUTS, Export, Printer, answer_file
    from cocolm_tf.serving.page import PageServer

    export = Export(directory)
    if FLAGS.page:
        with PageServer(export, FLAGS.port) as server:
            print(f"{server.address} (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        return ""
    signature = FLAGS.signature or export.default
    if FLAGS.input:
        answer_file(export, signature, FLAGS.input, FLAGS.output, FLAGS.batch_size)
        return FLAGS.output
    if signature == "classify" and second:
        signature = "classify_pairs"
    given = {"texts": text, "first": text, "questions": text, "second": second, "contexts": context}
    inputs = {name: given[name] for name in TEXT_INPUTS[signature]}
    if not inputs.get("contexts", True):
        raise UserError("answer needs a --context for each --text, which is a question.")
    if not inputs.get("second", True):
        raise UserError("this model classifies pairs: give a --second for each --text.")
    # A terminal may lack a character.
    sys.stdout.reconfigure(errors="replace")
    color = sys.stdout.isatty() if FLAGS.color == "auto" else FLAGS.color == "always"
    answers = list(export.answers(signature, **inputs))
    return Printer(color, FLAGS.threshold)(signature.removesuffix("_pairs"), text, answers)


if __name__ == "__main__":
    program.run(main, operands=("DIR",))

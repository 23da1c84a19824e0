"""Measures exports under load: requests a second and how long clients wait, beside onnxruntime.

    benchmark_serving.py --preset=runs/first/preset --classifier=runs/reviews/preset

Each contender is measured with and without batching, with all threads for one operation and with
one, in turn and in one run. A request is one text; texts are short and long. Prints a table for
each signature and, as the last line, the same numbers as JSON. onnxruntime comes with
`pip install 'cocolm-tf[onnx]'`.
"""

import json

from absl import flags

from cocolm_tf import program
from cocolm_tf.costs.flags import define_rounds_flags
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import matching_files, read_text

flags.DEFINE_string("preset", None, "A preset, to measure embed with.")
flags.DEFINE_string("classifier", None, "The preset of a classifier, to measure classify with.")
flags.DEFINE_string(
    "input", None, "Text files, as a glob, to take texts from; None for installed docstrings."
)
flags.DEFINE_integer("texts", 200, "The number of different texts.", lower_bound=1)
flags.DEFINE_integer("longest", 96, "The most words of a text.", lower_bound=1)
flags.DEFINE_list("contenders", ["float32", "onnx"], "float32, bfloat16, int8, onnx.")
flags.DEFINE_list("clients", ["1", "4", "16"], "How many ask at the same time.")
flags.DEFINE_float(
    "seconds", 3.0, "How long, each time and with each number of clients.", lower_bound=0.05
)
define_rounds_flags()

FLAGS = flags.FLAGS


def main() -> str:
    presets = {"embed": FLAGS.preset, "classify": FLAGS.classifier}
    presets = {signature: preset for signature, preset in presets.items() if preset}
    if not presets:
        raise UserError("there is nothing to measure: give --preset, --classifier or both.")
    clients = _numbers("clients")
    for name in FLAGS.contenders:
        if name not in ("float32", "bfloat16", "int8", "onnx"):
            raise UserError(
                f"--contenders has {name!r}, but there are only float32, bfloat16, int8 and onnx."
            )

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from benchmarks.serving import compare_serving, texts_of_mixed_lengths

    from cocolm_tf.costs.formatting import format_result

    texts = texts_of_mixed_lengths(_words(FLAGS.texts * FLAGS.longest), FLAGS.texts, FLAGS.longest)
    result = compare_serving(
        presets, FLAGS.contenders, texts, clients, FLAGS.rounds, FLAGS.seconds, FLAGS.threads
    )
    result = {"presets": presets} | result
    tables = {
        signature: {
            f"{name}; clients: {clients}": row
            for name, by_clients in contenders.items()
            for clients, row in by_clients.items()
        }
        for signature, contenders in result["signatures"].items()
    }
    print(format_result(result, tables))
    return json.dumps(result)


def _numbers(flag: str) -> list[int]:
    values = FLAGS[flag].value
    if not values or not all(value.isdecimal() and int(value) for value in values):
        raise UserError(f"--{flag}={','.join(values)} must be positive numbers.")
    return [int(value) for value in values]


def _words(count: int) -> list[str]:
    from cocolm_tf.data.docstrings import documents, installed_modules

    if FLAGS.input is None:
        texts = documents(installed_modules())
    else:
        texts = (read_text(path) for path in matching_files(FLAGS.input))
    words = []
    for text in texts:
        words += text.split()
        if len(words) >= count:
            break
    if not words:
        raise UserError(f"--input={FLAGS.input} has no words.")
    return words[:count]


if __name__ == "__main__":
    program.run(main)

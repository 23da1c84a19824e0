"""Times our data building beside bare SentencePiece and `tokenizers`, and the input pipeline alone.

    benchmark_data.py --docstrings --num_workers=0,1,2

The text comes from --input, --tfds or --docstrings. Prints a table and, as the last line, the same
numbers as JSON.
"""

import json

from absl import flags

from cocolm_tf import program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.data import source_flags
from cocolm_tf.errors import UserError

FLAGS = flags.FLAGS

source_flags.define_source_flags()
flags.adopt_module_key_flags(source_flags)  # so that --help shows them
flags.DEFINE_float("megabytes", 32, "How much of the text to take at most.", lower_bound=0.0)
flags.DEFINE_integer("vocabulary_size", 8192, "The ids of the vocabularies.", lower_bound=7)
flags.DEFINE_integer("sequence_length", 128, "The tokens of a sequence.", lower_bound=8)
flags.DEFINE_integer("batch_size", 32, "The sequences of the pipeline's batches.", lower_bound=1)
flags.DEFINE_integer(
    "num_batches",
    2000,
    "The batches of one round: many more than are made in advance.",
    lower_bound=1,
)
flags.DEFINE_list(
    "num_workers",
    ["0", "1", str(available_cpus())],
    "The numbers of processes to build shards with, 0 for the program's own, and of threads for "
    "the other tokenizers.",
)
flags.DEFINE_integer("rounds", 3, "How often to time each.", lower_bound=1)


def main() -> str:
    num_workers = sorted({_count(text) for text in FLAGS.num_workers})
    if not num_workers:
        raise UserError("--num_workers is empty: give the numbers of processes, as in 0,1,2.")
    source = source_flags.source_from_flags()

    # TensorFlow takes seconds to import: mistakes in the flags should not wait for it.
    from benchmarks.data import DataSizes, measure_data

    from cocolm_tf.costs.formatting import format_result

    sizes = DataSizes(
        FLAGS.vocabulary_size, FLAGS.sequence_length, FLAGS.batch_size, FLAGS.num_batches
    )
    result = measure_data(source, FLAGS.megabytes, sizes, num_workers, FLAGS.rounds)
    result = {"source": source.describe()} | result
    tables = {part: result[part] for part in ("vocabulary", "tokens")}
    print(format_result(result, tables | {"pipeline": {"": result["pipeline"]}}))
    return json.dumps(result)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--num_workers has {text!r}: each must be a whole number, 0 or more.")
    return int(text)


if __name__ == "__main__":
    program.run(main)

"""Fine-tunes a pretrained model to embed texts, on pairs, triplets or similarities of one's own."""

from typing import Any

from absl import flags

from cocolm_tf import program
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import (
    TABLE_FORMATS,
    data_from_flags,
    define_file_flags,
    define_run_flags,
    run_from_flags,
)

define_file_flags(TABLE_FORMATS, has_test=False)
flags.DEFINE_string("first_column", None, "Column of the first texts, as queries.")
flags.DEFINE_string("second_column", None, "Column of the second texts, as documents.")
flags.DEFINE_multi_string(
    "negative_column", [], "Column of texts that do not belong to the first. Repeatable."
)
flags.DEFINE_string(
    "score_column",
    "",
    "Column that says how similar both texts are. Without it they belong together.",
)
flags.DEFINE_list(
    "score_range", ["0", "1"], "The scores that mean nothing in common, and the same."
)
flags.DEFINE_string(
    "dev_score_column", "", "Column of scores in --dev_file, if not --score_column."
)
flags.DEFINE_string(
    "retrieval_dir",
    "",
    "Folder with corpus.jsonl, queries.jsonl and qrels/PART.tsv, as BEIR has them, to measure on. "
    "With it, no training rows are split off.",
)
flags.DEFINE_string("retrieval_part", "test", "PART of --retrieval_dir.")
flags.DEFINE_enum(
    "pooling",
    "mean",
    ["cls", "mean"],
    "What becomes the vector: the hidden state of <s>, or the mean of all.",
)
flags.DEFINE_list(
    "dimensions",
    [],
    "Lengths that vectors may be cut to, as 256,128,64, each of which learns. By default the "
    "encoder's width alone.",
)
flags.DEFINE_float(
    "temperature",
    0.05,
    "Divides the cosines that are compared; without scores.",
    lower_bound=1e-6,
)
define_run_flags()
flags.mark_flags_as_required(["train_file", "first_column", "second_column"])

FLAGS = flags.FLAGS


def main() -> str:
    if FLAGS.score_column and FLAGS.negative_column:
        raise UserError("--negative_column goes without --score_column.")
    names = ["train_file", "dev_file", "dev_fraction", "max_bad_share", "encoding", "delimiter"]
    names += ["score_column", "dev_score_column", "retrieval_dir", "retrieval_part"]
    data = data_from_flags(names) | {
        "columns": [FLAGS.first_column, FLAGS.second_column, *FLAGS.negative_column],
        "score_range": _numbers("score_range", float, 2),
    }
    arguments = {
        "data": data,
        "pooling": FLAGS.pooling,
        "dimensions": _numbers("dimensions", int),
        "temperature": FLAGS.temperature,
    }
    return run_from_flags(data["name"], "embedding", arguments, settings="embeddings")


def _numbers(flag: str, kind: type, count: int = 0) -> list[Any]:
    texts = FLAGS[flag].value
    try:
        numbers = [kind(text) for text in texts]
    except ValueError as error:
        raise UserError(f"--{flag}={','.join(texts)}: {error}.") from error
    if count and len(numbers) != count:
        raise UserError(f"--{flag}={','.join(texts)} must be {count} numbers.")
    return numbers


if __name__ == "__main__":
    program.run(main)

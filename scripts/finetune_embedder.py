"""Fine-tunes a pretrained model to embed texts, on pairs, triplets or similarities of one's own."""

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
flags.DEFINE_string(
    "name",
    "",
    "What the task is called in results, and its folder. By default as the table to learn from.",
)
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
flags.DEFINE_string("dev_file", "", "Table to choose the best epoch by.")
flags.DEFINE_string(
    "dev_score_column", "", "Column of scores in --dev_file, if not --score_column."
)
flags.DEFINE_float(
    "dev_fraction",
    0.1,
    "Without --dev_file and --retrieval_dir: the share of the training rows to split off.",
)
flags.DEFINE_string(
    "retrieval_dir",
    "",
    "Folder with corpus.jsonl, queries.jsonl and qrels/PART.tsv, as BEIR has them, to measure on.",
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
    "Divides the cosines that are told apart; without scores.",
    lower_bound=1e-6,
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
flags.mark_flags_as_required(["train_file", "first_column", "second_column"])

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    name = FLAGS.name or table_name(FLAGS.train_file)
    if FLAGS.score_column and FLAGS.negative_column:
        raise UserError("--negative_column goes without --score_column.")
    data = {
        "name": name,
        "train_file": files.absolute(FLAGS.train_file),
        "columns": [FLAGS.first_column, FLAGS.second_column, *FLAGS.negative_column],
        "score_column": FLAGS.score_column,
        "score_range": _numbers("score_range", float, 2),
        "dev_file": files.absolute(FLAGS.dev_file) if FLAGS.dev_file else "",
        "dev_score_column": FLAGS.dev_score_column,
        "dev_fraction": FLAGS.dev_fraction,
        "retrieval_dir": files.absolute(FLAGS.retrieval_dir) if FLAGS.retrieval_dir else "",
        "retrieval_part": FLAGS.retrieval_part,
        "max_bad_share": FLAGS.max_bad_share,
        "encoding": FLAGS.encoding,
        "delimiter": FLAGS.delimiter,
    }
    dimensions = _numbers("dimensions", int)

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.embedding import EmbeddingTask

        return EmbeddingTask(
            data=data,
            pooling=FLAGS.pooling,
            dimensions=dimensions,
            temperature=FLAGS.temperature,
            **fields,
        )

    configs = os.path.join(ROOT, "configs", "finetune")
    return run_from_flags(name, make_task, configs, settings="embeddings")


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

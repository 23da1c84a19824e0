"""Fine-tunes a pretrained model to label words and spans: named entities, parts of speech.

    finetune_tokens.py --preset=runs/first/preset --train_file=train.conll --dev_file=dev.conll \
        --output_dir=runs/names

Files are CoNLL's columns, a word a line, or JSON lines (.jsonl) with spans of characters or with
words. See docs/finetuning.md.
"""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.data.table_task import table_name
from cocolm_tf.finetuning.flags import define_run_flags, run_from_flags

flags.DEFINE_string("train_file", None, "File to learn from.")
flags.DEFINE_string("dev_file", "", "File to choose the best epoch by.")
flags.DEFINE_float(
    "dev_fraction", 0.1, "Without --dev_file: the share of the training texts to split off for it."
)
flags.DEFINE_string("test_file", "", "File to predict; with labels, it is measured too.")
flags.DEFINE_string("name", "", "What the task is called. By default as the training file.")
flags.DEFINE_enum(
    "scheme",
    "BIO",
    ["BIO", "BIOES", "none"],
    "How the model writes spans as tags of words; none where tags are those of single words, as "
    "parts of speech are. Files may write spans in either.",
)
flags.DEFINE_enum(
    "unit",
    "word",
    ["word", "token"],
    "What of texts with spans has a label: words, or the tokenizer's tokens, for languages that do "
    "not separate words.",
)
flags.DEFINE_integer("token_column", 0, "CoNLL: the column of the words, counted from 0.")
flags.DEFINE_integer("tag_column", -1, "CoNLL: the column of the tags; -1 is the last.")
flags.DEFINE_string(
    "delimiter", "", "CoNLL: between columns. By default a tab, or white space where there is none."
)
flags.DEFINE_string("text_field", "text", "JSON lines: the field of the text.")
flags.DEFINE_string("spans_field", "spans", "JSON lines: the field of its spans.")
flags.DEFINE_string("tokens_field", "tokens", "JSON lines: the field of its words.")
flags.DEFINE_string("tags_field", "tags", "JSON lines: the field of their tags.")
flags.DEFINE_float(
    "max_bad_share",
    0.0,
    "The share of a file's texts that may be left out because something is wrong with them.",
)
flags.DEFINE_string(
    "encoding", "", "Encoding of files without a byte order mark, as cp1252. By default UTF-8."
)
define_run_flags()
flags.mark_flags_as_required(["train_file"])

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    name = FLAGS.name or table_name(FLAGS.train_file)
    data = {
        flag: files.absolute(FLAGS[flag].value)
        for flag in ("train_file", "dev_file", "test_file")
        if FLAGS[flag].value
    }
    for flag in ("dev_fraction", "scheme", "token_column", "tag_column", "delimiter"):
        data[flag] = FLAGS[flag].value
    data |= {key: FLAGS[f"{key}_field"].value for key in ("text", "spans", "tokens", "tags")}
    data |= {"max_bad_share": FLAGS.max_bad_share, "encoding": FLAGS.encoding, "name": name}

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.tokens import TokensTask

        return TokensTask(data=data, unit=FLAGS.unit, **fields)

    configs = os.path.join(ROOT, "configs", "finetune")
    return run_from_flags(name, make_task, configs, settings="")


if __name__ == "__main__":
    program.run(main)

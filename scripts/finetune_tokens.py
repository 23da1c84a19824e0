"""Fine-tunes a pretrained model to label words and spans: named entities, parts of speech.

    finetune_tokens.py --preset=runs/first/preset --train_file=train.conll --dev_file=dev.conll \
        --output_dir=runs/names

Files are CoNLL's columns, a word a line, or JSON lines (.jsonl) with spans of characters or with
words. See docs/finetuning.md.
"""

from absl import flags

from cocolm_tf import program
from cocolm_tf.finetuning.flags import (
    data_from_flags,
    define_file_flags,
    define_run_flags,
    run_from_flags,
)

define_file_flags("CoNLL's columns, or JSON lines (.jsonl)")
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
flags.DEFINE_string("text_field", "text", "JSON lines: the field of the text.")
flags.DEFINE_string("spans_field", "spans", "JSON lines: the field of its spans.")
flags.DEFINE_string("tokens_field", "tokens", "JSON lines: the field of its words.")
flags.DEFINE_string("tags_field", "tags", "JSON lines: the field of their tags.")
define_run_flags()
flags.mark_flag_as_required("train_file")

FLAGS = flags.FLAGS


def main() -> str:
    given = [flag for flag in ("train_file", "dev_file", "test_file") if FLAGS[flag].value]
    always = ["dev_fraction", "scheme", "token_column", "tag_column", "delimiter"]
    data = data_from_flags([*given, *always, "max_bad_share", "encoding"])
    data |= {key: FLAGS[f"{key}_field"].value for key in ("text", "spans", "tokens", "tags")}
    arguments = {"data": data, "unit": FLAGS.unit}
    return run_from_flags(data["name"], "tokens", arguments, settings="")


if __name__ == "__main__":
    program.run(main)

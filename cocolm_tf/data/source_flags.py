"""The flags for a program's text: its source, its cleaning, and the runner that reads it."""

from collections.abc import Sequence

from absl import flags

from cocolm_tf.data import sources
from cocolm_tf.data.cleaning import METHODS, Cleaning, Deduplication
from cocolm_tf.errors import UserError

FLAGS = flags.FLAGS

LOCAL = "local"
BEAM_RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")

_SOURCES = ("input", "tfds", "docstrings")
# Flags that refine a source, by name, and the source that they need.
_OWNERS = {
    "one_document_per_line": "input",
    "jsonl_field": "input",
    "text_column": "input",
    "encoding": "input",
    "max_bad_share": "input",
    "tfds_field": "tfds",
    "tfds_split": "tfds",
}


def define_source_flags() -> None:
    """Defines the flags that `source_from_flags` reads."""
    flags.DEFINE_string(
        "input",
        None,
        "Files: one or several comma-separated globs. Their first bytes say what they are: text "
        "(a line is a paragraph and a blank line ends a document) or Common Crawl's WET, "
        "compressed or not (gzip, bzip2, xz, zstd, lz4); Parquet; Arrow. Or the folder of a split "
        "that Hugging Face's datasets saved.",
    )
    flags.DEFINE_bool("one_document_per_line", False, "With --input: every line is a document.")
    flags.DEFINE_string(
        "jsonl_field",
        None,
        "With --input: the files are JSON lines, and this field of each is a document.",
    )
    flags.DEFINE_string(
        "text_column",
        None,
        "With --input: the column of Parquet and Arrow files that has the documents. By default "
        "text.",
    )
    flags.DEFINE_string(
        "encoding",
        None,
        "With --input: the encoding of files without a byte order mark, as cp1252 or utf-16-le. By "
        "default UTF-8.",
    )
    flags.DEFINE_float(
        "max_bad_share",
        None,
        "With --input: the share of a file's records (lines, rows, pages) that may be bad. Those "
        "that cannot be read are left out, bytes of no character are replaced; both count. By "
        "default none may.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_string(
        "tfds",
        None,
        "A dataset of TensorFlow Datasets, e.g. wikipedia/20230601.en. The environment variable "
        "TFDS_DATA_DIR says where they are kept.",
    )
    flags.DEFINE_string("tfds_field", "text", "With --tfds: the feature that is text.")
    flags.DEFINE_string("tfds_split", "train", "With --tfds: the split, e.g. train[:10%].")
    flags.DEFINE_bool(
        "docstrings", False, "The docstrings of the standard library and of the installed packages."
    )


def source_from_flags() -> sources.Source:
    """Opens the source that the flags name; UserError for none, several or a missing one."""
    given = [name for name in _SOURCES if FLAGS[name].value]
    if len(given) != 1:
        found = "and ".join(f"--{name} " for name in given) or "none of them "
        raise UserError(f"give one of --input, --tfds and --docstrings ({found}was given).")
    (source,) = given
    for name, owner in _OWNERS.items():
        if FLAGS[name].present and owner != source:
            raise UserError(f"--{name} goes with --{owner}, not with --{source}.")
    if FLAGS.jsonl_field is not None and FLAGS.one_document_per_line:
        raise UserError("--one_document_per_line and --jsonl_field exclude each other.")
    if source == "docstrings":
        return sources.DocstringSource.find()
    options = {
        name.removeprefix("tfds_"): FLAGS[name].value
        for name, owner in _OWNERS.items()
        if owner == source and FLAGS[name].value is not None
    }
    if source == "tfds":
        return sources.TfdsSource.find(FLAGS.tfds, **options)
    return sources.FileSource.find(FLAGS.input, **({"max_bad_share": 0.0} | options))


def define_cleaning_flags() -> None:
    """Defines the flags that `cleaning_from_flags` reads."""
    flags.DEFINE_enum(
        "deduplicate",
        None,
        METHODS,
        "Leave out all but the first of the documents that have the same words (exact), or similar "
        "sets of word n-grams (near, by MinHash and locality-sensitive hashing).",
    )
    flags.DEFINE_float(
        "deduplicate_threshold",
        0.8,
        "With --deduplicate=near: the Jaccard similarity from which on two documents are taken for "
        "duplicates; about, as a few below it are, and a few above are not.",
        lower_bound=0.1,
        upper_bound=1.0,
    )
    flags.DEFINE_integer(
        "deduplicate_ngram",
        5,
        "With --deduplicate=near: the words of an n-gram.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "min_words",
        0,
        "Leave out documents with fewer words, which white space separates.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "max_words", 0, "Leave out documents with more words; 0 for no limit.", lower_bound=0
    )
    flags.DEFINE_float(
        "min_letter_share",
        0.0,
        "Leave out documents with a smaller share of letters among the characters that are no "
        "white space.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_float(
        "max_repeated_lines",
        1.0,
        "Leave out documents in which a larger share of the lines are the same as earlier ones.",
        lower_bound=0.0,
        upper_bound=1.0,
    )


def cleaning_from_flags() -> tuple[Cleaning | None, Deduplication | None]:
    """The cleaning and the deduplication that the flags ask for; None for what they do not."""
    values = {name: FLAGS[name].value for name in FLAGS}
    if values["max_words"] and values["max_words"] < values["min_words"]:
        raise UserError(
            f"--max_words={values['max_words']} is less than --min_words={values['min_words']}."
        )
    method = values["deduplicate"]
    for name in ("deduplicate_threshold", "deduplicate_ngram"):
        if FLAGS[name].present and method != "near":
            raise UserError(f"--{name} goes with --deduplicate=near.")
    limits = ("min_words", "max_words", "min_letter_share", "max_repeated_lines")
    cleaning = Cleaning(**{name: values[name] for name in limits})
    cleaning = cleaning if cleaning.describe() else None
    if method is None:
        return cleaning, None
    threshold, ngram = values["deduplicate_threshold"], values["deduplicate_ngram"]
    return cleaning, Deduplication(method, threshold, ngram, cleaning)


def define_runner_flag() -> None:
    """Defines the flag `runner`, and documents what comes after `--`."""
    flags.DEFINE_enum(
        "runner",
        LOCAL,
        [LOCAL, *BEAM_RUNNERS],
        "What does the work: processes of this program's, or a runner of Apache Beam, whose own "
        "options come after --, as in --runner=DirectRunner -- --direct_num_workers=4.",
    )


def check_runner(runner: str, options: Sequence[str]) -> None:
    """Refuses arguments after `--` unless the runner is Beam's."""
    wrong = [option for option in options if runner == LOCAL or not option.startswith("--")]
    if wrong:
        advice = "; those of Apache Beam go with its --runner" if wrong[0].startswith("--") else ""
        raise UserError(
            f"unexpected argument {wrong[0]!r}: flags are written --name=value{advice}."
        )

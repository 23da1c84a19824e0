"""The flags by which a program is told its text, and what they mean."""

from collections.abc import Iterator

from absl import flags

from cocolm_tf.data import sources
from cocolm_tf.errors import UserError

_SOURCES = ("input", "tfds", "docstrings")
# The flags that say more about a source, and that source.
_OWNERS = {
    "one_document_per_line": "input",
    "jsonl_field": "input",
    "text_column": "input",
    "encoding": "input",
    "max_bad_share": "input",
    "tfds_field": "tfds",
    "tfds_split": "tfds",
}


def define_source_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags.

    Args:
        flag_values: Where to define them.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_source_flags(flag_values)
    flag_values(["program", "--docstrings"])
    ```
    """
    flags.DEFINE_string(
        "input",
        None,
        "Files: one or several comma-separated globs. Each tells by its first bytes what it is: "
        "text (a line is a paragraph and a blank line ends a document) or Common Crawl's WET, "
        "compressed or not (gzip, bzip2, xz, zstd, lz4); Parquet; Arrow. Or the folder of a split "
        "that Hugging Face's datasets saved.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "one_document_per_line",
        False,
        "With --input: every line is a document.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "jsonl_field",
        None,
        "With --input: the files are JSON lines, and this field of each is a document.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "text_column",
        None,
        "With --input: the column of Parquet and Arrow files that has the documents. By default "
        "text.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "encoding",
        None,
        "With --input: the encoding of files without a byte order mark, as cp1252 or utf-16-le. By "
        "default UTF-8.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "max_bad_share",
        None,
        "With --input: the share of a file's records (lines, rows, pages) that may be bad. Those "
        "that cannot be read are left out, bytes of no character are replaced; both count. By "
        "default none may.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "tfds",
        None,
        "A dataset of TensorFlow Datasets, e.g. wikipedia/20230601.en. The environment variable "
        "TFDS_DATA_DIR says where they are kept.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "tfds_field", "text", "With --tfds: the feature that is text.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "tfds_split",
        "train",
        "With --tfds: the split, e.g. train[:10%].",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "docstrings",
        False,
        "The docstrings of the standard library and of the installed packages.",
        flag_values=flag_values,
    )


def source_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> sources.Source:
    """Opens the source that the flags name.

    Args:
        flag_values: The parsed flags.

    Returns:
        The source.

    Raises:
        UserError: If the flags name no source or several, contradict each other, or name something
            that is not there.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_source_flags(flag_values)
    flag_values(["program", "--input=corpus/*.txt"])
    source = source_from_flags(flag_values)
    ```
    """
    given = [name for name in _SOURCES if flag_values[name].value]
    if len(given) != 1:
        found = "and ".join(f"--{name} " for name in given) or "none of them "
        raise UserError(f"give one of --input, --tfds and --docstrings ({found}was given).")
    (source,) = given
    for name, owner in _OWNERS.items():
        if flag_values[name].present and owner != source:
            raise UserError(f"--{name} goes with --{owner}, not with --{source}.")
    if flag_values.jsonl_field is not None and flag_values.one_document_per_line:
        raise UserError("--one_document_per_line and --jsonl_field exclude each other.")
    if source == "docstrings":
        return sources.DocstringSource.find()
    options = {
        name.removeprefix("tfds_"): flag_values[name].value
        for name, owner in _OWNERS.items()
        if owner == source and flag_values[name].value is not None
    }
    finder = sources.TfdsSource if source == "tfds" else sources.FileSource
    return finder.find(flag_values[source].value, **options)


def documents_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Iterator[str]:
    """All documents of the source that the flags name, see `source_from_flags`.

    Example:
    ```python
    flag_values = flags.FlagValues()
    define_source_flags(flag_values)
    flag_values(["program", "--docstrings"])
    print(next(documents_from_flags(flag_values)))
    ```
    """
    return iter(source_from_flags(flag_values))

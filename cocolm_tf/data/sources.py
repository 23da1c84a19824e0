"""Where text comes from: files, JSON lines, TensorFlow Datasets, installed packages.

Every source is an iterator of documents, and a document is one string: its paragraphs, joined by
newlines, without blank lines. A source reads its files in sorted order, so the same files always
give the same documents in the same order. A mistake that can be seen without reading any text,
such as a pattern that matches nothing, is raised by the call and not by the first `next()`.
"""

import json
from collections.abc import Iterator

from absl import logging

from cocolm_tf.data import docstrings
from cocolm_tf.data.tfds_builder import prepared_builder
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import check_encoding, matching_files, text_lines, without_surrogates


def text_documents(
    pattern: str,
    one_document_per_line: bool = False,
    encoding: str = "",
    max_bad_share: float | None = None,
) -> Iterator[str]:
    """Reads plain text files, compressed or not.

    Args:
        pattern: One or several comma-separated globs of files, see `matching_files`.
        one_document_per_line: Whether each line is a document; otherwise each line is a
            paragraph, and blank lines (and the ends of files) separate documents.
        encoding: Of files without a byte order mark, as Python names it; `""` for UTF-8.
        max_bad_share: float. The share of a file's lines that may have bytes which are none of
            the encoding's; they become U+FFFD, and are counted in a warning. None for none.

    Returns:
        The documents.

    Raises:
        UserError: If the pattern matches no file, or a file cannot be read, is no text, or is in
            another encoding.

    Example:
    ```python
    with open("/tmp/corpus.txt", "w") as file:
        file.write("First paragraph.\\nSecond paragraph.\\n\\nAnother document.\\n")
    list(text_documents("/tmp/corpus.txt"))
    # ['First paragraph.\\nSecond paragraph.', 'Another document.']
    ```
    """
    check_encoding(encoding)
    paths = matching_files(pattern)

    def documents() -> Iterator[str]:
        for path in paths:
            paragraphs = []
            for line in text_lines(path, encoding, max_bad_share):
                line = line.strip()
                if line and one_document_per_line:
                    yield line
                elif line:
                    paragraphs.append(line)
                elif paragraphs:
                    yield "\n".join(paragraphs)
                    paragraphs = []
            if paragraphs:
                yield "\n".join(paragraphs)

    return documents()


def jsonl_documents(
    pattern: str, field: str, encoding: str = "", max_bad_share: float | None = None
) -> Iterator[str]:
    """Reads JSON lines: one object a line, the text of a document in one of its fields.

    Documents without text and blank lines are left out.

    Args:
        pattern: As for `text_documents`.
        field: The name of the field, whose value is a string.
        encoding: As for `text_documents`.
        max_bad_share: As for `text_documents`.

    Returns:
        The documents.

    Raises:
        UserError: As for `text_documents`, or if a line is not such an object.

    Example:
    ```python
    with open("/tmp/corpus.jsonl", "w") as file:
        file.write('{"id": 1, "text": "A document."}\\n')
    list(jsonl_documents("/tmp/corpus.jsonl", field="text"))  # ['A document.']
    ```
    """
    check_encoding(encoding)
    paths = matching_files(pattern)

    def documents() -> Iterator[str]:
        for path in paths:
            lines = text_lines(path, encoding, max_bad_share)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    text = _json_field(line, field, f"{path}:{number}")
                    if document := _without_blank_lines(text):
                        yield document

    return documents()


def tfds_documents(
    name: str, field: str = "text", split: str = "train", data_dir: str | None = None
) -> Iterator[str]:
    """Reads one text field of a TensorFlow Datasets dataset, downloading it if need be.

    Documents without text are left out; bytes that are not UTF-8 become U+FFFD, and a warning
    counts the documents that have such.

    Args:
        name: The dataset, as `tfds.builder` takes it, e.g. `"wikipedia/20230601.en"`.
        field: The feature that holds the text of a document.
        split: The split, as `tfds.load` takes it, e.g. `"train[:10%]"`.
        data_dir: Where TensorFlow Datasets keeps its files; None for its default.

    Returns:
        The documents.

    Raises:
        UserError: If there is no such dataset, split or text field, or it cannot be downloaded.

    Example:
    ```python
    documents = tfds_documents("imdb_reviews", field="text", split="train[:1%]")
    ```
    """
    builder = prepared_builder(name, data_dir)
    # Slow to import, and the other sources do without it.
    import tensorflow as tf

    features = builder.info.features
    texts = sorted(key for key, feature in features.items() if feature.dtype in (str, tf.string))
    if field not in texts:
        raise UserError(f"dataset {name!r} has no text field {field!r}: it has {texts}.")
    try:
        dataset = builder.as_dataset(split=split, shuffle_files=False)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {name!r} has no split {split!r}: it has {sorted(builder.info.splits)}."
        ) from error

    def documents() -> Iterator[str]:
        damaged = 0
        for example in dataset.as_numpy_iterator():
            text = example[field].decode("utf-8", "replace")
            damaged += text.encode() != example[field]
            if document := _without_blank_lines(text):
                yield document
        if damaged:
            logging.warning("%s: %d documents have bytes that are not UTF-8.", name, damaged)

    return documents()


def docstring_documents(min_words: int = 8) -> Iterator[str]:
    """Reads the docstrings of the standard library and of the installed packages.

    It is a corpus of millions of words of English that every machine with Python has: nothing to
    download, and the same on the same environment. The modules are parsed, never imported.

    Args:
        min_words: Docstrings with fewer words of prose than this are left out.

    Returns:
        The documents, one for each module: its docstrings' paragraphs.

    Example:
    ```python
    print(next(docstring_documents()))
    ```
    """
    return docstrings.documents(docstrings.installed_modules(), min_words)


def _json_field(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where} is not a JSON object: each line must be {{{field!r}: text, ...}}."
        )
    if field not in row:
        raise UserError(f"{where} has no field {field!r}: it has {sorted(row)}.")
    if not isinstance(row[field], str):
        raise UserError(f"{where}: field {field!r} is not a string.")
    return without_surrogates(row[field])


def _without_blank_lines(text: str) -> str:
    return "\n".join(filter(None, map(str.strip, text.split("\n"))))

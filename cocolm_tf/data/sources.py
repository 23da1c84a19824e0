"""Where text comes from: files, TensorFlow Datasets, installed packages.

A source has parts, each of which any process or machine can read on its own: a file, a shard of a
TFDS dataset, a package. A document is one string: its paragraphs, joined by newlines, without blank
lines. The same parts always give the same documents in the same order. A mistake that can be seen
without reading all of the text, such as a pattern that matches nothing, is raised where the source
is made and not where it is read.
"""

import abc
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from cocolm_tf.data import docstrings
from cocolm_tf.data.columnar import (
    check_column,
    column_texts,
    columnar_format,
    saved_dataset_files,
)
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import (
    BadRecords,
    check_encoding,
    check_is_text,
    cut_at_space,
    first_bytes,
    has_byte_order_mark,
    matching_files,
    open_binary,
    text_lines,
    without_surrogates,
)

# A text that goes on for longer is cut at white space into documents of at most so many
# characters, so that reading takes bounded memory.
LONGEST_DOCUMENT = 1 << 21
# A line of JSON can only be parsed as a whole.
_LONGEST_JSON = 1 << 26
_FILES_AT_ONCE = 16
_WARC_HEAD = re.compile(rb"WARC/1\.\d\r\n")
# A format beside those of `columnar_format`.
_WARC = "warc"


@dataclass(frozen=True)
class Source(abc.ABC):
    """Text in parts. Iterating over it gives all documents; it can be pickled.

    Args:
        parts: The names of the parts, sorted, each once.

    Example:
    ```python
    source = FileSource.find("corpus/*.txt")
    for part in source.parts:
        print(part, sum(map(len, source.documents(part))))
    ```
    """

    parts: tuple[str, ...]

    @abc.abstractmethod
    def documents(self, part: str, counts: Counter[str] | None = None) -> Iterator[str]:
        """Reads the documents of one part, in order.

        Args:
            part: One of `parts`.
            counts: Once all documents are read, the number of `bad_records` is added to it.

        Yields:
            The documents, none of them empty or longer than `LONGEST_DOCUMENT`.

        Raises:
            UserError: If the part cannot be read, or too many of its records are bad.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The flags that name the source, for the manifest."""

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from self.documents(part)


@dataclass(frozen=True)
class FileSource(Source):
    """Files whose format is detected by their first bytes: `find` makes one.

    They are text or Common Crawl's WET, compressed or not; Parquet; Arrow, as files or streams; or
    the folders of Hugging Face's `datasets.Dataset.save_to_disk`.

    Args:
        parts: The files.
        pattern: What `find` found them by.
        one_document_per_line: Whether each line of a text file is a document; otherwise each line
            is a paragraph, and blank lines (and the ends of files) separate documents.
        jsonl_field: For files of JSON lines, one object a line: the field with a document's text.
        text_column: The column of a Parquet or Arrow file with the documents.
        encoding: Of text files without a byte order mark, as Python names it; `""` for UTF-8.
        max_bad_share: The share of a file's records that may be bad, see `BadRecords`.
        kinds: The formats that `find` has detected of those files that are no text.

    Example:
    ```python
    with open("/tmp/corpus.txt", "w") as file:
        file.write("First paragraph.\\nSecond paragraph.\\n\\nAnother document.\\n")
    list(FileSource.find("/tmp/corpus.txt"))
    # ['First paragraph.\\nSecond paragraph.', 'Another document.']
    ```
    """

    pattern: str = ""
    one_document_per_line: bool = False
    jsonl_field: str | None = None
    text_column: str = "text"
    encoding: str = ""
    max_bad_share: float | None = None
    kinds: dict[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def find(cls, pattern: str, **options: Any) -> "FileSource":
        """Finds the files of a pattern.

        Args:
            pattern: One or several comma-separated globs of files, see `matching_files`.
            **options: The other arguments of the class.

        Raises:
            UserError: If the pattern matches no file, a file has an unknown format or no such
                column, or there is no such encoding.
        """
        paths = matching_files(pattern, saved_dataset_files)
        source = cls(tuple(paths), pattern, **options)
        check_encoding(source.encoding)
        # In parallel, as each is a round trip where the files are on a store.
        with ThreadPoolExecutor(_FILES_AT_ONCE) as executor:
            kinds = zip(paths, executor.map(source._check, paths), strict=True)
            return replace(source, kinds={path: kind for path, kind in kinds if kind})

    def documents(self, part: str, counts: Counter[str] | None = None) -> Iterator[str]:
        kind = self.kinds.get(part, "")
        unit = "pages" if kind == _WARC else "rows" if kind else "lines"
        records = BadRecords(part, self.max_bad_share, unit)
        if not kind and self.jsonl_field is None:
            lines = text_lines(part, self.encoding, records, longest=LONGEST_DOCUMENT)
            yield from _documents_in(lines, self.one_document_per_line)
        else:
            if kind == _WARC:
                texts = _wet_texts(part, records)
            elif kind:
                texts = column_texts(part, kind, self.text_column, records)
            else:
                texts = self._json_texts(part, records)
            for text in texts:
                yield from _documents_of(text)
        if counts is not None:
            counts["bad_records"] += records.bad

    def describe(self) -> dict[str, Any]:
        described = {"input": self.pattern, "one_document_per_line": self.one_document_per_line}
        for name in ("jsonl_field", "text_column", "encoding", "max_bad_share"):
            value = getattr(self, name)
            if value and value != getattr(FileSource, name):
                described[name] = value
        return described

    def _check(self, path: str) -> str:
        """Detects a file's format, empty for text; refuses unknown ones."""
        head = first_bytes(path)
        kind = _WARC if _WARC_HEAD.match(head) else columnar_format(head)
        if kind == _WARC:
            _import_warcio(path)
        elif kind:
            check_column(path, kind, self.text_column, BadRecords(path, self.max_bad_share, "rows"))
        else:
            if not has_byte_order_mark(head):
                check_is_text(path, head, self.encoding)
            fields = _json_fields(head)
            if fields and self.jsonl_field is None and not self.one_document_per_line:
                raise UserError(
                    f"{path} looks like JSON lines: name the field of the text with --jsonl_field, "
                    f"it has {', '.join(fields)}; --one_document_per_line takes it as it is."
                )
        return kind

    def _json_texts(self, path: str, records: BadRecords) -> Iterator[str]:
        number, within = 1, False
        for line in text_lines(path, self.encoding, records, longest=_LONGEST_JSON):
            ended = line.endswith(("\n", "\r"))
            where = f"{path}:{number}"
            if not within and not ended and len(line) > _LONGEST_JSON // 2:
                within = True
                records.add(f"{where} has more than {_LONGEST_JSON:,} characters")
            elif not within and line.strip():
                try:
                    yield _json_field(line, self.jsonl_field, where)
                except ValueError as error:
                    records.add(str(error))
            if ended:
                number, within = number + 1, False


@dataclass(frozen=True)
class TfdsSource(Source):
    """One text field of a dataset of TensorFlow Datasets: `find` makes one.

    Bytes that are not UTF-8 become U+FFFD and are counted as bad records.

    Args:
        parts: Its sub-splits, one for each of its files.
        name: The dataset, as `tfds.builder` takes it, e.g. `"wikipedia/20230601.en"`.
        field: The feature with the text of a document.
        split: As `tfds.load` takes it, e.g. `"train[:10%]"`.
        data_dir: Where TensorFlow Datasets keeps its files; None for its default.

    Example:
    ```python
    documents = TfdsSource.find("imdb_reviews", field="text", split="train[:1%]")
    ```
    """

    name: str = ""
    field: str = "text"
    split: str = "train"
    data_dir: str | None = None

    @classmethod
    def find(
        cls, name: str, field: str = "text", split: str = "train", data_dir: str | None = None
    ) -> "TfdsSource":
        """Opens a dataset, and downloads it if need be.

        Raises:
            UserError: If there is no such dataset, split or text field, or it cannot be downloaded.
        """
        builder = prepared_builder(name, data_dir)
        # Slow to import, and the other sources do without it.
        import tensorflow as tf

        features = builder.info.features
        texts = sorted(
            key for key, feature in features.items() if feature.dtype in (str, tf.string)
        )
        if field not in texts:
            raise UserError(f"dataset {name!r} has no text field {field!r}: it has {texts}.")
        return cls(tuple(_sub_splits(builder, split)), name, field, split, data_dir)

    def documents(self, part: str, counts: Counter[str] | None = None) -> Iterator[str]:
        records = BadRecords(f"{self.name}, {part}", max_bad_share=1.0, unit="examples")
        for example in tfds_rows(self.name, part, self.data_dir):
            records.read += 1
            text = example[self.field].decode("utf-8", "replace")
            if text.encode() != example[self.field]:
                records.add(f"{records.path} has bytes that are not UTF-8")
            yield from _documents_of(text)
        records.finish()
        if counts is not None:
            counts["bad_records"] += records.bad

    def describe(self) -> dict[str, Any]:
        return {"tfds": self.name, "tfds_field": self.field, "tfds_split": self.split}


@dataclass(frozen=True)
class DocstringSource(Source):
    """The docstrings of the standard library and of the installed packages: `find` makes one.

    A corpus of millions of words of English that every machine with Python has: nothing to
    download, and the same in the same environment. The modules are parsed, never imported. A
    document is the paragraphs of one module's docstrings; each distinct docstring counts once in
    its package.

    Args:
        parts: The packages, see `docstrings.installed_packages`.
        min_words: Docstrings with fewer words of prose than this are left out.

    Example:
    ```python
    print(next(iter(DocstringSource.find())))
    ```
    """

    min_words: int = 8

    @classmethod
    def find(cls, min_words: int = 8) -> "DocstringSource":
        """Finds the installed packages."""
        return cls(tuple(docstrings.installed_packages()), min_words)

    def documents(self, part: str, counts: Counter[str] | None = None) -> Iterator[str]:
        for document in docstrings.documents(docstrings.package_modules(part), self.min_words):
            yield from _documents_of(document)

    def describe(self) -> dict[str, Any]:
        return {"docstrings": True}


# --- From lines and texts to documents ---


def _documents_in(lines: Iterable[str], one_document_per_line: bool) -> Iterator[str]:
    """Yields the documents of lines: between blank lines, or one a line; long lines in parts."""
    paragraphs: list[str] = []
    size, within = 0, False
    for line in lines:
        paragraph = line.strip()
        is_blank = not paragraph and not within
        within = not line.endswith(("\n", "\r"))
        if one_document_per_line or is_blank or size + len(paragraph) >= LONGEST_DOCUMENT:
            if paragraphs:
                yield "\n".join(paragraphs)
            paragraphs, size = [], 0
        if paragraph:
            paragraphs.append(paragraph)
            size += len(paragraph) + 1
    if paragraphs:
        yield "\n".join(paragraphs)


def _documents_of(text: str) -> Iterator[str]:
    """Yields a text as a document, or as several where it is too long for one."""
    lines = (line for line in text.split("\n") if line.strip())
    if len(text) <= LONGEST_DOCUMENT:
        if document := "\n".join(map(str.strip, lines)):
            yield document
        return
    cut = (part for line in lines for part in cut_at_space(line, LONGEST_DOCUMENT))
    yield from _documents_in(cut, one_document_per_line=False)


def _wet_texts(path: str, records: BadRecords) -> Iterator[str]:
    """Yields the texts of the pages of a WET file."""
    iterate, error_type = _import_warcio(path)
    try:
        for record in iterate(open_binary(path, records)):
            if record.rec_type in ("request", "response"):
                raise UserError(
                    f"{path} has web pages as they were sent: give the WET file, which has their "
                    "text."
                )
            if record.rec_type != "conversion":
                continue
            records.read += 1
            content = record.content_stream().read(_LONGEST_JSON)
            text = content.decode("utf-8", "replace")
            if text.encode() != content:
                address = record.rec_headers.get_header("WARC-Target-URI")
                records.add(f"{path}: the text of {address} is not UTF-8")
            yield text
    except error_type as error:
        records.lose_rest(f"{path} is damaged: {' '.join(str(error).split())}")
    records.finish()


def _import_warcio(path: str) -> tuple[Any, type[Exception]]:
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise UserError(
            f"{path} is a WARC file, which the package warcio reads: pip install 'cocolm-tf[warc]'."
        ) from error
    return ArchiveIterator, ArchiveLoadFailed


def _json_field(line: str, field: str, where: str) -> str:
    """The text in a line of JSON; a ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where} is not a JSON object: each line must be {{{field!r}: text, ...}}"
        )
    if field not in row:
        raise ValueError(f"{where} has no field {field!r}: it has {sorted(row)}")
    if not isinstance(row[field], str):
        raise ValueError(f"{where}: field {field!r} is not a string")
    return without_surrogates(row[field])


def _json_fields(head: bytes) -> list[str]:
    """The text fields of a file's first line, if that is a line of JSON."""
    try:
        row = json.loads(head.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return []
    row = row if isinstance(row, dict) else {}
    return sorted(name for name, value in row.items() if isinstance(value, str))


# --- TensorFlow Datasets ---


def prepared_builder(name: str, data_dir: str | None = None) -> Any:
    """The builder of a dataset, e.g. "glue/rte", prepared; UserError where that fails."""
    # Slow to import, and most sources do without it.
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f"TensorFlow Datasets has no dataset {name!r}: {_first_line(error)}"
        ) from error
    try:
        builder.download_and_prepare()
    # Some datasets need packages of their own to be prepared.
    except (OSError, ImportError, tfds.download.DownloadError, tf.errors.OpError) as error:
        raise UserError(f"dataset {name!r} cannot be prepared: {_first_line(error)}") from error
    return builder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def tfds_rows(name: str, split: str, data_dir: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a split of a dataset, in the order of its files."""
    builder = prepared_builder(name, data_dir)
    return builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator()


def _sub_splits(builder: Any, split: str) -> Iterator[str]:
    """The parts of a split that lie in one file each, as TFDS writes them."""
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    try:
        instructions = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"dataset {builder.info.name!r} has no split {split!r}: it has {sorted(splits)}."
        ) from error
    for instruction in instructions:
        end_of_file = 0
        lengths = splits[instruction.splitname].shard_lengths
        first, last = instruction.from_ or 0, instruction.to
        last = sum(lengths) if last is None else last
        for length in lengths:
            start, end_of_file = max(first, end_of_file), end_of_file + length
            if start < min(last, end_of_file):
                yield f"{instruction.splitname}[{start}:{min(last, end_of_file)}]"

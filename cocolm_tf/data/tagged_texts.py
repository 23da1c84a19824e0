"""Texts whose words or spans have labels: CoNLL's columns, or JSON lines with spans or words."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cocolm_tf.data.labeled_tables import told_rows
from cocolm_tf.data.tags import NO_SCHEME, Chunk, chunk_labels, chunks, split_tag
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import COMPRESSED_SUFFIXES, text_lines, without_surrogates

_DOCUMENT_START = "-DOCSTART-"
# The dev set that is split off is the same for every seed of a run.
_SPLIT_SEED = 0
# Of CoNLL-U: words that a token stands for follow it one by one, and empty nodes are no words.
_NO_WORD = re.compile(r"\d+[-.]\d+")
_CONLL_U_COLUMNS = 10
# Of CoNLL-U, too: "# O" is the word "#".
_COMMENT = re.compile(r"#\s*([\w:]+ = |newdoc\b|newpar\b|id )")


@dataclasses.dataclass(frozen=True)
class TaggedTexts:
    """Texts with labeled spans, or words with a label each, to train a token classifier on."""

    texts: Sequence[str] | Sequence[Sequence[str]]  # Strings, or for each text a list of its words
    # For each text its spans, in characters, or a tag for each of its words; None where they are
    # not known.
    labels: Sequence[Sequence[Chunk]] | Sequence[Sequence[str]] | None = None
    source: str = ""  # Where they come from, for people
    # Rows of the source that are left out and why, a line for people each
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_words(self) -> bool:
        """Whether the texts come as words."""
        return bool(self.texts) and not isinstance(self.texts[0], str)

    def select(self, indices: Sequence[int] | np.ndarray) -> "TaggedTexts":
        """Some of the texts; `left_out` stays the source's."""
        labels = self.labels
        return dataclasses.replace(
            self,
            texts=[self.texts[index] for index in indices],
            labels=None if labels is None else [labels[index] for index in indices],
        )


@dataclasses.dataclass(frozen=True)
class TagTask:
    """All texts of a task."""

    name: str  # The task's, for people
    label_names: Sequence[str]  # The types of spans, sorted; without a scheme, the tags
    scheme: str  # One of `tags.SCHEMES`, or `NO_SCHEME`
    train: TaggedTexts
    dev: Mapping[str, TaggedTexts]
    test: Mapping[str, TaggedTexts]  # It may have labels, to be measured by


@dataclasses.dataclass(frozen=True)
class TagColumns:
    """The columns of CoNLL's files, from 0, or from -1 at the end; the fields of JSON lines."""

    token_column: int = 0  # CoNLL: the words
    tag_column: int = -1  # CoNLL: their tags
    # CoNLL: between columns; "" for a tab in lines that have one, else white space
    delimiter: str = ""
    text: str = "text"  # JSON lines: the text
    # JSON lines: its spans, `{"start": 0, "end": 3, "label": "PER"}` or `[0, 3, "PER"]` each, in
    # characters.
    spans: str = "spans"
    tokens: str = "tokens"  # JSON lines: a text's words, in place of the text
    tags: str = "tags"  # JSON lines: their tags


def read_tag_task(
    train_file: str,
    dev_file: str = "",
    dev_fraction: float = 0.1,
    test_file: str = "",
    scheme: str = "BIO",
    max_bad_share: float = 0.0,
    encoding: str = "",
    name: str = "",
    **columns: Any,
) -> TagTask:
    """Reads a task of token classification; its labels are those of the training file."""
    # Without a `dev_file`, `dev_fraction` of the training texts is split off. A test file needs no
    # labels. `scheme`, of `tags.SCHEMES`, is how the model writes spans as tags of words,
    # `NO_SCHEME` where tags are no spans; files may write theirs in either. `max_bad_share` of a
    # file's texts may be left out. `columns` are the fields of `TagColumns` that differ.
    where = TagColumns(**columns)
    is_tagged = scheme == NO_SCHEME

    def read(path: str, has_labels: bool | None) -> TaggedTexts:
        return read_tagged_texts(path, where, has_labels, is_tagged, max_bad_share, encoding)

    train = read(train_file, True)
    label_names = _label_names(train, is_tagged)
    if dev_file:
        dev = read(dev_file, True)
    else:
        train, dev = _split(train, dev_fraction)
    test = {"test": read(test_file, None)} if test_file else {}
    for part in (dev, *test.values()):
        _check_known(part, label_names, is_tagged, train_file)
    name = name or os.path.basename(train_file).split(".")[0]
    return TagTask(name, label_names, scheme, train, {"dev": dev}, test)


def read_tagged_texts(
    path: str,
    columns: TagColumns | None = None,
    has_labels: bool | None = True,
    single_words: bool = False,
    max_bad_share: float = 0.0,
    encoding: str = "",
) -> TaggedTexts:
    """Reads a file of texts with labels: `.jsonl`, an object a line, or else CoNLL's columns."""
    # CoNLL's files have a word a line, with its columns, and blank lines between sentences. Lines
    # that begin with `-DOCSTART-`, and the comments of CoNLL-U, are none. `has_labels` is None
    # where there may be labels. With `single_words`, tags are those of single words, and so
    # anything but empty. `max_bad_share` of the texts may be left out, as something is wrong; if
    # more are, a `UserError` names the first.
    columns = columns or TagColumns()
    plain = os.path.basename(path).lower()
    for suffix in COMPRESSED_SUFFIXES:
        plain = plain.removesuffix(suffix)
    read = _json_rows if plain.endswith(".jsonl") else _conll_rows
    texts, labels, bad_rows = [], [], []
    for line, row in read(enumerate(text_lines(path, encoding), start=1), columns):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            text, label = row
            if label is None and has_labels:
                raise ValueError("has no labels")
            if label is not None and label and isinstance(label[0], str):
                _check_tags(label, single_words)
            elif label is not None and single_words and isinstance(text, str):
                raise ValueError("has spans, where words have a tag each")
            if texts and isinstance(texts[0], str) != isinstance(text, str):
                raise ValueError("has words where others have a text, or the other way round")
        except ValueError as error:
            bad_rows.append((line, str(error)))
            continue
        texts.append(text)
        labels.append(label)
    total = len(texts) + len(bad_rows)
    if not total:
        raise UserError(f"{path} has no texts.")
    if len(bad_rows) > max_bad_share * total or not texts:
        line, reason = bad_rows[0]
        more = f"; {len(bad_rows)} of {total} texts are bad" if len(bad_rows) > 1 else ""
        raise UserError(f"{path}:{line} {reason}{more}.")
    is_known = has_labels is not False and all(label is not None for label in labels)
    return TaggedTexts(texts, labels if is_known else None, path, told_rows(bad_rows))


# The line of a text, and the text with its labels, or what is wrong with it.
_Rows = Iterator[tuple[int, tuple[str | list[str], list | None] | str]]


def _conll_rows(lines: Iterator[tuple[int, str]], columns: TagColumns) -> _Rows:
    words: list[str] = []
    tags: list[str] = []
    first = width = 0
    wrong: tuple[int, str] | None = None
    for number, line in itertools.chain(lines, [(0, "")]):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith(_DOCUMENT_START):
            if wrong:
                yield wrong
            elif words:
                yield first, (words, tags if tags else None)
            words, tags, wrong = [], [], None
            continue
        cells = _cells(line, columns.delimiter)
        is_conll_u = len(cells) == _CONLL_U_COLUMNS
        if _COMMENT.match(line) or (is_conll_u and _NO_WORD.fullmatch(cells[0])):
            continue
        width = width or len(cells)
        first = first if words or wrong else number
        if len(cells) != width:
            wrong = wrong or (number, f"has {len(cells)} columns, where lines before have {width}")
            continue
        token, tag = (_place(at, width) for at in (columns.token_column, columns.tag_column))
        if token is None or (tag is None and width > 1):
            at = columns.token_column if token is None else columns.tag_column
            wrong = wrong or (number, f"has {width} columns, none of which is {at}")
            continue
        words.append(cells[token])
        if width > 1 and tag != token:
            tags.append(cells[tag])


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter:
        return line.split({"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter))
    return line.split("\t") if "\t" in line else line.split()


def _place(column: int, width: int) -> int | None:
    column += width if column < 0 else 0
    return column if 0 <= column < width else None


def _json_rows(lines: Iterator[tuple[int, str]], columns: TagColumns) -> _Rows:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON: {error}"
            continue
        try:
            yield number, _json_text(row, columns)
        except ValueError as error:
            yield number, str(error)


def _json_text(row: Any, columns: TagColumns) -> tuple[str | list[str], list | None]:
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    if columns.text in row:
        text, spans = row[columns.text], row.get(columns.spans)
        if not isinstance(text, str):
            raise ValueError(f"has in {columns.text!r} no string: {text!r}")
        text = without_surrogates(text)
        return text, None if spans is None else _spans(spans, text)
    if columns.tokens not in row:
        raise ValueError(
            f"has neither {columns.text!r}, a text, nor {columns.tokens!r}, its words: it has "
            f"{', '.join(row) or 'nothing'}"
        )
    words, tags = row[columns.tokens], row.get(columns.tags)
    for field, values in ((columns.tokens, words), (columns.tags, tags)):
        is_known = values is not None or field == columns.tokens
        if is_known and not (isinstance(values, list) and all(isinstance(x, str) for x in values)):
            raise ValueError(f"has in {field!r} no list of strings")
    if tags is not None and len(tags) != len(words):
        raise ValueError(f"has {len(words)} words and {len(tags)} tags")
    return [without_surrogates(word) for word in words], tags


def _spans(values: Any, text: str) -> list[Chunk]:
    if not isinstance(values, list):
        raise ValueError("has no list of spans")
    spans = []
    for value in values:
        if isinstance(value, dict):
            start, end, label = (value.get(key) for key in ("start", "end", "label"))
        elif isinstance(value, list) and len(value) == 3:
            start, end, label = value
        else:
            start = end = label = None
        is_place = type(start) is int and type(end) is int and isinstance(label, str)
        if not is_place or not label.strip():
            raise ValueError(
                f'has the span {json.dumps(value)}, which is no {{"start": 0, "end": 3, '
                '"label": "PER"}'
            )
        if not 0 <= start < end <= len(text):
            raise ValueError(f"has the span {start} to {end} in a text of {len(text)} characters")
        said = value.get("text", text[start:end]) if isinstance(value, dict) else text[start:end]
        if said != text[start:end]:
            raise ValueError(
                f"has the span {start} to {end}, which is said to be {said!r} and is "
                f"{text[start:end]!r}: places are counted in characters, not in bytes"
            )
        spans.append(Chunk(start, end, label.strip()))
    spans.sort()
    for span, after in zip(spans, spans[1:], strict=False):
        if after.start < span.end:
            raise ValueError(
                f"has the spans {span.start} to {span.end} and {after.start} to {after.end}, which "
                "overlap: a word has one label"
            )
    return spans


def _check_tags(tags: Sequence[str], single_words: bool) -> None:
    if single_words:
        if not all(map(str.strip, tags)):
            raise ValueError("has an empty tag")
        return
    try:
        for tag in tags:
            split_tag(tag)
    except ValueError as error:
        advice = f"say --scheme={NO_SCHEME} where tags are those of single words"
        raise ValueError(f"has a tag that is none: {error}; {advice}") from error


def labels_of(texts: TaggedTexts, single_words: bool) -> set[str]:
    """The labels that occur: types of spans, or the tags where they are of single words."""
    if texts.labels is None:
        return set()
    if not texts.has_words:
        return {span.label for spans in texts.labels for span in spans}
    tags = {tag for row in texts.labels for tag in row}
    return tags if single_words else set(chunk_labels(tags))


def spans_of(tags: Sequence[str]) -> list[Chunk]:
    """The spans of a text that comes as words: see `chunks`."""
    return chunks(tags) if tags else []


def _label_names(train: TaggedTexts, single_words: bool) -> list[str]:
    names = sorted(labels_of(train, single_words))
    if len(names) < (2 if single_words else 1):
        raise UserError(f"{train.source} has no labels to learn but {', '.join(names) or 'O'}.")
    return names


def _check_known(
    part: TaggedTexts, label_names: Sequence[str], single_words: bool, train_file: str
) -> None:
    if unknown := sorted(labels_of(part, single_words) - set(label_names)):
        raise UserError(
            f"{part.source} has the label {unknown[0]!r}, which {train_file} has not: it has "
            f"{', '.join(label_names)}."
        )


def _split(train: TaggedTexts, fraction: float) -> tuple[TaggedTexts, TaggedTexts]:
    if not 0 < fraction < 1:
        raise UserError(f"--dev_fraction={fraction} must be in (0, 1).")
    if len(train) < 2:
        raise UserError(f"{train.source} has one text, too few to split a dev set off.")
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(train))
    count = min(max(1, round(fraction * len(train))), len(train) - 1)
    return train.select(np.sort(order[count:])), train.select(np.sort(order[:count]))

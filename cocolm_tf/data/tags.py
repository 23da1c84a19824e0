"""Labels of words and spans: tags (BIO, BIOES), the chunks that they mark, files that have them.

How tags are read as chunks is CoNLL's evaluation, as `seqeval` has it by default: the prefixes of
both schemes have the same meaning everywhere, and a tag that cannot continue the chunk before it
begins a new one. So the older IOB1 is read too, and no tags that a model predicts are an error.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cocolm_tf.data.examples import SPLIT_SEED, check_dev_fraction, selected
from cocolm_tf.data.tables import file_type, json_objects, left_out_lines
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import text_lines, without_surrogates

# The prefixes of a chunk's tags in each scheme.
SCHEMES = {"BIO": "BI", "BIOES": "BIES"}
# The scheme of tags of single words, as of parts of speech.
NO_SCHEME = "none"
OUTSIDE = "O"
# A prefix's number is its place here.
PREFIXES = "OBIES"
_O, _B, _I, _E, _S = range(5)
# The type of words in no chunk.
NO_TYPE = -1

_DOCUMENT_START = "-DOCSTART-"
# Of CoNLL-U: words that a token stands for follow it one by one, and empty nodes are no words.
_NO_WORD = re.compile(r"\d+[-.]\d+")
_CONLL_U_COLUMNS = 10
# Of CoNLL-U, too: "# O" is the word "#".
_COMMENT = re.compile(r"#\s*([\w:]+ = |newdoc\b|newpar\b|id )")


class Chunk(NamedTuple):
    """Words that belong together, from `start` to before `end`, of the type `label`."""

    start: int
    end: int
    label: str


def split_tag(tag: str) -> tuple[int, str]:
    """The number of a tag's prefix and its type; `ValueError` where it is no tag of a chunk."""
    prefix, dash, label = tag.partition("-")
    if tag == OUTSIDE:
        return _O, ""
    if not dash or not label or len(prefix) != 1 or prefix not in PREFIXES[1:]:
        raise ValueError(f"{tag!r} is no tag of a chunk, as O, B-TYPE, I-TYPE, E-TYPE or S-TYPE")
    return PREFIXES.index(prefix), label


def tag_names(labels: Iterable[str], scheme: str) -> list[str]:
    """The tags of a scheme: `O`, and then those of each type of chunks."""
    if scheme not in SCHEMES:
        raise ValueError(f"a scheme is one of {', '.join(SCHEMES)}, not {scheme!r}.")
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in SCHEMES[scheme])]


def chunk_labels(names: Iterable[str]) -> list[str]:
    """The types that occur in tags, sorted."""
    return sorted({split_tag(name)[1] for name in names} - {""})


class TagCodes(NamedTuple):
    """The prefixes and types of tags, by the numbers of the tags."""

    # `prefixes` [K] int32 are indices of `PREFIXES`, `types` [K] int32 of `labels`; `NO_TYPE` of
    # `O`.

    prefixes: np.ndarray
    types: np.ndarray
    labels: list[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> "TagCodes":
        """The codes of tags, by their names."""
        parts = [split_tag(name) for name in names]
        labels = chunk_labels(names)
        types = [labels.index(label) if label else NO_TYPE for _, label in parts]
        prefixes = [prefix for prefix, _ in parts]
        return cls(np.array(prefixes, np.int32), np.array(types, np.int32), labels)


def begins_chunk(before: Any, prefixes: Any, types_before: Any, types: Any) -> Any:
    """Where chunks begin, [N] bool, by the prefixes and types of words and those before."""
    # For arrays and for tensors. Before the first word of a text is the prefix of `O`.
    continues = (prefixes == _I) | (prefixes == _E)
    was_complete = (before == _O) | (before == _E) | (before == _S)
    is_other = (prefixes != _O) & (types_before != types)
    return (prefixes == _B) | (prefixes == _S) | (continues & was_complete) | is_other


def ends_chunk(prefixes: Any, after: Any, types: Any, types_after: Any) -> Any:
    """Where chunks end, [N] bool: as `begins_chunk`, with the words after, not before."""
    is_open = (prefixes == _B) | (prefixes == _I)
    is_over = (after == _O) | (after == _B) | (after == _S)
    is_other = (prefixes != _O) & (types != types_after)
    return (prefixes == _E) | (prefixes == _S) | (is_open & is_over) | is_other


def chunks_of_numbers(numbers: np.ndarray, lengths: np.ndarray, codes: TagCodes) -> np.ndarray:
    """The chunks of all sequences, [C, 3]: first word, the one after the last, and type."""
    # `numbers` [N] are those of the tags of all sequences, of `lengths` [B], one after the other;
    # words are counted through all of them.
    prefixes, types = codes.prefixes[numbers], codes.types[numbers]
    texts = np.repeat(np.arange(len(lengths)), lengths)
    is_first = np.diff(texts, prepend=-1) != 0
    is_last = np.diff(texts, append=-1) != 0
    before, types_before = (np.roll(part, 1) for part in (prefixes, types))
    after, types_after = (np.roll(part, -1) for part in (prefixes, types))
    before, types_before = np.where(is_first, _O, before), np.where(is_first, NO_TYPE, types_before)
    after, types_after = np.where(is_last, _O, after), np.where(is_last, NO_TYPE, types_after)
    first = np.flatnonzero(begins_chunk(before, prefixes, types_before, types))
    last = np.flatnonzero(ends_chunk(prefixes, after, types, types_after))
    return np.stack([first, last + 1, types[first]], axis=1)


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """The chunks of a sequence's tags, of either scheme, valid or not, in order."""
    names = sorted(set(tags))
    codes = TagCodes.of(names)
    numbers = np.array([names.index(tag) for tag in tags], int)
    found = chunks_of_numbers(numbers, np.array([len(tags)]), codes)
    return [Chunk(int(start), int(end), codes.labels[label]) for start, end, label in found]


def tags_of_chunks(found: Iterable[Chunk], length: int, scheme: str) -> list[str]:
    """A tag for each of `length` words, from chunks that do not overlap."""
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme!r} is none of {', '.join(SCHEMES)}")
    tags = [OUTSIDE] * length
    for start, end, label in found:
        prefixes = ["B", *"I" * (end - start - 1)]
        if scheme == "BIOES":
            prefixes[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tags


def converted(tags: Sequence[str], scheme: str) -> list[str]:
    """The tags of the same chunks in a scheme, whose rules they then keep."""
    return tags_of_chunks(chunks(tags), len(tags), scheme)


# --- Files of texts with tags or spans ---


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
        texts, labels = selected(self.texts, indices), selected(self.labels, indices)
        return dataclasses.replace(self, texts=texts, labels=labels)


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
    # labels. `scheme`, of `SCHEMES`, is how the model writes spans as tags of words, `NO_SCHEME`
    # where tags are no spans; files may write theirs in either. `max_bad_share` of a file's texts
    # may be left out. `columns` are the fields of `TagColumns` that differ.
    where = TagColumns(**columns)
    is_tagged = scheme == NO_SCHEME

    def read(path: str, has_labels: bool | None) -> TaggedTexts:
        return read_tagged_texts(path, where, has_labels, is_tagged, max_bad_share, encoding)

    train = read(train_file, True)
    label_names = sorted(_labels_of(train, is_tagged))
    if len(label_names) < (2 if is_tagged else 1):
        raise UserError(f"{train_file} has no labels to learn but {', '.join(label_names) or 'O'}.")
    if dev_file:
        dev = read(dev_file, True)
    else:
        train, dev = _split(train, dev_fraction)
    test = {"test": read(test_file, None)} if test_file else {}
    for part in (dev, *test.values()):
        if unknown := sorted(_labels_of(part, is_tagged).difference(label_names)):
            raise UserError(
                f"{part.source} has the label {unknown[0]!r}, which {train_file} has not: it has "
                f"{', '.join(label_names)}."
            )
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
    read = _json_rows if file_type(path) == ".jsonl" else _conll_rows
    texts, labels, bad_rows = [], [], []
    for line, row in read(text_lines(path, encoding), columns):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            text, label = row
            if label is None and has_labels:
                raise ValueError("has no labels")
            if label and isinstance(label[0], str):
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
    left_out = left_out_lines(path, bad_rows, total, max_bad_share, "texts")
    is_known = has_labels is not False and None not in labels
    return TaggedTexts(texts, labels if is_known else None, path, left_out)


# The line of a text, and the text with its labels, or what is wrong with it.
_Rows = Iterator[tuple[int, tuple[str | list[str], list | None] | str]]


def _conll_rows(lines: Iterable[str], columns: TagColumns) -> _Rows:
    words: list[str] = []
    tags: list[str] = []
    first = width = 0
    wrong: tuple[int, str] | None = None
    for number, line in enumerate(itertools.chain(lines, [""]), start=1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith(_DOCUMENT_START):
            if wrong:
                yield wrong
            elif words:
                yield first, (words, tags or None)
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
        wanted = [columns.token_column, *([columns.tag_column] if width > 1 else [])]
        if missing := [column for column in wanted if not -width <= column < width]:
            wrong = wrong or (number, f"has {width} columns, none of which is {missing[0]}")
            continue
        words.append(cells[columns.token_column])
        if width > 1 and (columns.tag_column - columns.token_column) % width:
            tags.append(cells[columns.tag_column])


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter:
        return line.split({"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter))
    return line.split("\t") if "\t" in line else line.split()


def _json_rows(lines: Iterable[str], columns: TagColumns) -> _Rows:
    for number, row in json_objects(lines):
        if isinstance(row, dict):
            try:
                row = _json_text(row, columns)
            except ValueError as error:
                row = str(error)
        if row is not None:
            yield number, row


def _json_text(row: dict[str, Any], columns: TagColumns) -> tuple[str | list[str], list | None]:
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
        fields = value
        if isinstance(value, dict):
            fields = [value.get(key) for key in ("start", "end", "label")]
        is_span = isinstance(fields, list) and list(map(type, fields)) == [int, int, str]
        if not is_span or not fields[2].strip():
            raise ValueError(
                f'has the span {json.dumps(value)}, which is no {{"start": 0, "end": 3, '
                '"label": "PER"}'
            )
        start, end, label = fields
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
    for span, after in itertools.pairwise(spans):
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
        chunk_labels(tags)
    except ValueError as error:
        advice = f"say --scheme={NO_SCHEME} where tags are those of single words"
        raise ValueError(f"has a tag that is none: {error}; {advice}") from error


def _labels_of(texts: TaggedTexts, single_words: bool) -> set[str]:
    """The labels that occur: types of spans, or the tags where they are of single words."""
    labels = itertools.chain.from_iterable(texts.labels or ())
    if not texts.has_words:
        return {span.label for span in labels}
    return set(labels) if single_words else set(chunk_labels(labels))


def _split(train: TaggedTexts, fraction: float) -> tuple[TaggedTexts, TaggedTexts]:
    check_dev_fraction(fraction)
    if len(train) < 2:
        raise UserError(f"{train.source} has one text, too few to split a dev set off.")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    count = min(max(1, round(fraction * len(train))), len(train) - 1)
    return train.select(np.sort(order[count:])), train.select(np.sort(order[:count]))

"""A user's files of texts: sentence pairs, texts with mistakes, minimal pairs, a corpus."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from cocolm_tf.data.sources import FileSource
from cocolm_tf.data.tables import read_table
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import matching_files

# The category of all minimal pairs together.
ALL = "all"
_FIRST, _SECOND, _SCORE = "sentence1", "sentence2", "score"
_ORIGINAL, _CORRUPTED = "original", "corrupted"
_GOOD, _BAD = "sentence_good", "sentence_bad"
# Where a minimal pair's category stands; BLiMP's files have the second.
_CATEGORIES = ("category", "linguistics_term", "UID")
# Lines of a corpus that texts are drawn from.
_LINES = 200_000


def read_rows(
    path: str, columns: Sequence[str], optional: Sequence[str] = (), encoding: str | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads rows that have some columns as text, and may have others."""
    table = read_table(path, columns, None, optional, encoding, default_format=".tsv")
    for line, reason in table.bad_rows:
        raise UserError(f"{path}:{line} {reason}.")
    for line, values in zip(table.lines, table.rows, strict=True):
        row = dict(zip([*columns, *optional], values, strict=True))
        for name in columns:
            if not row[name].strip():
                raise UserError(f"{path}:{line} has no {name}: it needs {' and '.join(columns)}.")
        yield f"{path}:{line}", row


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences."""

    first: list[str]  # the sentences that come first
    second: list[str]  # their partners
    # [N] float, how similar each pair is; None where the file does not say.
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)


def read_pairs(path: str, encoding: str | None = None) -> SentencePairs:
    """Reads pairs from a table with a header, as GLUE's `STS-B/dev.tsv`, or from JSON lines."""
    first, second, scores = [], [], []
    for place, row in read_rows(path, (_FIRST, _SECOND), (_SCORE,), encoding):
        first.append(row[_FIRST].strip())
        second.append(row[_SECOND].strip())
        if row[_SCORE]:
            scores.append(_number(row[_SCORE], place))
        if scores and len(scores) != len(first):
            raise UserError(f"{place}: either all pairs have a {_SCORE}, or none.")
    return SentencePairs(first, second, np.array(scores) if scores else None)


def _number(value: str, place: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise UserError(f"{place}: {_SCORE} must be a number, not {value!r}.")
    return number


@dataclasses.dataclass(frozen=True)
class CorruptedText:
    """A text with mistakes, and what it should be."""

    original: str
    corrupted: str


def read_corrupted_texts(path: str, encoding: str | None = None) -> list[CorruptedText]:
    """Reads rows with `original` and `corrupted`."""
    rows = read_rows(path, (_ORIGINAL, _CORRUPTED), encoding=encoding)
    return [CorruptedText(row[_ORIGINAL], row[_CORRUPTED]) for _, row in rows]


@dataclasses.dataclass(frozen=True)
class MinimalPair:
    """A good sentence and a bad one."""

    good: str
    bad: str
    category: str


def read_minimal_pairs(pattern: str, encoding: str | None = None) -> list[MinimalPair]:
    """Reads rows with `sentence_good`, `sentence_bad` and, if any, a category."""
    pairs = []
    for path in matching_files(pattern):
        for _, row in read_rows(path, (_GOOD, _BAD), _CATEGORIES, encoding):
            category = next((row[name] for name in _CATEGORIES if row[name]), "")
            # A category of a user's own may be called as all of them together.
            category = f"{ALL} (category)" if category == ALL else category or ALL
            pairs.append(MinimalPair(row[_GOOD], row[_BAD], category))
    return pairs


def sample_texts(pattern: str, count: int, seed: int, encoding: str = "") -> list[str]:
    """Samples lines of a corpus, from its first 200,000."""
    lines = FileSource.find(pattern, one_document_per_line=True, encoding=encoding)
    texts = list(dict.fromkeys(itertools.islice(lines, _LINES)))
    if len(texts) < 2:
        raise UserError(f"--corpus={pattern} has no two lines of text: there is nothing to pair.")
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[i] for i in chosen]

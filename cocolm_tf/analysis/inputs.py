"""A user's files of texts: sentence pairs, texts with mistakes, minimal pairs, a corpus."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cocolm_tf.data.sources import FileSource
from cocolm_tf.data.tables import read_table
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import matching_files

# The category of all minimal pairs together.
ALL = "all"
# The columns of a minimal pair's category, the first that there is; BLiMP's files have the second.
_CATEGORIES = ("category", "linguistics_term", "UID")
# Lines of a corpus that texts are drawn from.
_LINES = 200_000


def read_rows(
    path: str, columns: Sequence[str], optional: Sequence[str] = (), encoding: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Reads the values of some columns, none of them blank, and of others that may be missing."""
    table = read_table(path, columns, None, optional, encoding, default_format=".tsv")
    for line, reason in table.bad_rows:
        raise UserError(f"{path}:{line} {reason}.")
    for line, values in zip(table.lines, table.rows, strict=True):
        for name, value in zip(columns, values, strict=False):
            if not value.strip():
                raise UserError(f"{path}:{line} has no {name}: it needs {' and '.join(columns)}.")
        yield f"{path}:{line}", list(values)


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences."""

    first: list[str]  # the sentences that come first
    second: list[str]  # their partners
    scores: np.ndarray | None = None  # [N] float, how similar each pair is, where that is known

    def __len__(self) -> int:
        return len(self.first)


def read_pairs(path: str, encoding: str | None = None) -> SentencePairs:
    """Reads pairs from a table with a header, as GLUE's `STS-B/dev.tsv`, or from JSON lines."""
    pairs = SentencePairs([], [])
    scores = []
    for place, (first, second, score) in read_rows(
        path, ("sentence1", "sentence2"), ("score",), encoding
    ):
        pairs.first.append(first.strip())
        pairs.second.append(second.strip())
        if score:
            scores.append(_number(score, place))
        if scores and len(scores) != len(pairs):
            raise UserError(f"{place}: either all pairs have a score, or none.")
    return dataclasses.replace(pairs, scores=np.array(scores)) if scores else pairs


def _number(value: str, place: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise UserError(f"{place}: score must be a number, not {value!r}.")
    return number


class CorruptedText(NamedTuple):
    """A text with mistakes, and what it should be."""

    original: str
    corrupted: str


def read_corrupted_texts(path: str, encoding: str | None = None) -> list[CorruptedText]:
    """Reads rows with `original` and `corrupted`."""
    rows = read_rows(path, CorruptedText._fields, encoding=encoding)
    return [CorruptedText(*values) for _, values in rows]


class MinimalPair(NamedTuple):
    """A good sentence and a bad one."""

    good: str
    bad: str
    category: str


def read_minimal_pairs(pattern: str, encoding: str | None = None) -> list[MinimalPair]:
    """Reads rows with `sentence_good`, `sentence_bad` and, if any, a category."""
    pairs = []
    for path in matching_files(pattern):
        rows = read_rows(path, ("sentence_good", "sentence_bad"), _CATEGORIES, encoding)
        for _, (good, bad, *categories) in rows:
            category = next(filter(None, categories), ALL)
            # A category of a user's own may be called as all of them together.
            is_own = category == ALL and ALL in categories
            pairs.append(MinimalPair(good, bad, f"{ALL} (category)" if is_own else category))
    return pairs


def sample_texts(pattern: str, count: int, seed: int, encoding: str = "") -> list[str]:
    """Samples lines of a corpus, from its first 200,000."""
    lines = FileSource.find(pattern, one_document_per_line=True, encoding=encoding)
    texts = list(dict.fromkeys(itertools.islice(lines, _LINES)))
    if len(texts) < 2:
        raise UserError(f"--corpus={pattern} has no two lines of text: there is nothing to pair.")
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[i] for i in chosen]

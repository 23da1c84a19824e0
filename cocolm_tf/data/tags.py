"""Tags of words and the chunks that they mark: BIO, BIOES, and tags that break their rules.

How tags are read as chunks is CoNLL's evaluation, as `seqeval` has it by default: the prefixes of
both schemes have the same meaning everywhere, and a tag that cannot continue the chunk before it
begins a new one. So the older IOB1 is read too, and no tags that a model predicts are an error.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

SCHEMES = ("BIO", "BIOES")
# The scheme of tags of single words, as of parts of speech.
NO_SCHEME = "none"
OUTSIDE = "O"
# A prefix's number is its place here.
PREFIXES = "OBIES"
_O, _B, _I, _E, _S = range(5)
# The type of words in no chunk.
NO_TYPE = -1


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
    prefixes = _PREFIXES_OF[_checked(scheme)]
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in prefixes)]


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
    has_ends = _checked(scheme) == "BIOES"
    tags = [OUTSIDE] * length
    for start, end, label in found:
        inside = itertools.repeat("I", end - start - 1)
        prefixes = ["B", *inside]
        if has_ends:
            prefixes[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tags


def converted(tags: Sequence[str], scheme: str) -> list[str]:
    """The tags of the same chunks in a scheme, whose rules they then keep."""
    return tags_of_chunks(chunks(tags), len(tags), scheme)


_PREFIXES_OF = {"BIO": "BI", "BIOES": "BIES"}


def _checked(scheme: str) -> str:
    if scheme not in SCHEMES:
        raise ValueError(f"a scheme is one of {', '.join(SCHEMES)}, not {scheme!r}.")
    return scheme

"""Tags of words and the chunks that they mark: BIO, BIOES, and tags that break their rules.

How tags are read as chunks is CoNLL's evaluation, as `seqeval` has it by default: the prefixes of
both schemes mean what they mean wherever they stand, and a tag that cannot continue what is before
it begins something new. So the older IOB1 is read too, and nothing that a model says is an error.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

SCHEMES = ("BIO", "BIOES")
# Of tags that are those of single words, as parts of speech are.
NO_SCHEME = "none"
OUTSIDE = "O"
# A prefix's number is its place here.
PREFIXES = "OBIES"
_O, _B, _I, _E, _S = range(5)
# The type of what is in no chunk.
NO_TYPE = -1


class Chunk(NamedTuple):
    """Words that belong together.

    Attributes:
        start: The first word.
        end: The one after the last.
        label: The type, as `"PER"`.
    """

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
    """Names the tags of a scheme.

    Args:
        labels: The types of chunks.
        scheme: One of `SCHEMES`.

    Returns:
        `O`, and then those of each type.

    Example:
    ```python
    tag_names(["LOC", "PER"], "BIO")  # ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    ```
    """
    prefixes = _PREFIXES_OF[_checked(scheme)]
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in prefixes)]


def chunk_labels(names: Iterable[str]) -> list[str]:
    """The types that occur in tags, sorted."""
    return sorted({split_tag(name)[1] for name in names} - {""})


class TagCodes(NamedTuple):
    """What tags are made of, by the numbers of the tags.

    Attributes:
        prefixes: [K] int32, places in `PREFIXES`.
        types: [K] int32, places in `labels`; `NO_TYPE` of `O`.
        labels: The types, sorted.
    """

    prefixes: np.ndarray
    types: np.ndarray
    labels: list[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> "TagCodes":
        """Takes tags apart."""
        parts = [split_tag(name) for name in names]
        labels = chunk_labels(names)
        types = [labels.index(label) if label else NO_TYPE for _, label in parts]
        prefixes = [prefix for prefix, _ in parts]
        return cls(np.array(prefixes, np.int32), np.array(types, np.int32), labels)


def begins_chunk(before: Any, prefixes: Any, types_before: Any, types: Any) -> Any:
    """Says where chunks begin, of arrays and of tensors alike.

    Args:
        before: [N] int, the prefix before each word; that of `O` at the beginning of a text.
        prefixes: [N] int, the word's own.
        types_before: [N] int, the type before each word.
        types: [N] int, the word's own.

    Returns:
        [N] bool.
    """
    goes_on = (prefixes == _I) | (prefixes == _E)
    was_complete = (before == _O) | (before == _E) | (before == _S)
    is_other = (prefixes != _O) & (types_before != types)
    return (prefixes == _B) | (prefixes == _S) | (goes_on & was_complete) | is_other


def ends_chunk(prefixes: Any, after: Any, types: Any, types_after: Any) -> Any:
    """Says where chunks end: as `begins_chunk`, with the words after in place of those before."""
    is_open = (prefixes == _B) | (prefixes == _I)
    is_over = (after == _O) | (after == _B) | (after == _S)
    is_other = (prefixes != _O) & (types != types_after)
    return (prefixes == _E) | (prefixes == _S) | (is_open & is_over) | is_other


def chunks_of_numbers(numbers: np.ndarray, lengths: np.ndarray, codes: TagCodes) -> np.ndarray:
    """Finds the chunks of all sequences at once.

    Args:
        numbers: [N] int, the numbers of the tags, of all sequences one after the other.
        lengths: [B] int, of the sequences.
        codes: What the tags are made of.

    Returns:
        [C, 3] int: first word and the one after the last, both counted through all sequences, and
        the type.

    Example:
    ```python
    codes = TagCodes.of(["O", "B-X", "I-X"])
    chunks_of_numbers(np.array([0, 1, 2, 2]), np.array([3, 1]), codes)  # [[1, 3, 0], [3, 4, 0]]
    ```
    """
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
    """Reads the tags of one sequence.

    Args:
        tags: Of either scheme, valid or not.

    Returns:
        The chunks in order.

    Raises:
        ValueError: If something is no tag at all.

    Example:
    ```python
    chunks(["B-PER", "I-PER", "O", "I-LOC"])  # [Chunk(0, 2, "PER"), Chunk(3, 4, "LOC")]
    ```
    """
    names = sorted(set(tags))
    codes = TagCodes.of(names)
    numbers = np.array([names.index(tag) for tag in tags], int)
    found = chunks_of_numbers(numbers, np.array([len(tags)]), codes)
    return [Chunk(int(start), int(end), codes.labels[label]) for start, end, label in found]


def tags_of_chunks(found: Iterable[Chunk], length: int, scheme: str) -> list[str]:
    """Writes chunks as tags.

    Args:
        found: The chunks, none of which overlaps another.
        length: int. The number of words.
        scheme: One of `SCHEMES`.

    Returns:
        A tag for each word.

    Example:
    ```python
    tags_of_chunks([Chunk(0, 2, "PER")], 3, "BIOES")  # ["B-PER", "E-PER", "O"]
    ```
    """
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
    """Writes the same chunks in a scheme, which mends what breaks its rules.

    Example:
    ```python
    converted(["I-PER", "I-PER", "O"], "BIO")  # ["B-PER", "I-PER", "O"]
    ```
    """
    return tags_of_chunks(chunks(tags), len(tags), scheme)


_PREFIXES_OF = {"BIO": "BI", "BIOES": "BIES"}


def _checked(scheme: str) -> str:
    if scheme not in SCHEMES:
        raise ValueError(f"a scheme is one of {', '.join(SCHEMES)}, not {scheme!r}.")
    return scheme

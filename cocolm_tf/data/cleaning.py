"""Cleaning and deduplication: which documents are left out.

`Cleaning` checks each document by itself. `Deduplication` gives a document 63-bit keys; of the
documents that share a key all but the first are duplicates. Both are pure functions of a document's
text, so that any process or machine can apply them to any chunk. `DuplicateIndex` joins the keys of
the whole corpus on one machine, a group-by-key on many.
"""

import functools
import hashlib
import os
import re
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cocolm_tf.errors import UserError

METHODS = ("exact", "near")

# A document's id joins the numbers of its part, its chunk and itself. Like keys, it has 63 bits, to
# fit into signed integers, too.
_CHUNK_BITS, _DOCUMENT_BITS = 20, 24
_PART_BITS = 63 - _CHUNK_BITS - _DOCUMENT_BITS
_KEYED = np.dtype([("key", "<u8"), ("document", "<u8")])

_WORD = re.compile(r"\w+")
# Hash functions that estimate a similarity; n-grams that are hashed at once, within 8 MB.
_PERMUTATIONS = 128
_NGRAMS_AT_ONCE = 1 << 13
# Knuth's odd constant for multiplicative hashing.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Keys are sorted in buckets, each of which fits into memory.
_BUCKETS = 256
_ROWS_IN_MEMORY = 1 << 20


@dataclass(frozen=True)
class Cleaning:
    """Limits on documents; one that exceeds any of them is left out.

    Args:
        min_words: The fewest words, which are what white space separates.
        max_words: The most words; 0 for no limit.
        min_letter_share: The least share of letters among the characters other than white space.
        max_repeated_lines: The largest share of lines that equal an earlier one.

    Example:
    ```python
    cleaning = Cleaning(min_words=3, min_letter_share=0.7)
    cleaning(["A few words.", "Short.", "1 | 2 | 3 | 4"])
    # (['A few words.'], Counter({'too_short': 1, 'few_letters': 1}))
    ```
    """

    min_words: int = 0
    max_words: int = 0
    min_letter_share: float = 0.0
    max_repeated_lines: float = 1.0

    def __call__(self, documents: Iterable[str]) -> tuple[list[str], Counter[str]]:
        """The documents that stay, and the number of those left out by reason."""
        kept, counts = [], Counter()
        for document in documents:
            if fault := self.fault(document):
                counts[fault] += 1
            else:
                kept.append(document)
        return kept, counts

    def fault(self, document: str) -> str:
        """The name under which a document is counted as left out; empty if it stays."""
        if self.min_words or self.max_words:
            words = len(document.split())
            if words < self.min_words:
                return "too_short"
            if self.max_words and words > self.max_words:
                return "too_long"
        if self.min_letter_share:
            characters = "".join(document.split())
            letters = sum(map(str.isalpha, characters))
            if letters < self.min_letter_share * len(characters):
                return "few_letters"
        if self.max_repeated_lines < 1:
            lines = list(filter(None, map(str.strip, document.split("\n"))))
            if len(lines) - len(set(lines)) > self.max_repeated_lines * len(lines):
                return "repeated_lines"
        return ""

    def describe(self) -> dict[str, Any]:
        """The limits in force, for the manifest."""
        defaults = asdict(Cleaning())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


@dataclass(frozen=True)
class Deduplication:
    """What makes documents duplicates: of those that share a key, only the first stays.

    Args:
        method: `"exact"` for the same words, whatever the case, the punctuation and the white space
            between them; `"near"` for similar sets of word n-grams, by MinHash and
            locality-sensitive hashing (the package `datasketch`).
        threshold: With `"near"`, the Jaccard similarity from which on two documents are likely to
            share a key.
        ngram: With `"near"`, the words of an n-gram.
        cleaning: Documents that it leaves out do not count as first.

    Raises:
        UserError: If an argument is out of its range, or `datasketch` is not installed.

    Example:
    ```python
    same = Deduplication("exact")
    same.keys("The same words.") == same.keys("the SAME\\nwords")  # True
    ```
    """

    method: str
    threshold: float = 0.8
    ngram: int = 5
    cleaning: Cleaning | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"--deduplicate={self.method} must be one of {', '.join(METHODS)}.")
        if self.method == "near":
            _min_hash(self.threshold)

    def keys(self, document: str) -> list[int]:
        """The keys of a document, 63-bit integers: one, or with `"near"` one for each band."""
        words = _WORD.findall(unicodedata.normalize("NFKC", document).casefold())
        if self.method == "exact":
            return [_hash(" ".join(words or [document]).encode("utf-8", "surrogatepass"))]
        hashes = _ngram_hashes(words or document.split(), self.ngram).tolist()
        signature, bands, rows = _min_hash(self.threshold)
        signature = signature.copy()
        for start in range(0, len(hashes), _NGRAMS_AT_ONCE):
            signature.update_batch(hashes[start : start + _NGRAMS_AT_ONCE])
        values = signature.hashvalues.astype("<u4")[: bands * rows].reshape(bands, rows)
        return [_hash(bytes([band]) + row.tobytes()) for band, row in enumerate(values)]

    def chunk_keys(self, part: int, chunk: int, documents: Sequence[str]) -> np.ndarray:
        """The keys of a chunk's documents, [N] with the uint64 fields `key` and `document`."""
        rows = [
            (key, document_id(part, chunk, index))
            for index, document in enumerate(documents)
            if self.cleaning is None or not self.cleaning.fault(document)
            for key in self.keys(document)
        ]
        return np.array(rows, _KEYED)

    def describe(self) -> dict[str, Any]:
        """The options in force, for the manifest."""
        if self.method == "exact":
            return {"deduplicate": self.method}
        return {
            "deduplicate": self.method,
            "deduplicate_threshold": self.threshold,
            "deduplicate_ngram": self.ngram,
        }


class DuplicateIndex:
    """Finds the duplicates of a corpus by their keys, in bounded memory."""

    # Keys are spilled to files by their first bits, and each file is sorted by itself.

    def __init__(self, folder: str | None = None):
        self._folder = tempfile.TemporaryDirectory(dir=folder)
        self._waiting: list[np.ndarray] = []
        self._count = 0

    def __enter__(self) -> "DuplicateIndex":
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def add(self, rows: np.ndarray) -> None:
        """Adds what `Deduplication.chunk_keys` returns."""
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count >= _ROWS_IN_MEMORY:
            self._write()

    def duplicates(self) -> np.ndarray:
        """The sorted ids [N] uint64 of the duplicates among all that were added."""
        self._write()
        found = [np.empty(0, "<u8")]
        for file in os.scandir(self._folder.name):
            rows = np.fromfile(file, _KEYED)
            rows = rows[np.lexsort((rows["document"], rows["key"]))]
            # All but the first of each key.
            found.append(np.unique(rows["document"][1:][rows["key"][1:] == rows["key"][:-1]]))
        return np.unique(np.concatenate(found))

    def _write(self) -> None:
        rows = np.concatenate([*self._waiting, np.empty(0, _KEYED)])
        self._waiting, self._count = [], 0
        bucket = rows["key"] // np.uint64(2**63 // _BUCKETS)
        rows = rows[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=_BUCKETS))
        for number, part in enumerate(np.split(rows, ends[:-1])):
            if len(part):
                with open(os.path.join(self._folder.name, str(number)), "ab") as file:
                    file.write(part.tobytes())


def duplicates_in(ids: np.ndarray, part: int, chunk: int) -> list[int]:
    """The indices of the duplicates in a chunk, by the sorted ids [N] uint64 of all."""
    first = document_id(part, chunk, 0)
    bounds = np.array([first, first + 2**_DOCUMENT_BITS], np.uint64)
    start, end = np.searchsorted(ids, bounds)
    return (ids[start:end] - np.uint64(first)).tolist()


def document_id(part: int, chunk: int, document: int) -> int:
    """The 63-bit id of a document in the order of the corpus, by its part, chunk and index."""
    if part >= 2**_PART_BITS or chunk >= 2**_CHUNK_BITS or document >= 2**_DOCUMENT_BITS:
        raise UserError(
            f"--deduplicate takes up to {2**_PART_BITS:,} files, and of each up to "
            f"{2**_CHUNK_BITS:,} chunks: put the text into fewer, larger files."
        )
    return (part << _CHUNK_BITS | chunk) << _DOCUMENT_BITS | document


def split_document_id(number: int) -> tuple[int, int, int]:
    """Splits an id of `document_id` into the numbers of part, chunk and document."""
    chunk, document = divmod(number, 2**_DOCUMENT_BITS)
    return *divmod(chunk, 2**_CHUNK_BITS), document


def _ngram_hashes(words: list[str], ngram: int) -> np.ndarray:
    """The sorted distinct 32-bit hashes of all n-grams, combined from the words' own."""
    encoded = "\n".join(words).encode("utf-8", "surrogatepass").split(b"\n")
    hashes = np.fromiter(map(zlib.crc32, encoded), np.uint64, len(encoded))
    count = max(1, len(hashes) - ngram + 1)
    combined = np.zeros(count, np.uint64)
    for start in range(min(ngram, len(hashes))):
        combined = combined * _MULTIPLIER + hashes[start : start + count]
    return np.unique((combined * _MULTIPLIER) >> np.uint64(32)).astype(np.uint32)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


@functools.cache
def _min_hash(threshold: float) -> tuple[Any, int, int]:
    """An empty signature, the number of LSH bands for a threshold, and of hash values in each."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise UserError(
            "--deduplicate=near needs the package datasketch: pip install 'cocolm-tf[near]'."
        ) from error
    try:
        index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    except ValueError as error:
        raise UserError(f"--deduplicate_threshold={threshold}: {error}.") from error
    # N-grams are added as hashes.
    return MinHash(num_perm=_PERMUTATIONS, hashfunc=int), index.b, index.r

"""From documents to packed sequences: what one chunk of text becomes, in whatever process.

A part of a source, such as a file, is read in *chunks* of whole documents, about `CHUNK_BYTES` of
text each. `chunk_sequences` makes of one chunk everything that a dataset gets of it: which
documents are held out, which tokens are in which sequence, and the place of each sequence in which
shard. All of this depends only on the text, the recipe and the numbers of the part and the chunk,
so that chunks can be handled in any order, in any process, and again.
"""

import hashlib
import json
import operator
import os
import stat
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.data.cleaning import Cleaning
from cocolm_tf.data.shards import serialize
from cocolm_tf.data.sources import LONGEST_DOCUMENT, Source
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import cut_at_space

CHUNK_BYTES = 8 << 20
BREAKS = ("token", "word", "document")
TRAIN, VALIDATION = 0, 1
# The split and shard of counts that belong to no shard: of the documents that cleaning dropped.
NO_SHARD = (-1, -1)

# How much text is tokenized at once: enough to occupy TensorFlow, little enough for its memory.
_BATCH_BYTES = 1 << 20
# Files that are smaller are read together with those that follow.
_SMALL_BYTES = 1 << 20
_WORD_START = "▁"
# The golden ratio and the square root of two, without their integer parts, as shares of 2**64.
_IRRATIONAL = (0x9E3779B97F4A7C15, 0x6A09E667F3BCC909)
# A cache by fingerprint: a worker processes many chunks of one recipe.
_tokenizers: dict[str, "_Tokenizer"] = {}


@dataclass(frozen=True)
class Recipe:
    """Everything but the text that decides the sequences of a dataset; picklable."""

    vocabulary_dir: str
    vocabulary_fingerprint: str
    vocabulary_size: int
    sequence_length: int  # the most tokens of a record, `<s>` and `</s>` included
    num_shards: int  # of the training data
    seed: int = 0  # decides places, shards, and which documents are held out
    validation_fraction: float = 0.0  # the share of the documents to hold out
    # Where a sequence may end within a document: after any "token", or after a "word". "document"
    # is "word" with at most one document in a sequence.
    break_at: str = "word"
    cleaning: Cleaning | None = None

    @classmethod
    def of(cls, vocabulary_dir: str | os.PathLike[str], **fields: Any) -> "Recipe":
        """Loads the vocabulary and makes a recipe with the other fields."""
        tokenizer = _load(os.fspath(vocabulary_dir))
        return cls(
            os.fspath(vocabulary_dir), tokenizer.fingerprint, len(tokenizer.starts_word), **fields
        )

    def shards(self, split: int) -> int:
        """The number of shards of a split; the validation data's is proportionate."""
        if split == TRAIN:
            return self.num_shards
        return max(1, round(self.num_shards * self.validation_fraction))

    def split(self, document: str) -> int:
        """The split of a document, by its text alone: duplicates are always in the same one."""
        # White space does not count: each run of it is as one space.
        if not self.validation_fraction:
            return TRAIN
        text = " ".join(document.split()).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, digest_size=8, key=str(self.seed).encode()).digest()
        share = int.from_bytes(digest) / 2**64
        return VALIDATION if share < self.validation_fraction else TRAIN


@dataclass(frozen=True)
class Part:
    """A unit of reading: a file of the source, or several small ones in a row; picklable."""

    number: int  # from 0; decides the places of its sequences
    names: tuple[str, ...]  # of the source's parts
    bytes: int = 0  # of its files; 0 where unknown
    stamp: str = ""  # a hash of its files' names, sizes and modification times

    def documents(self, source: Source, counts: Counter[str]) -> Iterator[str]:
        """All its documents; see `Source.documents`."""
        for name in self.names:
            yield from source.documents(name, counts)


def parts_of(source: Source) -> list[Part]:
    """Groups the parts of a source such that few are much smaller than a chunk."""
    # The last sequence of every chunk is not full, which would show with one file per document.
    parts: list[Part] = []
    names: list[str] = []
    stamps: list[list[Any]] = []
    size = 0
    for name in source.parts:
        stamp = _stamp(name)
        names.append(name)
        stamps.append(stamp)
        size += stamp[1]
        if not stamp[1] or size >= _SMALL_BYTES or name == source.parts[-1]:
            digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
            parts.append(Part(len(parts), tuple(names), size, digest))
            names, stamps, size = [], [], 0
    return parts


class Record(NamedTuple):
    """A sequence and its place: records in ascending order are a dataset in its final order."""

    split: int
    shard: int
    key: int
    example: bytes


def chunks(documents: Iterable[str], size: int = CHUNK_BYTES) -> Iterator[list[str]]:
    """Groups documents into non-empty chunks, each of `size` bytes of text or just above."""
    chunk, total = [], 0
    for document in documents:
        for piece in cut_at_space(document, LONGEST_DOCUMENT):
            chunk.append(piece)
            total += text_size(piece)
            if total >= size:
                yield chunk
                chunk, total = [], 0
    if chunk:
        yield chunk


def chunk_sequences(
    recipe: Recipe,
    part: int,
    chunk: int,
    documents: Sequence[str],
    dropped: Collection[int] = (),
) -> tuple[list[Record], Counter[tuple[int, int, str]]]:
    """The sorted records of a chunk, and its counts by (split, shard, name), as in `Shard`."""
    # `documents` are a chunk of `chunks`; `dropped` are the indices of duplicates in it. Under
    # `NO_SHARD` are the counts of cleaning, and `duplicates`.
    counts: Counter[tuple[int, int, str]] = Counter()
    if dropped:
        dropped = frozenset(dropped)
        documents = [text for index, text in enumerate(documents) if index not in dropped]
        counts[*NO_SHARD, "duplicates"] = len(dropped)
    if recipe.cleaning is not None:
        documents, cleaned = recipe.cleaning(documents)
        counts.update({(*NO_SHARD, name): count for name, count in cleaned.items()})
    tokenizer = _load(recipe.vocabulary_dir, recipe.vocabulary_fingerprint)
    splits = [TRAIN, VALIDATION] if recipe.validation_fraction else [TRAIN]
    packed = {split: _Packed(recipe, tokenizer) for split in splits}
    for text, size, ids in tokenizer.tokenized(documents):
        packed[recipe.split(text)].add(ids, size)
    records = []
    for split, sequences in packed.items():
        records += sequences.records(split, (part, chunk), counts)
    return sorted(records), counts


class SequencePacker:
    """Packs a stream of documents into sequences `<s> content </s>`, as full as possible."""

    # Inside a sequence `</s>` separates documents, and a document that does not fit continues in
    # the next one, so that every token is in exactly one sequence, in order. (A `</s>` that would
    # fall on the last place for content is left out, and that sequence is one token short.)
    # `starts_word` says by id whether a word begins with it: a document is cut only there, unless
    # one word is longer than a sequence. None cuts anywhere. With `one_document`, no sequence has
    # two.

    def __init__(
        self,
        sequence_length: int,
        start_token_id: int,
        end_token_id: int,
        starts_word: Sequence[bool] | None = None,
        one_document: bool = False,
    ):
        self._start, self._end = [start_token_id], [end_token_id]
        self._full = sequence_length - 1  # What remains is for the last `</s>`.
        self._open = list(self._start)
        self._starts_word = starts_word
        self._one_document = one_document

    @property
    def is_open(self) -> bool:
        """Whether the sequence under way has content."""
        return len(self._open) > 1

    def add(self, document: Sequence[int]) -> list[list[int]]:
        """Adds a document's ids, without special tokens; returns the sequences that it filled."""
        filled = []
        if document and self.is_open:
            room = self._full - len(self._open) - 1  # After the `</s>` between the two.
            if room > 0 and not self._one_document and self._cut(document, 0, room):
                self._open += self._end
            else:
                filled += self.flush()
        position = 0
        while position < len(document):
            room = self._full - len(self._open)
            # A word that is longer than a sequence is cut where that is full.
            end = self._cut(document, position, room) or position + room
            self._open += document[position:end]
            position = end
            if position < len(document) or len(self._open) == self._full:
                filled += self.flush()
        return filled

    def flush(self) -> list[list[int]]:
        """Closes the sequence under way; returns it, or nothing if it has no content yet."""
        closed = [self._open + self._end] if self.is_open else []
        self._open = list(self._start)
        return closed

    def _cut(self, document: Sequence[int], position: int, room: int) -> int:
        """The position up to which the document fits into `room`; 0 if its next word does not."""
        end = position + room
        if end >= len(document):
            return len(document)
        if self._starts_word is None:
            return end
        while end > position and not self._starts_word[document[end]]:
            end -= 1
        return end if end > position else 0


class _Packed:
    """The sequences of one split of a chunk, and which documents end in them."""

    def __init__(self, recipe: Recipe, tokenizer: "_Tokenizer"):
        self._recipe = recipe
        self._packer = SequencePacker(
            recipe.sequence_length,
            tokenizer.start_token_id,
            tokenizer.end_token_id,
            None if recipe.break_at == "token" else tokenizer.starts_word,
            one_document=recipe.break_at == "document",
        )
        # Serialized, and their lengths: many lists would keep the garbage collector busy.
        self._examples: list[bytes] = []
        self._lengths: list[int] = []
        # Of each document: its last sequence, its bytes and its tokens.
        self._documents: list[tuple[int, int, int]] = []

    def add(self, ids: list[int], size: int) -> None:
        """Adds one document."""
        self._keep(self._packer.add(ids))
        last = len(self._examples) - (0 if self._packer.is_open else 1)
        self._documents.append((max(last, 0), size, len(ids)))

    def records(
        self, split: int, numbers: tuple[int, int], counts: Counter[tuple[int, int, str]]
    ) -> list[Record]:
        """Assigns a place to every sequence, and counts by shard."""
        self._keep(self._packer.flush())
        number, shards = len(self._examples), self._recipe.shards(split)
        # The bits of a generator, unlike what NumPy makes of them, are the same in every version.
        seed = np.random.SeedSequence([self._recipe.seed % 2**64, *numbers, split])
        bits = np.random.PCG64(seed).random_raw(2 * number)
        keys, order = bits[:number], np.argsort(bits[number:], kind="stable")
        # Dealt in turns and then mixed: each shard gets its even share of every chunk, and those
        # that get one more follow each other as multiples of irrational numbers, most evenly.
        first = sum(map(operator.mul, numbers, _IRRATIONAL)) % 2**64 * shards >> 64
        shard_of = ((first + np.arange(number)) % shards)[order]
        keys, shard_of = keys.tolist(), shard_of.tolist()
        for last, size, tokens in self._documents:
            shard = shard_of[last] if number else first
            counts[split, shard, "documents"] += 1
            counts[split, shard, "skipped_documents"] += not tokens
            counts[split, shard, "text_bytes"] += size
            counts[split, shard, "text_tokens"] += tokens
        for shard, length in zip(shard_of, self._lengths, strict=True):
            counts[split, shard, "sequences"] += 1
            counts[split, shard, "tokens"] += length
        return [
            Record(split, shard, key, example)
            for shard, key, example in zip(shard_of, keys, self._examples, strict=True)
        ]

    def _keep(self, sequences: list[list[int]]) -> None:
        self._examples += map(serialize, sequences)
        self._lengths += map(len, sequences)


class _Tokenizer:
    """The tokenizer of a vocabulary, as chunks need it."""

    def __init__(self, vocabulary_dir: str):
        # Slow to import, and only builds need it.
        from cocolm_tf.tokenization.vocabulary import load_vocabulary

        tokenizer = load_vocabulary(vocabulary_dir)
        self.fingerprint: str = tokenizer.fingerprint()
        self.start_token_id: int = tokenizer.start_token_id
        self.end_token_id: int = tokenizer.end_token_id
        self.starts_word = [token.startswith(_WORD_START) for token in tokenizer.get_vocabulary()]
        # Called eagerly, a KerasHub tokenizer gives lists and not a ragged tensor.
        self._tokenize = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])

    def tokenized(self, documents: Iterable[str]) -> Iterator[tuple[str, int, list[int]]]:
        """Yields each document with its bytes and its ids."""
        for batch in chunks(documents, _BATCH_BYTES):
            # Lone surrogates, which JSON can hold, become bytes that the tokenizer replaces.
            texts = [document.encode("utf-8", "surrogatepass") for document in batch]
            token_ids = self._tokenize(tf.constant(texts))
            # One conversion for the batch, and then slices: much faster than a tensor a document.
            flat = token_ids.flat_values.numpy().tolist()
            ends = token_ids.row_splits.numpy().tolist()
            for document, text, start, end in zip(batch, texts, ends[:-1], ends[1:], strict=True):
                yield document, len(text), flat[start:end]


def _load(vocabulary_dir: str, fingerprint: str = "") -> _Tokenizer:
    """The tokenizer of a folder; with a fingerprint, from the cache."""
    # A single look-up: threads share the cache, and another may clear it.
    if (loaded := _tokenizers.get(fingerprint)) is not None:
        return loaded
    tokenizer = _Tokenizer(vocabulary_dir)
    if fingerprint and tokenizer.fingerprint != fingerprint:
        raise UserError(f"the vocabulary {vocabulary_dir} has changed since the build began.")
    _tokenizers.clear()
    _tokenizers[tokenizer.fingerprint] = tokenizer
    return tokenizer


def text_size(text: str) -> int:
    """The bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _stamp(name: str) -> list[Any]:
    """A file's name, size and modification time; of what is no file, the name alone."""
    if files.is_remote(name):
        return [name, files.size(name), 0]
    if not os.path.exists(name):
        return [name, 0, 0]
    status = os.stat(name)
    # A pipe cannot be read again.
    is_file = stat.S_ISREG(status.st_mode)
    return [name, status.st_size, status.st_mtime_ns if is_file else uuid.uuid4().hex]

"""The files of a dataset: TFRecord shards, and `manifest.json`, which says what they hold.

A record is a `tf.train.Example` with one feature, `token_ids`: the ids of one sequence, special
tokens included, not padded. The manifest is written last, so that a folder without it is not a
dataset. Paths may be on any file system of `tf.io.gfile`.
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.errors import UserError

if TYPE_CHECKING:
    from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1
TEMPORARY_SUFFIX = ".tmp"
FEATURES = {"token_ids": tf.io.RaggedFeature(tf.int64)}
# The counts of a shard: fields of `Shard`.
COUNTS = ("documents", "skipped_documents", "text_bytes", "text_tokens", "sequences", "tokens")
# Attempts to read what may be unreadable for a moment; each wait is twice the one before.
ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0

_NAME = re.compile(r"data-\d{5,}-of-\d{5,}\.tfrecord(\.gz)?")
_BUILD_AGAIN = "build the dataset again"
_OR_SKIP = f"{_BUILD_AGAIN}, or leave out what cannot be read with data.skip_corrupt=true"

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard's entry in the manifest."""

    file: str  # name, without folder
    documents: int  # that end in it, and skipped ones that are counted here
    skipped_documents: int  # those without tokens
    text_bytes: int  # of the documents, in UTF-8
    text_tokens: int  # of the documents
    sequences: int  # the number of records
    tokens: int  # of the records, special ones included
    bytes: int  # of the file
    sha256: str  # of the file, in hexadecimal


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of one dataset.

    Args:
        directory: The folder of the dataset.
        sequence_length: The most tokens of a record, special tokens included.
        vocabulary_size: The number of ids of the vocabulary.
        vocabulary_fingerprint: The tokenizer's `fingerprint()`.
        parameters: What else made it: the seed, the compression, the source.
        shards: The shards, in the order of their numbers.
        cleaning: What was left out of the dataset or changed: how many bad records, duplicates,
            documents that were too short, and so on.

    Example:
    ```python
    manifest = Manifest.load("data")
    print(manifest.counts["sequences"], manifest.fill_rate)
    ```
    """

    directory: str
    sequence_length: int
    vocabulary_size: int
    vocabulary_fingerprint: str
    parameters: dict[str, Any]
    shards: tuple[Shard, ...]
    cleaning: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The sums over the shards of `documents`, `skipped_documents`, ..., `tokens`."""
        return {name: sum(getattr(shard, name) for shard in self.shards) for name in COUNTS}

    @property
    def fill_rate(self) -> float:
        """The share of a batch, padded to `sequence_length`, that is not padding."""
        counts = self.counts
        return counts["tokens"] / (counts["sequences"] * self.sequence_length)

    @property
    def is_shuffled(self) -> bool:
        """Whether neighbors in a shard are of different texts; earlier versions kept the order."""
        return "break" in self.parameters

    @property
    def replacements(self) -> dict[str, Any] | None:
        """How replacements of masked tokens were drawn beforehand; None where they were not."""
        return self.parameters.get("replacements")

    @property
    def paths(self) -> list[str]:
        """The paths of the shards, in the order of their numbers."""
        return [os.path.join(self.directory, shard.file) for shard in self.shards]

    def select(self, paths: Sequence[str]) -> list[Shard]:
        """The entries of some of the shards, by their paths."""
        shards = {shard.file: shard for shard in self.shards}
        return [shards[os.path.basename(path)] for path in paths]

    def fingerprint(self, paths: Sequence[str] | None = None) -> str:
        """SHA-256 of the content of the dataset, or of some of its shards, wherever it lies."""
        shards = self.shards if paths is None else self.select(paths)
        content = [self.vocabulary_fingerprint, *(shard.sha256 for shard in shards)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @classmethod
    def load(cls, path: str) -> "Manifest":
        """Reads the manifest of a dataset.

        Args:
            path: The folder of the dataset, or a path or glob of shards in it.

        Raises:
            UserError: If there is no manifest, or this version cannot read it.
        """
        directory = path if files.is_dir(path) else os.path.dirname(path)
        file = os.path.join(directory, FILE_NAME)
        if not files.exists(file):
            raise UserError(f"{file} does not exist: {directory or '.'!r} is not a built dataset.")
        try:
            fields = json.loads(with_retries(file, lambda: files.read_text(file)))
            version = fields["format_version"]
            if version != FORMAT_VERSION:
                raise UserError(f"{file} has format version {version}, not {FORMAT_VERSION}.")
            return cls(
                directory,
                fields["sequence_length"],
                fields["vocabulary"]["size"],
                fields["vocabulary"]["fingerprint"],
                fields["parameters"],
                tuple(Shard(**shard) for shard in fields["shards"]),
                fields.get("cleaning", {}),  # Earlier versions had none.
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}): {_BUILD_AGAIN}.") from error

    def save(self) -> None:
        """Writes the manifest into its folder, in one atomic step."""
        fields = {
            "format_version": FORMAT_VERSION,
            "sequence_length": self.sequence_length,
            "counts": self.counts,
            "vocabulary": {
                "size": self.vocabulary_size,
                "fingerprint": self.vocabulary_fingerprint,
            },
            "parameters": self.parameters,
            "cleaning": self.cleaning,
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }
        file = os.path.join(self.directory, FILE_NAME)
        files.write_text(file, json.dumps(fields, indent=2) + "\n")

    def verify(
        self,
        tokenizer: "CocoLMTokenizer | None" = None,
        checksums: bool = True,
        paths: Sequence[str] | None = None,
        skip_corrupt: bool = False,
    ) -> list[int]:
        """Checks that the dataset is complete and fits the vocabulary.

        Args:
            tokenizer: The tokenizer to train with; None to leave it unchecked.
            checksums: Whether to read every shard instead of comparing its size alone.
            paths: The shards to check; None for all.
            skip_corrupt: Whether a missing, truncated or corrupt shard is reported instead of
                refused.

        Returns:
            How many sequences of each shard can be read, from its first on.

        Raises:
            UserError: If a shard is missing, truncated or altered (with the number of the first
                record that cannot be read), or the vocabulary is another one.
        """
        if tokenizer is not None and tokenizer.fingerprint() != self.vocabulary_fingerprint:
            raise UserError(
                f"{self.directory} was built with another vocabulary, of {self.vocabulary_size} "
                f"ids and fingerprint {self.vocabulary_fingerprint[:12]}, than the one given, of "
                f"{tokenizer.vocabulary_size()} and {tokenizer.fingerprint()[:12]}: give that "
                f"--vocabulary or {_BUILD_AGAIN}."
            )
        paths = self.paths if paths is None else paths
        sequences = []
        for path, shard in zip(paths, self.select(paths), strict=True):
            damage, readable = with_retries(path, lambda: _damage(path, shard, checksums))  # noqa: B023
            # Without a number of readable sequences, it is another shard, of unknown origin.
            if damage and readable is not None and skip_corrupt:
                left_out = shard.sequences - readable
                print(f"{path} {damage}: {left_out} sequences left out.", file=sys.stderr)
            elif damage:
                advice = _BUILD_AGAIN if readable is None else _OR_SKIP
                raise UserError(f"{path} {damage}: {advice}.")
            sequences.append(readable)
        return sequences


def resolve_shards(pattern: str) -> tuple[list[str], Manifest]:
    """The sorted paths of shards, by dataset folder or glob, and the manifest beside them."""
    if files.is_dir(pattern):
        trained = os.path.join(pattern, "train")
        if not _has_manifest(pattern) and _has_manifest(trained):
            raise UserError(f"{pattern} has its datasets one level below: give {trained}.")
        manifest = Manifest.load(pattern)
        return manifest.paths, manifest
    # A shard's path may have a glob's special characters.
    found = [pattern] if files.exists(pattern) else files.glob(pattern)
    paths = sorted(filter(is_shard, found))
    if not paths:
        raise UserError(
            f"no shard matches {pattern!r}: give a folder that build_pretraining_data.py wrote, or "
            "a glob of its *.tfrecord files."
        )
    directories = sorted({os.path.dirname(path) for path in paths})
    if len(directories) > 1:
        raise UserError(f"{pattern!r} matches shards of several datasets: {directories}.")
    manifest = Manifest.load(paths[0])
    listed = {shard.file for shard in manifest.shards}
    for path in paths:
        if os.path.basename(path) not in listed:
            raise UserError(f"{path} is not a shard of the {FILE_NAME} beside it: remove it.")
    return paths, manifest


def _has_manifest(directory: str) -> bool:
    return files.exists(os.path.join(directory, FILE_NAME))


def _damage(path: str, shard: Shard, checksums: bool) -> tuple[str, int | None]:
    """What is wrong with a shard, and how many of its sequences are readable; None if not its."""
    if not files.exists(path):
        return f"is missing, though {FILE_NAME} beside it lists it", 0
    if files.size(path) == shard.bytes and (not checksums or sha256_of(path) == shard.sha256):
        return "", shard.sequences
    records, whole = readable_records(path)
    if not whole:
        damage = f"is truncated or corrupt at record {records} (of {shard.sequences}, from 0)"
        return damage, min(records, shard.sequences)
    if records != shard.sequences:
        return f"has {records} records and not the {shard.sequences} of {FILE_NAME}", None
    return f"was altered: its checksum is not the one in {FILE_NAME}", None


# --- Shards ---


def shard_name(index: int, count: int, compress: bool = False) -> str:
    """The file name of shard `index` (from 0) of `count`: data-00003-of-00016.tfrecord."""
    return f"data-{index:05d}-of-{count:05d}.tfrecord{'.gz' if compress else ''}"


def is_shard(path: str) -> bool:
    """Whether a file has a shard's name."""
    return _NAME.fullmatch(os.path.basename(path)) is not None


def compression(path: str) -> str:
    """The compression of a shard, final or temporary, as `tf.data.TFRecordDataset` names it."""
    return "GZIP" if path.removesuffix(TEMPORARY_SUFFIX).endswith(".gz") else ""


def serialize(token_ids: Sequence[int], **features: Sequence[int]) -> bytes:
    """Serializes the ids of one sequence, and other features of it, into a record."""
    example = tf.train.Example()
    # In place: constructing the messages from the inside out copies them, and takes twice as long.
    for name, values in {"token_ids": token_ids, **features}.items():
        example.features.feature[name].int64_list.value.extend(values)
    return example.SerializeToString()


def parse(serialized: tf.Tensor, sequence_length: int, pad_token_id: int = 1) -> tf.Tensor:
    """Parses records [B] into [B, S] int32, padded; fails for records longer than S."""
    token_ids = tf.io.parse_example(serialized, FEATURES)["token_ids"]
    # Without this check, `to_tensor` would silently cut off what is too long.
    longest = tf.debugging.assert_less_equal(
        token_ids.row_lengths(),
        sequence_length,
        message=f"A record is longer than sequence_length={sequence_length}.",
    )
    with tf.control_dependencies([longest] if longest is not None else []):
        token_ids = token_ids.with_flat_values(tf.cast(token_ids.flat_values, tf.int32))
        return token_ids.to_tensor(pad_token_id, shape=[None, sequence_length])


def readable_records(path: str) -> tuple[int, bool]:
    """Counts the records up to the end or the first corrupt one; and whether these are all."""
    count = 0
    try:
        for _ in tf.data.TFRecordDataset(path, compression_type=compression(path)):
            count += 1
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
        return count, False
    return count, True


def sha256_of(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with files.open_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(path: str, examples: Iterable[bytes], scratch: str) -> tuple[int, str]:
    """Writes a shard as `path` + `TEMPORARY_SUFFIX`; returns its size in bytes and its SHA-256."""
    # A shard of a remote folder is written in the local folder `scratch` and then copied.
    target = path + TEMPORARY_SUFFIX
    local = target
    if files.is_remote(path):
        local = os.path.join(scratch, os.path.basename(target))
    options = tf.io.TFRecordOptions(compression_type=compression(path))
    with tf.io.TFRecordWriter(local, options) as writer:
        for example in examples:
            writer.write(example)
    described = files.size(local), sha256_of(local)
    if local != target:
        files.copy(local, target)
        os.remove(local)
    return described


# --- Stores and networks that fail for a moment ---


def with_retries(path: str, read: Callable[[], _Result]) -> _Result:
    """Calls `read`, again after growing waits while `path` cannot be read; then UserError."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return read()
        except (OSError, tf.errors.OpError) as error:
            if attempt == ATTEMPTS:
                raise UserError(f"{path} cannot be read: {read_error(error)}.") from error
            seconds = FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            print(f"{path} cannot be read; trying again in {seconds:g} s.", file=sys.stderr)
            time.sleep(seconds)


def read_error(error: Exception) -> str:
    """What TensorFlow or Python says of a failed attempt to read, in one line."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    # TensorFlow adds the names of the function and the operation that failed.
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", " ".join(text.split()))
    return text.strip().rstrip(".")

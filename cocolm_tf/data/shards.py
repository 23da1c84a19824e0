"""The TFRecord files of a dataset: how they are named, written and parsed.

A record is a `tf.train.Example` with one feature, `token_ids`: the ids of one sequence, special
tokens included, not padded. Paths may be on any file system that `tf.io.gfile` knows.
"""

import array
import hashlib
import os
import re
import resource
import tempfile
from dataclasses import dataclass
from typing import BinaryIO

import tensorflow as tf

FEATURES = {"token_ids": tf.io.RaggedFeature(tf.int64)}
TEMPORARY_SUFFIX = ".tmp"

_NAME = re.compile(r"data-\d{5,}-of-\d{5,}\.tfrecord(\.gz)?")


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard.

    Args:
        file: The file's name, without folder.
        documents: How many documents were dealt to it, the skipped ones included.
        skipped_documents: How many of them had no tokens.
        text_bytes: The length of the documents, in bytes of UTF-8.
        text_tokens: The tokens of the documents.
        sequences: The number of records.
        tokens: The ids in the records: the text's and the special tokens.
        bytes: The size of the file.
        sha256: The hash of the file, in hexadecimal.

    Example:
    ```python
    Shard("data-00000-of-00001.tfrecord", 9, 0, 4000, 800, 7, 822, 2200, sha256=64 * "0")
    ```
    """

    file: str
    documents: int
    skipped_documents: int
    text_bytes: int
    text_tokens: int
    sequences: int
    tokens: int
    bytes: int
    sha256: str


def shard_name(index: int, count: int, compress: bool = False) -> str:
    """Returns the file name of one shard of a dataset.

    Args:
        index: Which shard, from 0.
        count: How many shards the dataset has.
        compress: Whether the shard is compressed with gzip.

    Returns:
        The name.

    Example:
    ```python
    shard_name(3, 16)  # 'data-00003-of-00016.tfrecord'
    ```
    """
    return f"data-{index:05d}-of-{count:05d}.tfrecord{'.gz' if compress else ''}"


def is_shard(path: str) -> bool:
    """Tells a shard from any other file by its name.

    Args:
        path: The path of a file.

    Returns:
        Whether its name is one that `shard_name` gives.

    Example:
    ```python
    is_shard("data/manifest.json")  # False
    ```
    """
    return _NAME.fullmatch(os.path.basename(path)) is not None


def compression(path: str) -> str:
    """Returns how a shard is compressed, as `tf.data.TFRecordDataset` takes it.

    Args:
        path: The path of a shard, final or temporary.

    Returns:
        `"GZIP"`, or the empty string for none.

    Example:
    ```python
    compression("data/data-00000-of-00016.tfrecord.gz")  # 'GZIP'
    ```
    """
    return "GZIP" if path.removesuffix(TEMPORARY_SUFFIX).endswith(".gz") else ""


def serialize(token_ids: list[int]) -> bytes:
    """Makes one record, which `parse` reads.

    Args:
        token_ids: The ids of one sequence.

    Returns:
        The serialized `tf.train.Example`.

    Example:
    ```python
    parse([serialize([0, 7, 2])], sequence_length=5)  # [[0, 7, 2, 1, 1]]
    ```
    """
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=token_ids))
    features = tf.train.Features(feature={"token_ids": feature})
    return tf.train.Example(features=features).SerializeToString()


def parse(serialized: tf.Tensor, sequence_length: int, pad_token_id: int = 1) -> tf.Tensor:
    """Parses a batch of records; for `tf.data.Dataset.map` after `batch`.

    Args:
        serialized: [B] string, the records.
        sequence_length: S, the length to pad to.
        pad_token_id: The id to pad with.

    Returns:
        [B, S] int32, the token ids.

    Raises:
        tf.errors.InvalidArgumentError: If a record is no such example or longer than S.

    Example:
    ```python
    dataset = tf.data.TFRecordDataset("data/data-00000-of-00016.tfrecord").batch(32)
    dataset = dataset.map(lambda records: parse(records, sequence_length=512))
    ```
    """
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
    """Reads a shard up to its end or its first corrupt record.

    Args:
        path: The shard.

    Returns:
        How many records could be read, and whether these are all.

    Example:
    ```python
    readable_records("data/data-00000-of-00016.tfrecord")  # (128, True)
    ```
    """
    count = 0
    try:
        for _ in tf.data.TFRecordDataset(path, compression_type=compression(path)):
            count += 1
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
        return count, False
    return count, True


def sha256_of(path: str) -> str:
    """Hashes a file.

    Args:
        path: The file.

    Returns:
        Its SHA-256, in hexadecimal.

    Example:
    ```python
    sha256_of("data/data-00000-of-00016.tfrecord")
    ```
    """
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class OpenFiles:
    """How many shards a process may have open, and where the records of the others wait.

    A process may have a few hundred files open at most, often 256; a dataset may have more shards.
    The records of those beyond go to one temporary file until their shards' turn comes.

    Args:
        limit: How many; None for half of what the system allows.

    Example:
    ```python
    writers = [ShardWriter(path, 128, 0, 2, files) for files in [OpenFiles()] for path in paths]
    ```
    """

    def __init__(self, limit: int | None = None):
        if limit is None:
            limit = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._left = limit
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        """Whether one more shard may be open, which then counts."""
        self._left -= 1
        return self._left >= 0

    def keep(self, path: str, record: bytes) -> tuple[int, int]:
        """Keeps a record of a shard that is not open; returns what `get` takes."""
        if self._file is None:
            folder = None if "://" in path else os.path.dirname(path)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 Closed with the process.
        self._file.seek(0, os.SEEK_END)
        start = self._file.tell()
        self._file.write(record)
        return start, len(record)

    def get(self, start: int, length: int) -> bytes:
        """Gives a record back."""
        self._file.seek(start)
        return self._file.read(length)


class ShardWriter:
    """Packs documents into sequences and writes them to one shard.

    It writes to the shard's name followed by `TEMPORARY_SUFFIX`: whoever builds the dataset
    renames its shards when all of them are complete.

    Args:
        path: The final path of the shard; its folder exists.
        sequence_length: The most tokens of a record.
        start_token_id: The id of `<s>`.
        end_token_id: The id of `</s>`.
        open_files: Shared by the shards that are written at the same time; None for this one alone.

    Example:
    ```python
    writer = ShardWriter("/tmp/data-00000-of-00001.tfrecord", 128, 0, 2)
    writer.add([11, 12, 13], text_bytes=21)
    shard = writer.close()
    ```
    """

    def __init__(
        self,
        path: str,
        sequence_length: int,
        start_token_id: int,
        end_token_id: int,
        open_files: OpenFiles | None = None,
    ):
        from cocolm_tf.data.packing import SequencePacker

        self._path = path
        self._packer = SequencePacker(sequence_length, start_token_id, end_token_id)
        self._open_files = open_files or OpenFiles(1)
        self._writer = self._open() if self._open_files.take() else None
        # Where its records wait, two numbers each.
        self._waiting = array.array("Q")
        self._documents = self._skipped_documents = self._text_bytes = self._text_tokens = 0
        self._sequences = self._tokens = 0

    def add(self, token_ids: list[int], text_bytes: int) -> None:
        """Adds one document.

        Args:
            token_ids: Its token ids, without special tokens; a document without any is skipped.
            text_bytes: Its length in bytes of UTF-8.
        """
        self._documents += 1
        self._skipped_documents += not token_ids
        self._text_bytes += text_bytes
        self._text_tokens += len(token_ids)
        self._write(self._packer.add(token_ids))

    def close(self) -> Shard:
        """Writes the last sequence and closes the file.

        Returns:
            What the manifest is to say of the shard.
        """
        self._write(self._packer.flush())
        if self._writer is None:
            self._writer = self._open()
            for start, length in zip(self._waiting[::2], self._waiting[1::2], strict=True):
                self._writer.write(self._open_files.get(start, length))
        self._writer.close()
        written = self._path + TEMPORARY_SUFFIX
        return Shard(
            file=os.path.basename(self._path),
            documents=self._documents,
            skipped_documents=self._skipped_documents,
            text_bytes=self._text_bytes,
            text_tokens=self._text_tokens,
            sequences=self._sequences,
            tokens=self._tokens,
            bytes=tf.io.gfile.stat(written).length,
            sha256=sha256_of(written),
        )

    def _open(self) -> tf.io.TFRecordWriter:
        options = tf.io.TFRecordOptions(compression_type=compression(self._path))
        return tf.io.TFRecordWriter(self._path + TEMPORARY_SUFFIX, options)

    def _write(self, sequences: list[list[int]]) -> None:
        for sequence in sequences:
            record = serialize(sequence)
            if self._writer is None:
                self._waiting.extend(self._open_files.keep(self._path, record))
            else:
                self._writer.write(record)
            self._sequences += 1
            self._tokens += len(sequence)

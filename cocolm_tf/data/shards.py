"""The TFRecord files of a dataset: how they are named, written and parsed.

A record is a `tf.train.Example` with one feature, `token_ids`: the ids of one sequence, special
tokens included, not padded. Paths may be on any file system that `tf.io.gfile` knows.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

import tensorflow as tf

from cocolm_tf import files

FEATURES = {"token_ids": tf.io.RaggedFeature(tf.int64)}
TEMPORARY_SUFFIX = ".tmp"
# What is counted for each shard: fields of `Shard`.
COUNTS = ("documents", "skipped_documents", "text_bytes", "text_tokens", "sequences", "tokens")

_NAME = re.compile(r"data-\d{5,}-of-\d{5,}\.tfrecord(\.gz)?")


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard.

    Args:
        file: The file's name, without folder.
        documents: How many documents end in it, and skipped ones that are counted here.
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
    example = tf.train.Example()
    # In place: made from the inside out, the messages are copied, and it takes twice as long.
    example.features.feature["token_ids"].int64_list.value.extend(token_ids)
    return example.SerializeToString()


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
    with files.open_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(path: str, examples: Iterable[bytes], scratch: str) -> tuple[int, str]:
    """Writes a shard under a temporary name, which `path` and `TEMPORARY_SUFFIX` make.

    Args:
        path: The final path of the shard; its folder exists.
        examples: Its records.
        scratch: A local folder, where a shard of a remote folder is written before it is copied.

    Returns:
        Its size in bytes and its SHA-256, in hexadecimal.

    Example:
    ```python
    write_shard("/tmp/data-00000-of-00001.tfrecord", [serialize([0, 7, 2])], scratch="/tmp")
    ```
    """
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

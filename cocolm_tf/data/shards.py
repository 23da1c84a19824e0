"""The TFRecord files of a dataset: how they are named, written and parsed.

A record is a `tf.train.Example` with one feature, `token_ids`: the ids of one sequence, special
tokens included, not padded. Paths may be on any file system of `tf.io.gfile`.
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
# The counts of a shard: fields of `Shard`.
COUNTS = ("documents", "skipped_documents", "text_bytes", "text_tokens", "sequences", "tokens")

_NAME = re.compile(r"data-\d{5,}-of-\d{5,}\.tfrecord(\.gz)?")


@dataclass(frozen=True)
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


def shard_name(index: int, count: int, compress: bool = False) -> str:
    """The file name of shard `index` (from 0) of `count`: data-00003-of-00016.tfrecord."""
    return f"data-{index:05d}-of-{count:05d}.tfrecord{'.gz' if compress else ''}"


def is_shard(path: str) -> bool:
    """Whether a file has a shard's name."""
    return _NAME.fullmatch(os.path.basename(path)) is not None


def compression(path: str) -> str:
    """The compression of a shard, final or temporary, as `tf.data.TFRecordDataset` names it."""
    return "GZIP" if path.removesuffix(TEMPORARY_SUFFIX).endswith(".gz") else ""


def serialize(token_ids: list[int]) -> bytes:
    """Serializes the ids of one sequence into a record, which `parse` reads."""
    example = tf.train.Example()
    # In place: constructing the messages from the inside out copies them, and takes twice as long.
    example.features.feature["token_ids"].int64_list.value.extend(token_ids)
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

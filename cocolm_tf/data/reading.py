"""Reading shards in a fixed order, and once more where a file cannot be read at once.

Object stores and network file systems fail now and then, and a run of days meets such a moment.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import tensorflow as tf

from cocolm_tf.data.shards import readable_records
from cocolm_tf.errors import UserError

ATTEMPTS = 6
# Before the second attempt; each wait is twice the one before.
FIRST_WAIT_SECONDS = 1.0
_READERS = 4
_CHUNK = 4096
# The bytes that TFRecord puts around a record: its length and two checksums.
_FRAME = 16
_BUFFER = 256 * 1024

_Result = TypeVar("_Result")


def read_records(
    paths: tf.Tensor, counts: tf.Tensor, compression_type: str = ""
) -> tf.data.Dataset:
    """The records of several shards, taken in turns from a few of them at a time.

    A shard that cannot be read is tried again after a while, from where its reading broke off.
    What is read does not depend on whether that happened.

    Args:
        paths: [K] string, the shards.
        counts: [K] int64, how many records each is to give: its first ones.
        compression_type: of all of them, as `tf.data.TFRecordDataset` takes it.

    Returns:
        A dataset of serialized records. Its iterator ends in an error of which `read_errors_told`
        makes a `UserError` if a shard does not give what it should.

    Example:
    ```python
    read_records(tf.constant(["data/data-00000-of-00001.tfrecord"]), tf.constant([128], tf.int64))
    ```
    """

    def of_shard(path: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        def next_chunk(
            state: tuple[tf.Tensor, tf.Tensor, tf.Tensor], attempt: tf.Tensor
        ) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
            offset, given, succeeded = state
            failures = attempt - succeeded - 1
            ready = tf.cond(
                failures > 0,
                lambda: tf.py_function(_wait, [path, failures], tf.int64),
                lambda: failures,
            )
            with tf.control_dependencies([ready]):
                rest = _records_from(tf.identity(path), offset, given, compression_type)
            chunk = rest.take(tf.minimum(count - given, _CHUNK)).batch(_CHUNK).get_single_element()
            size = tf.reduce_sum(tf.strings.length(chunk) + _FRAME)
            read = tf.shape(chunk, tf.int64)[0]
            return (offset + tf.cast(size, tf.int64), given + read, attempt), chunk

        # Where reading fails, the state stays as it is, and the next attempt is at the same chunk.
        attempts = tf.data.Dataset.range(-(-count // _CHUNK) + ATTEMPTS - 1)
        start = tuple(tf.constant(value, tf.int64) for value in (0, 0, -1))
        chunks = attempts.scan(start, next_chunk).ignore_errors()
        records = chunks.flat_map(tf.data.Dataset.from_tensor_slices)
        # Reached only if the attempts have not given all.
        failure = tf.data.Dataset.from_tensors(path).map(
            lambda path: tf.ensure_shape(tf.py_function(_give_up, [path], tf.string), [])
        )
        return records.concatenate(failure).take(count)

    return tf.data.Dataset.from_tensor_slices((paths, counts)).interleave(
        of_shard, cycle_length=_READERS, num_parallel_calls=_READERS, deterministic=True
    )


@contextlib.contextmanager
def read_errors_told() -> Iterator[None]:
    """Makes a `UserError` of the error that an iterator over `read_records` ends in.

    Raises:
        UserError: naming the shard and the record that cannot be read.

    Example:
    ```python
    with read_errors_told():
        pretrainer.fit(batches)
    ```
    """
    try:
        yield
    except tf.errors.OpError as error:
        _, found, message = error.message.partition(f"{UserError.__name__}: ")
        if not found:
            raise
        raise UserError(message.splitlines()[0]) from error


def patiently(path: str, read: Callable[[], _Result]) -> _Result:
    """Calls what reads a file, and again after a while where it cannot be read.

    Args:
        path: the file, for the messages.
        read: what to call.

    Returns:
        What `read` returns.

    Raises:
        UserError: if it fails every time.

    Example:
    ```python
    patiently("data/manifest.json", lambda: open("data/manifest.json").read())
    ```
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except (OSError, tf.errors.OpError):
            _wait(path, attempt)
    try:
        return read()
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from error


def _records_from(
    path: tf.Tensor, offset: tf.Tensor, given: tf.Tensor, compression_type: str
) -> tf.data.Dataset:
    """What follows the given records, which are the first bytes, too."""
    if compression_type:
        return tf.data.TFRecordDataset(path, compression_type).skip(given)
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=_BUFFER, byte_offsets=[offset]
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def _wait(path: tf.Tensor | str, attempts: tf.Tensor | int) -> int:
    seconds = FIRST_WAIT_SECONDS * 2 ** (int(attempts) - 1)
    print(f"{_text(path)} cannot be read; trying again in {seconds:g} s.", file=sys.stderr)
    time.sleep(seconds)
    return int(attempts)


def _give_up(path: tf.Tensor) -> tf.Tensor:
    name = _text(path)
    try:
        records, whole = readable_records(name)
    except tf.errors.OpError as error:
        raise UserError(f"{name} cannot be read: {_reason(error)}.") from error
    if whole:
        raise UserError(f"{name} could not be read to its end in {ATTEMPTS} attempts.")
    raise UserError(
        f"{name} is truncated or corrupt at record {records} (from 0): build the dataset again, or "
        "leave out what cannot be read with data.skip_corrupt=true."
    )


def _text(path: tf.Tensor | str) -> str:
    return path if isinstance(path, str) else path.numpy().decode()


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return " ".join(text.split()).rstrip(".")

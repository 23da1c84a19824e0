"""Reading shards in an order that is shuffled anew in every epoch and can be resumed anywhere.

An epoch permutes the shards and reads `SHARDS_AT_ONCE` of them in turns, a chunk of each at a time;
`WINDOW` consecutive chunks are a window, whose records are then shuffled. As the number of records
of each shard is known, so is where each window begins: a resumed run skips what lies before in the
few shards that it was reading, without parsing it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cocolm_tf.data.shards import compression, read_error, readable_records
from cocolm_tf.errors import RestartableError, UserError

SHARDS_AT_ONCE = 8
# Records of a shard that are read in a row, and chunks that are shuffled together.
CHUNK = 128
WINDOW = 64

_ENDLESS = 2**62
_TOO_FEW = " has too few records"
# Errors of a store or a network that may be transient.
_TRANSIENT = (
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


class ReadingOrder(NamedTuple):
    """The order in which the records of some shards are read, epoch after epoch."""

    paths: Sequence[str]
    counts: Sequence[int]  # how many records each gives: its first ones
    per_record: int = 1  # sequences that each record is made into; each is one place
    seed: int = 0  # decides the order, with the number of the epoch
    reader: int = 0  # which of several readers this is, so that no two shuffle alike

    def windows(self, start: int = 0, endless: bool = True) -> tf.data.Dataset:
        """The windows from sequence number `start` on, counted through all epochs."""
        # Elements are `seed`, [2] int32, for shuffling the window's sequences; `skip`, int64, how
        # many of them lie before `start`; and `records`, [N] string. `explain_read_errors` is for
        # its iterator.
        first = self._first(start)
        end = _ENDLESS if endless else self._groups
        groups = tf.data.Dataset.range(first.group, end)
        return groups.flat_map(lambda group: self._windows_of(group, first))

    def paths_from(self, start: int) -> list[str]:
        """All shards, beginning with those that sequence number `start` is read from."""
        group = self._first(start).group
        order = self._epoch(group // self._groups).numpy().tolist()
        begin = group % self._groups * SHARDS_AT_ONCE
        return [self.paths[index] for index in order[begin:] + order[:begin]]

    @property
    def _groups(self) -> int:
        """The number of groups of shards in an epoch."""
        return -(-len(self.paths) // SHARDS_AT_ONCE)

    def _epoch(self, number: tf.Tensor | int) -> tf.Tensor:
        """The shards' order in an epoch."""
        place = [self.seed, tf.cast(number, tf.int32)]
        return tf.random.experimental.stateless_shuffle(tf.range(len(self.paths)), place)

    def _first(self, start: int) -> "_Place":
        """The window that a sequence is in."""
        epoch, before = divmod(start, sum(self.counts) * self.per_record)
        order = self._epoch(epoch).numpy()
        counts = np.asarray(self.counts, np.int64)[order]
        begins = range(0, len(counts), SHARDS_AT_ONCE)
        ends = np.add.reduceat(counts, begins).cumsum() * self.per_record
        group = int(np.searchsorted(ends, before, side="right"))
        before -= int(ends[group - 1]) if group else 0
        members = counts[group * SHARDS_AT_ONCE :][:SHARDS_AT_ONCE]
        # By round and shard: the order in which chunks are read, but for the empty ones.
        rounds = np.arange(-(-members.max() // CHUNK))[:, np.newaxis]
        chunks = np.clip(members - CHUNK * rounds, 0, CHUNK).ravel()
        turns = np.flatnonzero(chunks)
        sizes = np.add.reduceat(chunks[turns], range(0, len(turns), WINDOW)) * self.per_record
        ends = sizes.cumsum()
        window = int(np.searchsorted(ends, before, side="right"))
        read = turns[: window * WINDOW] % len(members)
        skips = np.minimum(CHUNK * np.bincount(read, minlength=len(members)), members)
        return _Place(
            epoch * self._groups + group,
            skips,
            int(turns[window * WINDOW]) % len(members),
            window,
            before - int(ends[window] - sizes[window]),
        )

    def _windows_of(self, group: tf.Tensor, first: "_Place") -> tf.data.Dataset:
        """The windows of a group, counted through all epochs; of the first group, the rest."""
        is_first = tf.equal(group, first.group)
        begin = tf.cast(group % self._groups, tf.int32) * SHARDS_AT_ONCE
        which = self._epoch(group // self._groups)[begin : begin + SHARDS_AT_ONCE]
        skips = tf.cond(
            is_first,
            lambda: tf.constant(first.skips, tf.int64),
            lambda: tf.zeros_like(which, tf.int64),
        )
        seed = [self.seed, self.reader]
        seed = tf.random.experimental.stateless_fold_in(seed, group)
        paths, counts = tf.constant(self.paths), tf.constant(self.counts, tf.int64)
        shards = (tf.gather(paths, which), tf.gather(counts, which), skips)
        turn = tf.where(is_first, first.turn, 0)
        chunks = tf.data.Dataset.from_tensor_slices(
            tuple(tf.roll(values, -turn, axis=0) for values in shards)
        ).interleave(
            lambda path, count, skip: self._chunks(path, count, skip),
            cycle_length=SHARDS_AT_ONCE,
            num_parallel_calls=SHARDS_AT_ONCE,
            deterministic=True,
        )
        window = tf.where(is_first, tf.constant(first.window, tf.int64), 0)

        def numbered(
            number: tf.Tensor, records: tf.RaggedTensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            is_entered = is_first & tf.equal(number, window)
            skip = tf.where(is_entered, tf.constant(first.sequences, tf.int64), 0)
            return (
                tf.random.experimental.stateless_fold_in(seed, number),
                skip,
                records.flat_values,
            )

        return chunks.ragged_batch(WINDOW).enumerate(window).map(numbered)

    def _chunks(self, path: tf.Tensor, count: tf.Tensor, skip: tf.Tensor) -> tf.data.Dataset:
        """The records of a shard from `skip` to `count`; each file is opened once."""
        records = tf.data.TFRecordDataset(path, compression(self.paths[0])).skip(skip)
        # Reached only if there are too few: a truncated compressed file ends without an error.
        missing = tf.data.Dataset.from_tensors(path).map(_too_few_records)
        return records.concatenate(missing).take(count - skip).batch(CHUNK)


class _Place(NamedTuple):
    """Where reading begins."""

    group: int  # of shards, counted through all epochs
    skips: np.ndarray  # records to skip of each of its shards
    turn: int  # the shard whose turn it is
    window: int  # within the group
    sequences: int  # of the window, to skip


@contextlib.contextmanager
def explain_read_errors(shards: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Explains errors of an iterator over shards: which shard, and which record."""
    # TensorFlow names the file of most errors, but not that of a damaged record: the shards that
    # `shards` gives, the likeliest first, are then read through, here and not in the graph. Raises
    # UserError for a shard that cannot be read, RestartableError where it can be read again by now.
    try:
        yield
    except tf.errors.OpError as error:
        named = [path for path in shards() if path in error.message]
        if not named and not isinstance(error, tf.errors.DataLossError):
            raise
        for path in named or shards():
            _diagnose(path, error)
        raise RestartableError(
            f"{named[0] if named else 'a shard'} could not be read ({read_error(error)}), but can "
            "be now: start again with the same flags to resume from the last checkpoint."
        ) from error


def _too_few_records(path: tf.Tensor) -> tf.Tensor:
    failure = tf.debugging.Assert(False, [tf.strings.join([path, _TOO_FEW])])
    with tf.control_dependencies([failure]):
        return tf.identity(path)


def _diagnose(path: str, error: tf.errors.OpError) -> None:
    """Raises what is wrong with a shard, if anything is by now."""
    try:
        records, whole = readable_records(path)
    except _TRANSIENT as again:
        raise RestartableError(
            f"{path} cannot be read at present ({read_error(again)}): start again with the same "
            "flags to resume from the last checkpoint."
        ) from error
    except tf.errors.OpError as again:
        raise UserError(f"{path} cannot be read: {read_error(again)}.") from error
    if not whole:
        raise UserError(
            f"{path} is truncated or corrupt at record {records} (from 0): build the dataset "
            "again, or leave out what cannot be read with data.skip_corrupt=true."
        ) from error
    if path + _TOO_FEW in error.message:
        raise UserError(
            f"{path} ends after {records} records, before the last one that the manifest beside it "
            "lists: build the dataset again, or leave out what is missing with "
            "data.skip_corrupt=true."
        ) from error

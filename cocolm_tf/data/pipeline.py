"""Shards to batches: what the training step reads, in an order that can be entered anywhere.

An epoch visits every sequence once. Its shards are shuffled and taken a group at a time, and the
sequences of a group are shuffled together, up to `SHUFFLE_WINDOW` at a time. As the manifest tells
how many sequences each shard has, a run that is resumed goes straight to the group it was in: this
costs the reading of one group, not of the epoch.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from cocolm_tf.data.manifest import Vocabulary, resolve_shards
from cocolm_tf.data.reading import read_records
from cocolm_tf.data.shards import compression, parse
from cocolm_tf.data.special_tokens import SpecialTokens
from cocolm_tf.data.views import pretraining_views
from cocolm_tf.errors import UserError

SHARDS_PER_GROUP = 8
SHUFFLE_WINDOW = 200_000
# Any number: what makes every validation's order, whatever the run's seed.
_VALIDATION_ORDER = 0


@dataclass(frozen=True)
class PretrainingData:
    """The shards of a dataset, and how batches are made of them.

    Args:
        paths: the shards.
        sequences: how many sequences each of them gives: its first ones.
        sequence_length: int. S, the length that batches are padded to.
        special: the special tokens.
        mask_fraction: float. The share of ordinary tokens to mask.
        crop_fraction: float. The share of its tokens that the second view keeps.
        seed: int. Decides order, masks and crops.
        views: what makes batches of sequences [B, S] and a seed [2], in the place of
            `pretraining_views`.

    Example:
    ```python
    data = PretrainingData.open("data/*.tfrecord", 128, SpecialTokens(mask=8191))
    batches = data.training_batches(batch_size=32)
    ```
    """

    paths: Sequence[str]
    sequences: Sequence[int]
    sequence_length: int
    special: SpecialTokens
    mask_fraction: float = 0.15
    crop_fraction: float = 0.9
    seed: int = 0
    views: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]] | None = None

    @classmethod
    def open(
        cls,
        pattern: str,
        sequence_length: int,
        special: SpecialTokens,
        mask_fraction: float = 0.15,
        crop_fraction: float = 0.9,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
        checksums: bool = True,
        skip_corrupt: bool = False,
        pipelines: int = 1,
        pipeline: int = 0,
    ) -> "PretrainingData":
        """Finds the shards that a folder holds or a glob matches, and verifies them.

        Args:
            pattern: the folder or glob.
            sequence_length: int. See the class.
            special: see the class.
            mask_fraction: float. See the class.
            crop_fraction: float. See the class.
            seed: int. See the class.
            vocabulary: the tokenizer to train with; None leaves the shards unverified.
            checksums: whether to read the shards through, and not only look at their sizes.
            skip_corrupt: whether to take a damaged shard's sequences up to the damage, telling how
                many are left out, instead of refusing it.
            pipelines: int. How many hosts read.
            pipeline: int. Which of them this is; it verifies its own share.

        Raises:
            UserError: if there are none, they hold longer sequences, or something is wrong with
                them (see `Manifest.verify`).
        """
        paths, manifest = resolve_shards(pattern)
        if manifest.sequence_length > sequence_length:
            raise UserError(
                f"{manifest.directory} has sequences of {manifest.sequence_length} tokens, more "
                f"than data.sequence_length={sequence_length}: set that, or build shorter ones."
            )
        counts = {shard.file: shard.sequences for shard in manifest.shards}
        sequences = [counts[os.path.basename(path)] for path in paths]
        if vocabulary is not None:
            mine = slice(pipeline, None, pipelines)
            whole, all_of_it = sum(sequences[mine]), checksums or skip_corrupt
            sequences[mine] = manifest.verify(vocabulary, all_of_it, paths[mine], skip_corrupt)
            if left_out := whole - sum(sequences[mine]):
                print(f"{pattern}: {left_out} of {whole} sequences are left out.", file=sys.stderr)
                if left_out == whole:
                    raise UserError(f"{pattern} has no sequences that can be read.")
        return cls(paths, sequences, sequence_length, special, mask_fraction, crop_fraction, seed)

    def training_batches(
        self, batch_size: int, start: int = 0, pipelines: int = 1, pipeline: int = 0
    ) -> tf.data.Dataset:
        """An endless dataset of batches, shuffled anew and masked anew in every epoch.

        Batch number n is a function of the shards, the seed, `batch_size`, `pipelines`,
        `pipeline` and n alone.

        Args:
            batch_size: int. B, of one replica.
            start: int. The number of the first batch: how many the run has had before.
            pipelines: int. How many hosts read; each reads its own share of the shards.
            pipeline: int. Which of them this is.

        Returns:
            A dataset of the batches that `CocoLMPretrainer` takes, all of the same static shapes.

        Raises:
            UserError: if there are fewer shards than hosts.
        """
        if len(self.paths) < pipelines:
            raise UserError(
                f"{len(self.paths)} shards do not suffice for {pipelines} hosts: build the data "
                f"with --num_shards={pipelines} or more."
            )
        mine = slice(pipeline, None, pipelines)
        records = self._shuffled_records(
            self.paths[mine], self.sequences[mine], start * batch_size, pipeline
        )
        # Told that there is no end, several hosts do not ask each other for it at every batch.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        batches = records.apply(endless).batch(batch_size, drop_remainder=True)
        return self._viewed(batches.enumerate(start), pipelines, pipeline)

    def validation_batches(self, batch_size: int, limit: int = 0) -> tf.data.Dataset:
        """One pass over the shards, with the same order, masks and crops every time.

        The order is a shuffled one, as in training: sequences that follow each other in a shard
        are parts of the same texts, which contrastive learning would have to tell apart.
        Sequences that do not fill a last batch are left out: the shapes are static.

        Args:
            batch_size: int. B, of all replicas.
            limit: int. How many batches to give at most; 0 for all there are.

        Returns:
            A dataset of batches as `training_batches` gives, of known cardinality.

        Raises:
            UserError: if there are fewer sequences than a batch holds.
        """
        count = sum(self.sequences) // batch_size
        if not count:
            raise UserError(
                f"{os.path.dirname(self.paths[0])} has {sum(self.sequences)} sequences, too few to "
                f"validate on in batches of {batch_size}: build more, or lower trainer.batch_size."
            )
        count = min(count, limit or count)
        records = _read(tf.range(len(self.paths)), self.paths, self.sequences)
        records = _shuffle(records, tf.constant(_VALIDATION_ORDER))
        batches = records.batch(batch_size, drop_remainder=True).take(count)
        # Without a cardinality, Keras would run one step too many to find the end, and with
        # `validation_steps` instead it would not begin at the first batch every time.
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
        # Several hosts share each batch out: to share the files out would change the batches.
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return self._viewed(batches.enumerate(), 1, 0).with_options(options)

    def _viewed(self, numbered: tf.data.Dataset, pipelines: int, pipeline: int) -> tf.data.Dataset:
        def view(number: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            token_ids = parse(serialized, self.sequence_length, self.special.pad)
            token_ids = tf.ensure_shape(token_ids, [serialized.shape[0], self.sequence_length])
            seed = tf.stack([tf.cast(self.seed, tf.int64), number * pipelines + pipeline])
            if self.views:
                return self.views(token_ids, seed)
            return pretraining_views(
                token_ids, self.mask_fraction, self.crop_fraction, self.special, seed
            )

        return numbered.map(view, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _shuffled_records(
        self, paths: Sequence[str], sequences: Sequence[int], consumed: int, pipeline: int
    ) -> tf.data.Dataset:
        """The records of endless epochs, from number `consumed` on."""
        per_epoch = -(-len(paths) // SHARDS_PER_GROUP)

        def members(group: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Which shards the group has, counted through all epochs, and its seed."""
            place = [self.seed, tf.cast(group // per_epoch, tf.int32)]
            order = tf.random.experimental.stateless_shuffle(tf.range(len(paths)), place)
            begin = tf.cast(group % per_epoch, tf.int32) * SHARDS_PER_GROUP
            seed = tf.random.experimental.stateless_fold_in(place, tf.cast(group, tf.int32))
            seed = tf.random.experimental.stateless_fold_in(seed, pipeline)
            return order[begin : begin + SHARDS_PER_GROUP], seed[1]

        epochs, skip = divmod(consumed, sum(sequences))
        first = epochs * per_epoch
        while skip >= (size := sum(sequences[i] for i in members(tf.constant(first))[0].numpy())):
            first, skip = first + 1, skip - size

        def records(group: tf.Tensor) -> tf.data.Dataset:
            shards, seed = members(group)
            shuffled = _shuffle(_read(shards, paths, sequences), seed)
            return shuffled.skip(tf.where(group == first, tf.cast(skip, tf.int64), 0))

        return tf.data.Dataset.counter(first).flat_map(records)


def _shuffle(records: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
    """Shuffles as a function of the seed alone, which `Dataset.shuffle` does not."""

    def shuffle(window: tf.Tensor, chunk: tf.Tensor) -> tf.data.Dataset:
        place = tf.stack([seed, tf.cast(window, tf.int32)])
        return tf.data.Dataset.from_tensor_slices(
            tf.random.experimental.stateless_shuffle(chunk, place)
        )

    return records.batch(SHUFFLE_WINDOW).enumerate().flat_map(shuffle)


def _read(which: tf.Tensor, paths: Sequence[str], sequences: Sequence[int]) -> tf.data.Dataset:
    counts = tf.gather(tf.constant(sequences, tf.int64), which)
    return read_records(tf.gather(paths, which), counts, compression(paths[0]))

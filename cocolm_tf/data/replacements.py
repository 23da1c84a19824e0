"""Sequences in the order of a run, with the replacements of their masked tokens drawn beforehand.

A record is one of `shards` with two more features: `masked_positions`, those that are used, and
`replacements`, the tokens that an auxiliary model put there. Shards follow each other, and records
within them, as a run reads them: `batch_size` records are a step. Nothing is shuffled, and nothing
masked, anew; crops are made as in any run.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cocolm_tf.data.augmentation import Augmentation
from cocolm_tf.data.manifest import Vocabulary, resolve_shards
from cocolm_tf.data.pipeline import Dataset, PretrainingData
from cocolm_tf.data.shards import compression
from cocolm_tf.errors import UserError

# The orders of records: those in which `PretrainingData` gives them to train or to validate on.
TRAINING, VALIDATION = "training", "validation"

_FEATURES = ("token_ids", "masked_positions", "replacements")


def serialize_replaced(
    token_ids: Sequence[int], positions: Sequence[int], replacements: Sequence[int]
) -> bytes:
    """Serializes a sequence, its used masked positions and the tokens that replace them there."""
    example = tf.train.Example()
    for name, values in zip(_FEATURES, (token_ids, positions, replacements), strict=True):
        example.features.feature[name].int64_list.value.extend(values)
    return example.SerializeToString()


def parse_replaced(records: tf.Tensor, length: int, slots: int, pad: int) -> dict[str, tf.Tensor]:
    """Parses records [B] into `token_ids` [B, S], and what is masked and replaced, [B, M]."""
    features = {name: tf.io.RaggedFeature(tf.int64) for name in _FEATURES}
    found = tf.io.parse_example(records, features)
    used = found["masked_positions"].row_lengths()

    def padded(name: str, width: int, value: int) -> tf.Tensor:
        return tf.cast(found[name].to_tensor(value, shape=[None, width]), tf.int32)

    return {
        "token_ids": padded("token_ids", length, pad),
        "masked_positions": padded("masked_positions", slots, 0),
        "masked_weights": tf.sequence_mask(used, slots, tf.float32),
        "replacements": padded("replacements", slots, 0),
    }


@dataclasses.dataclass(frozen=True)
class ReplacedData(PretrainingData):
    """A dataset with stored replacements, read in its own order."""

    batch_size: int = 0  # sequences of a step, over all replicas
    slots: int = 0  # the most masked positions of a sequence: M

    @classmethod
    def open(
        cls,
        dataset: str,
        sequence_length: int,
        augmentation: Augmentation,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
        checksums: bool = True,
    ) -> "ReplacedData":
        """Finds and verifies shards as `PretrainingData.open`; they fit the configuration."""
        paths, manifest = resolve_shards(dataset)
        facts = manifest.replacements
        if facts is None:
            raise UserError(
                f"{dataset} has no replacements drawn beforehand: give what "
                "precompute_replacements.py wrote, or set auxiliary.replacements=frozen."
            )
        slots = math.ceil(sequence_length * augmentation.mask_fraction)
        for key, wanted, stored in (
            ("data.sequence_length", sequence_length, manifest.sequence_length),
            ("data.mask_fraction", slots, facts["slots"]),
        ):
            if wanted != stored:
                raise UserError(
                    f"{dataset} has replacements for sequences of {manifest.sequence_length} "
                    f"tokens, {facts['slots']} of them masked: set {key} to what they were drawn "
                    "with."
                )
        if paths != manifest.paths:
            raise UserError(
                f"{dataset} must be all of its folder's shards, in the order of the run."
            )
        if vocabulary is not None:
            manifest.verify(vocabulary, checksums)
        # Drawn already, as are the masks.
        augmentation = dataclasses.replace(augmentation, short_fraction=0.0)
        counts = [shard.sequences for shard in manifest.shards]
        opened = Dataset(dataset, paths, counts, manifest.sequence_length)
        return cls([opened], sequence_length, augmentation, seed, facts["batch_size"], slots)

    def check(self, batch_size: int, steps: int) -> None:
        """Refuses to train on it in other batches than it is in, or for more steps than it has."""
        (dataset,) = self.datasets
        if batch_size != self.batch_size:
            raise UserError(
                f"{dataset.pattern} has batches of {self.batch_size} sequences, not of "
                f"trainer.batch_size={batch_size}."
            )
        if (stored := sum(dataset.records) // self.batch_size) < steps:
            raise UserError(
                f"{dataset.pattern} has the replacements of {stored} steps, fewer than "
                f"trainer.train_steps={steps}: draw those of the whole run."
            )

    def training_batches(
        self,
        batch_size: int,
        start: int = 0,
        pipelines: int = 1,
        pipeline: int = 0,
        first_sequence: int | None = None,
    ) -> tf.data.Dataset:
        """As `PretrainingData.training_batches`; after the last step the first one follows."""
        # All batches are of one size, so that `start` says what `first_sequence` does.
        replicas = self.batch_size // batch_size // pipelines
        if first_sequence is None:
            first_sequence = start * batch_size
        records = self._records(first_sequence * pipelines).concatenate(self._records().repeat())
        # A step is shared out among the hosts, and a host's share among its replicas.
        of_host = records.batch(batch_size * replicas, drop_remainder=True)
        batches = of_host.shard(pipelines, pipeline).rebatch(batch_size, drop_remainder=True)
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return self._augmented(
            batches.apply(endless).enumerate(start), batch_size, pipelines, pipeline
        )

    def validation_batches(self, batch_size: int, limit: int = 0) -> tf.data.Dataset:
        """See `PretrainingData.validation_batches`."""
        (dataset,) = self.datasets
        count = sum(dataset.records) // batch_size
        count = min(count, limit or count)
        batches = self._records().batch(batch_size, drop_remainder=True).take(count)
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return self._augmented(batches.enumerate(), batch_size, 1, 0).with_options(options)

    def paths_from(self, sequence: int, pipelines: int = 1, pipeline: int = 0) -> list[str]:
        """The shards, that first which a host's sequence is read from."""
        (dataset,) = self.datasets
        shard, _ = self._place(sequence * pipelines)
        return [*dataset.paths[shard:], *dataset.paths[:shard]]

    def _place(self, record: int) -> tuple[int, int]:
        """The shard that a record is in, and its number there."""
        (dataset,) = self.datasets
        ends = np.cumsum(dataset.records)
        record %= ends[-1]
        shard = int(np.searchsorted(ends, record, side="right"))
        return shard, int(record - (ends[shard - 1] if shard else 0))

    def _records(self, begin: int = 0) -> tf.data.Dataset:
        (dataset,) = self.datasets
        shard, skip = self._place(begin)
        paths = list(dataset.paths[shard:])
        return tf.data.TFRecordDataset(paths, compression(paths[0])).skip(skip)

    def _augmented(
        self, numbered: tf.data.Dataset, batch_size: int, pipelines: int, pipeline: int
    ) -> tf.data.Dataset:
        length, pad = self.sequence_length, self.augmentation.special.pad

        def augment(number: tf.Tensor, records: tf.Tensor) -> dict[str, tf.Tensor]:
            found = parse_replaced(records, length, self.slots, pad)
            found = {n: tf.ensure_shape(x, [batch_size, x.shape[1]]) for n, x in found.items()}
            seed = tf.stack([tf.cast(self.seed, tf.int64), number * pipelines + pipeline])
            return self.augmentation(found["token_ids"], seed) | found

        return numbered.map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

"""The input pipeline of pretraining: shards to batches, resumable at any batch.

An epoch of a dataset visits each of its sequences once, in the order of `reading`. Several datasets
are mixed by their weights, each with epochs of its own. Records longer than the batches' sequence
length are cut into pieces. `ReplacedData` reads datasets whose masked tokens have replacements.
"""

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
from cocolm_tf.data.reading import ReadingOrder
from cocolm_tf.data.shards import compression, parse, resolve_shards
from cocolm_tf.errors import UserError

if TYPE_CHECKING:
    from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# The block of sequences within which each dataset has its share, rounded up or down.
MIXING_BLOCK = 1024
# With more, the dataset of the largest weight could be left without a sequence in a block.
_MOST_DATASETS = 32
# The unit of normalized weights is 1 / _WHOLE: integers, so that sums are exact.
_WHOLE = 10**8
# The seed of validation's order, whatever the run's: an arbitrary constant.
_VALIDATION_ORDER = 0
_WEIGHTED = re.compile(r"(.+)=(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)")
# The features of a record with stored replacements: the masked positions are those that are used.
_REPLACED_FEATURES = {
    name: tf.io.RaggedFeature(tf.int64)
    for name in ("token_ids", "masked_positions", "replacements")
}


class Dataset(NamedTuple):
    """A built dataset to read from."""

    pattern: str  # the folder or glob that it was given as
    paths: Sequence[str]
    records: Sequence[int]  # of each shard, its first so many
    record_length: int  # the most tokens of a record
    weight: float = 1.0  # its share of the sequences, relative to the sum of all weights


@dataclass(frozen=True)
class PretrainingData:
    """Datasets, and how batches are made of them.

    Args:
        datasets: What to read from. With several, each sequence is from one of them, by weight.
        sequence_length: S, the length that batches are padded to. Longer records are cut, see
            `cut`.
        augmentation: Masks and crops the sequences.
        seed: Decides order, choice of dataset, masks and crops.

    Example:
    ```python
    data = PretrainingData.open("data/*.tfrecord", 128, Augmentation(SpecialTokens(mask=8191)))
    batches = data.training_batches(batch_size=32)
    ```
    """

    datasets: Sequence[Dataset]
    sequence_length: int
    augmentation: Augmentation
    seed: int = 0

    @classmethod
    def open(
        cls,
        datasets: str,
        sequence_length: int,
        augmentation: Augmentation,
        seed: int = 0,
        vocabulary: "CocoLMTokenizer | None" = None,
        checksums: bool = True,
        skip_corrupt: bool = False,
        pipelines: int = 1,
        pipeline: int = 0,
    ) -> "PretrainingData":
        """Finds the shards of datasets and verifies them.

        Args:
            datasets: A folder or a glob of shards, or several with weights; see `parse_mixture`.
            sequence_length: See the class.
            augmentation: See the class.
            seed: See the class.
            vocabulary: The tokenizer to train with; None leaves the shards unverified.
            checksums: Whether to read the shards through instead of comparing their sizes alone.
            skip_corrupt: Whether to take a damaged shard's sequences up to the damage, and report
                how many are left out, instead of refusing it.
            pipelines: How many hosts read.
            pipeline: Which of them this is; it verifies its own share.

        Raises:
            UserError: If there are no shards, or they fail verification (see `Manifest.verify`).
        """
        opened = []
        for pattern, weight in parse_mixture(datasets):
            paths, manifest = resolve_shards(pattern)
            if not manifest.is_shuffled:
                print(
                    f"{pattern} was built by a version that did not shuffle: batches of "
                    "neighboring text teach less. Build it again.",
                    file=sys.stderr,
                )
            if manifest.replacements:
                raise UserError(
                    f"{pattern} has replacements drawn beforehand, in the order of a run: set "
                    "auxiliary.replacements=stored to train on them."
                )
            records = [shard.sequences for shard in manifest.select(paths)]
            if vocabulary is not None:
                own = slice(pipeline, None, pipelines)
                whole, all_of_it = sum(records[own]), checksums or skip_corrupt
                records[own] = manifest.verify(vocabulary, all_of_it, paths[own], skip_corrupt)
                if left_out := whole - sum(records[own]):
                    print(
                        f"{pattern}: {left_out} of {whole} sequences are left out.", file=sys.stderr
                    )
                    if left_out == whole:
                        raise UserError(f"{pattern} has no sequences that can be read.")
            opened.append(Dataset(pattern, paths, records, manifest.sequence_length, weight))
        return cls(opened, sequence_length, augmentation, seed)

    def training_batches(
        self,
        batch_size: int,
        start: int = 0,
        pipelines: int = 1,
        pipeline: int = 0,
        first_sequence: int | None = None,
    ) -> tf.data.Dataset:
        """An endless dataset of batches, shuffled and masked anew in every epoch.

        Batch number n is a function of the shards, the seed, S, `batch_size`, `pipelines`,
        `pipeline`, the number of its first sequence and n alone.

        Args:
            batch_size: B, of one replica.
            start: The number of the first batch: how many batches the run has had before.
            pipelines: How many hosts read; each reads its own share of the shards.
            pipeline: Which of them this is.
            first_sequence: How many sequences this host has had before, where batches were of
                several sizes; None for `start * batch_size`.

        Returns:
            A dataset of the batches that `CocoLMPretrainer` takes, all of the same static shapes.

        Raises:
            UserError: If there are fewer shards than hosts.
        """
        if first_sequence is None:
            first_sequence = start * batch_size
        batches = self._shuffled_batches(batch_size, first_sequence, pipelines, pipeline)
        # Without an infinite cardinality, several hosts would agree on the end at every batch.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return self._augmented(
            batches.apply(endless).enumerate(start), batch_size, pipelines, pipeline
        )

    def sequences_by_dataset(self, sequences: int, pipelines: int = 1) -> dict[str, int]:
        """How many of the first sequences of each host are of each dataset, by their patterns."""
        counts = np.sum(
            [self._mixture(host).counts(sequences) for host in range(pipelines)], axis=0
        )
        return {one.pattern: int(n) for one, n in zip(self.datasets, counts, strict=True)}

    def validation_batches(self, batch_size: int, limit: int = 0) -> tf.data.Dataset:
        """One pass over the shards, with the same order, masks and crops every time.

        The order is shuffled, as in training: neighboring sequences of a shard may come from the
        same text, which contrastive learning would have to distinguish. An incomplete last batch is
        dropped.

        Args:
            batch_size: B, of all replicas.
            limit: The most batches to give; 0 for all there are.

        Returns:
            A dataset of batches as `training_batches` gives, of known cardinality.

        Raises:
            UserError: If there are several datasets, or fewer sequences than a batch holds.
        """
        if len(self.datasets) > 1:
            raise UserError("validation is on one dataset, without weights.")
        (dataset,) = self.datasets
        sequences = sum(dataset.records) * pieces(dataset.record_length, self.sequence_length)
        count = sequences // batch_size
        if not count:
            raise UserError(
                f"{os.path.dirname(dataset.paths[0])} has {sequences} sequences, too few to "
                f"validate on in batches of {batch_size}: build more, or lower trainer.batch_size."
            )
        count = min(count, limit or count)
        batches = self._batches_once(dataset, batch_size).take(count)
        # Without a cardinality, Keras would run one step too many to find the end, and with
        # `validation_steps` instead it would not begin at the first batch every time.
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
        # Several hosts split each batch: splitting the files would change the batches.
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return self._augmented(batches.enumerate(), batch_size, 1, 0).with_options(options)

    def paths_from(self, sequence: int, pipelines: int = 1, pipeline: int = 0) -> list[str]:
        """This host's shards, those first that a sequence is read from."""
        begins = self._mixture(pipeline).counts(sequence)
        return [
            path
            for dataset, begin in zip(self.datasets, begins, strict=True)
            for path in self._order(dataset, pipelines, pipeline).paths_from(begin)
        ]

    def _shuffled_batches(
        self, batch_size: int, first_sequence: int, pipelines: int, pipeline: int
    ) -> tf.data.Dataset:
        """The records of a host's batches, [B, S], endlessly from a sequence on."""
        mixture = self._mixture(pipeline)
        sequences = [
            self._sequences(self._order(dataset, pipelines, pipeline), begin, dataset)
            for dataset, begin in zip(self.datasets, mixture.counts(first_sequence), strict=True)
        ]
        if len(sequences) == 1:
            return sequences[0].rebatch(batch_size, drop_remainder=True)
        return tf.data.Dataset.choose_from_datasets(
            [windows.unbatch() for windows in sequences],
            mixture.choices(first_sequence),
            stop_on_empty_dataset=True,
        ).batch(batch_size, drop_remainder=True)

    def _batches_once(self, dataset: Dataset, batch_size: int) -> tf.data.Dataset:
        """The records of all batches, [B, S], in validation's order."""
        order = self._order(dataset)._replace(seed=_VALIDATION_ORDER)
        sequences = self._sequences(order, 0, dataset, endless=False)
        return sequences.rebatch(batch_size, drop_remainder=True)

    def _mixture(self, pipeline: int) -> "Mixture":
        return Mixture([dataset.weight for dataset in self.datasets], self.seed, pipeline)

    def _order(self, dataset: Dataset, pipelines: int = 1, pipeline: int = 0) -> ReadingOrder:
        """The order in which a host reads its share of a dataset."""
        if len(dataset.paths) < pipelines:
            raise UserError(
                f"{len(dataset.paths)} shards do not suffice for {pipelines} hosts: build "
                f"{dataset.pattern} with --num_shards={pipelines} or more."
            )
        own = slice(pipeline, None, pipelines)
        return ReadingOrder(
            dataset.paths[own],
            dataset.records[own],
            pieces(dataset.record_length, self.sequence_length),
            self.seed,
            pipeline,
        )

    def _sequences(
        self, order: ReadingOrder, start: int, dataset: Dataset, endless: bool = True
    ) -> tf.data.Dataset:
        """The sequences of a dataset from number `start` on, [N, S] int32 a window."""
        length, special = self.sequence_length, self.augmentation.special

        def shuffled(seed: tf.Tensor, skip: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            token_ids = parse(records, dataset.record_length, special.pad)
            token_ids = tf.ensure_shape(token_ids, [None, dataset.record_length])
            token_ids, filled = cut(token_ids, length, special)
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(token_ids)[0]), seed)
            chosen = tf.boolean_mask(order, tf.gather(filled, order))
            # Where a record is short, pieces of others take the places that it does not fill.
            chosen = tf.gather(chosen, tf.range(tf.size(order)) % tf.size(chosen))
            token_ids = tf.gather(token_ids, chosen[tf.cast(skip, tf.int32) :])
            return tf.ensure_shape(token_ids, [None, length])

        # Windows are prepared in the background, so that no batch waits for one.
        return order.windows(start, endless).map(shuffled).prefetch(2)

    def _augmented(
        self, numbered: tf.data.Dataset, batch_size: int, pipelines: int, pipeline: int
    ) -> tf.data.Dataset:
        def augment(number: tf.Tensor, records: tf.Tensor) -> dict[str, tf.Tensor]:
            seed = tf.stack([tf.cast(self.seed, tf.int64), number * pipelines + pipeline])
            return self._batch(tf.ensure_shape(records, [batch_size, *records.shape[1:]]), seed)

        return numbered.map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _batch(self, token_ids: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.augmentation(token_ids, seed)


@dataclass(frozen=True)
class ReplacedData(PretrainingData):
    """A dataset with replacements of masked tokens that were drawn beforehand."""

    # Shards follow each other, and records within them, as a run reads them: `batch_size` records
    # are a step. Nothing is shuffled, and nothing masked, anew; crops are made as in any run.

    batch_size: int = 0  # sequences of a step, over all replicas
    slots: int = 0  # the most masked positions of a sequence: M

    @classmethod
    def open(
        cls,
        dataset: str,
        sequence_length: int,
        augmentation: Augmentation,
        seed: int = 0,
        vocabulary: "CocoLMTokenizer | None" = None,
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
        augmentation = replace(augmentation, short_fraction=0.0)
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

    def paths_from(self, sequence: int, pipelines: int = 1, pipeline: int = 0) -> list[str]:
        """The shards, that first which a host's sequence is read from."""
        (dataset,) = self.datasets
        shard, _ = self._place(sequence * pipelines)
        return [*dataset.paths[shard:], *dataset.paths[:shard]]

    def _shuffled_batches(
        self, batch_size: int, first_sequence: int, pipelines: int, pipeline: int
    ) -> tf.data.Dataset:
        # After the last step the first one follows.
        records = self._records(first_sequence * pipelines).concatenate(self._records().repeat())
        # A step is shared out among the hosts, and a host's share among its replicas.
        replicas = self.batch_size // batch_size // pipelines
        of_host = records.batch(batch_size * replicas, drop_remainder=True)
        return of_host.shard(pipelines, pipeline).rebatch(batch_size, drop_remainder=True)

    def _batches_once(self, dataset: Dataset, batch_size: int) -> tf.data.Dataset:
        return self._records().batch(batch_size, drop_remainder=True)

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

    def _batch(self, records: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(records, _REPLACED_FEATURES)
        used = tf.ensure_shape(parsed["masked_positions"].row_lengths(), records.shape)

        def padded(name: str, width: int, value: int = 0) -> tf.Tensor:
            values = parsed[name].to_tensor(value, shape=[records.shape[0], width])
            return tf.cast(values, tf.int32)

        token_ids = padded("token_ids", self.sequence_length, self.augmentation.special.pad)
        return self.augmentation(token_ids, seed) | {
            "masked_positions": padded("masked_positions", self.slots),
            "masked_weights": tf.sequence_mask(used, self.slots, tf.float32),
            "replacements": padded("replacements", self.slots),
        }


def parse_mixture(text: str) -> list[tuple[str, float]]:
    """Parses --train_data: a folder or glob, or several as `wiki/train=0.7,books/train=0.3`."""
    # The weights need not sum to 1. A path without a comma is a path, whatever else is in it.
    parts = text.split(",")
    found = [_WEIGHTED.fullmatch(part) for part in parts]
    if len(parts) == 1 or not any(found):
        return [(text, 1.0)]
    for part, match in zip(parts, found, strict=True):
        if match is None or not float(match[2]):
            raise UserError(
                f"{text}: {part!r} is no PATH=WEIGHT: of several datasets each needs a weight of "
                "more than 0, as in wiki/train=0.7,books/train=0.3."
            )
    datasets = [(match[1], float(match[2])) for match in found]
    if len(datasets) > _MOST_DATASETS:
        raise UserError(f"{len(datasets)} datasets are more than the {_MOST_DATASETS} that mix.")
    names = [name for name, _ in datasets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{text} has {twice} twice: give it once, with the sum of the weights.")
    return datasets


def absolute_datasets(text: str) -> str:
    """What `parse_mixture` takes, with local paths made absolute."""
    datasets = [(files.absolute(name), weight) for name, weight in parse_mixture(text)]
    if len(datasets) == 1:
        return datasets[0][0]
    return ",".join(f"{name}={weight!r}" for name, weight in datasets)


class Mixture:
    """Which of several datasets each sequence is from: a function of number, seed and host."""

    # Of every `MIXING_BLOCK` sequences each dataset gets its share, rounded up or down so that sums
    # over blocks are never off by as much as one (the dataset of the largest weight takes the
    # rest), and the sequences of a block are shuffled. So the first n sequences hold nearly their
    # exact shares of all datasets, and how many these are is known without going through them.

    def __init__(self, weights: Sequence[float], seed: int, pipeline: int = 0) -> None:
        shares = np.asarray(weights, np.float64) / sum(weights)
        self._shares = np.round(shares * _WHOLE).astype(np.int64)
        self._rest = int(self._shares.argmax())
        self._place = tf.constant([seed, pipeline])
        # Where the first block is rounded up: by chance, so that the expectation is exact.
        self._offsets = tf.random.stateless_uniform(
            [len(weights)], self._place, 0, _WHOLE, dtype=tf.int64
        )

    def counts(self, sequences: int) -> list[int]:
        """The number of sequences of each dataset among the first ones."""
        block, inside = divmod(sequences, MIXING_BLOCK)
        counts = self._before(tf.constant(block, tf.int64)).numpy()
        if inside:
            chosen = self._block(tf.constant(block, tf.int64))[:inside]
            counts += np.bincount(chosen.numpy(), minlength=len(counts))
        return counts.tolist()

    def choices(self, start: int) -> tf.data.Dataset:
        """Yields the dataset number of each sequence, int64, from a sequence on, without end."""
        first, inside = divmod(start, MIXING_BLOCK)
        blocks = tf.data.Dataset.counter(first)
        chosen = blocks.flat_map(lambda n: tf.data.Dataset.from_tensor_slices(self._block(n)))
        return chosen.skip(inside)

    def _before(self, block: tf.Tensor) -> tf.Tensor:
        """The number of sequences of each dataset before a block."""
        sequences = block * MIXING_BLOCK
        counts = (sequences * self._shares + self._offsets) // _WHOLE
        others = tf.one_hot(self._rest, len(self._shares), 0, 1, dtype=tf.int64)
        counts *= others
        return counts + (1 - others) * (sequences - tf.reduce_sum(counts))

    def _block(self, block: tf.Tensor) -> tf.Tensor:
        """The dataset numbers of a block's sequences."""
        counts = self._before(block + 1) - self._before(block)
        chosen = tf.repeat(tf.range(len(self._shares), dtype=tf.int64), counts)
        seed = tf.random.experimental.stateless_fold_in(self._place, block)
        return tf.random.experimental.stateless_shuffle(chosen, seed)


def pieces(record_length: int, sequence_length: int) -> int:
    """The number of pieces that a record is cut into: the fewest that hold a full record."""
    # Each piece has its own <s> and </s>: 512 tokens in pieces of 128 are ceil(510 / 126) = 5.
    return max(1, -(-(record_length - 2) // (sequence_length - 2)))


def cut(token_ids: tf.Tensor, length: int, special: SpecialTokens) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts [N, L] int32 into [N * P, S] pieces; and [N * P] bool, which are not empty."""
    # P is `pieces(L, S)`. The tokens between the first and the last are shared out evenly, each
    # once and in order, among as few pieces as hold them; every piece gets a first and a last token
    # of its own.
    longest = token_ids.shape[1]
    count = pieces(longest, length)
    if count == 1:
        padding = [[0, 0], [0, max(0, length - longest)]]
        padded = tf.pad(token_ids[:, :length], padding, constant_values=special.pad)
        return padded, tf.ones(tf.shape(token_ids)[:1], tf.bool)
    inner = tf.reduce_sum(tf.cast(token_ids != special.pad, tf.int32), 1, keepdims=True) - 2
    parts = tf.maximum(1, -(-inner // (length - 2)))
    bounds = tf.minimum(tf.range(count + 1) * inner // parts, inner)
    starts, sizes = bounds[:, :-1, tf.newaxis], (bounds[:, 1:] - bounds[:, :-1])[..., tf.newaxis]
    # Place 0 is for the first token; the text begins at 1 in a sequence as in its pieces.
    place = tf.range(length)
    text = tf.gather(token_ids, tf.minimum(starts + place, longest - 1), batch_dims=1)
    piece = tf.where(place <= sizes, text, tf.where(place == sizes + 1, special.end, special.pad))
    piece = tf.where(place == 0, special.start, piece)
    filled = tf.range(count) < parts
    return tf.reshape(piece, [-1, length]), tf.reshape(filled, [-1])

"""Batches as a function of the shards, the seed and their number."""

import collections
import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from cocolm_tf.data import pipeline as module
from cocolm_tf.data.manifest import Manifest
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.special_tokens import SpecialTokens
from cocolm_tf.errors import UserError

LENGTH, BATCH = 16, 4
SPECIAL = SpecialTokens(mask=99)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch):
    """So few shards and sequences have several groups, and groups several windows."""
    monkeypatch.setattr(module, "SHARDS_PER_GROUP", 2)
    monkeypatch.setattr(module, "SHUFFLE_WINDOW", 7)


@pytest.fixture
def dataset(make_dataset) -> Manifest:
    # Unique words make unique sequences.
    documents = [f"w{index}a w{index}b w{index}c " * (1 + index % 5) for index in range(30)]
    return make_dataset(documents, num_shards=5)


def opened(dataset: Manifest, seed: int = 0) -> PretrainingData:
    return PretrainingData.open(dataset.directory, LENGTH, SPECIAL, seed=seed)


@pytest.fixture
def data(dataset: Manifest) -> PretrainingData:
    return opened(dataset)


def batches(dataset: tf.data.Dataset, count: int | None = None) -> list[dict[str, np.ndarray]]:
    return list(dataset.take(-1 if count is None else count).as_numpy_iterator())


def sequences(data: PretrainingData) -> list[tuple[int, ...]]:
    """What the shards hold, in order."""
    records = tf.data.TFRecordDataset(data.paths).batch(1000).get_single_element()
    return rows(module.parse(records, LENGTH).numpy())


def rows(token_ids: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in token_ids.tolist()]


def read(data: PretrainingData, count: int, **place: int) -> list[tuple[int, ...]]:
    """The first sequences of training, in order."""
    size = place.pop("batch_size", 1)
    found = batches(data.training_batches(size, **place), -(-count // size))
    return [row for batch in found for row in rows(batch["token_ids"])][:count]


def assert_equal(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_an_epoch_visits_every_sequence_once(data: PretrainingData):
    expected = collections.Counter(sequences(data))
    size = sum(data.sequences)
    assert size > 3 * BATCH
    visited = read(data, 2 * size, batch_size=BATCH)
    for epoch in range(2):
        assert collections.Counter(visited[epoch * size :][:size]) == expected


def test_batches_go_on_across_the_end_of_an_epoch(data: PretrainingData):
    """No sequence is left out because it does not fill an epoch's last batch."""
    size = sum(data.sequences)
    assert size % BATCH
    assert read(data, 2 * size, batch_size=BATCH) == read(data, 2 * size)


def test_order_differs_between_epochs_and_seeds(dataset: Manifest):
    data, size = opened(dataset), sum(opened(dataset).sequences)
    both = read(data, 2 * size)
    first, second = both[:size], both[size:]
    assert first != second
    assert first != sequences(data)
    assert read(opened(dataset, seed=1), size) != first
    assert read(opened(dataset), size) == first


def test_sequences_of_different_shards_are_shuffled_together(data: PretrainingData):
    shard_of = {}
    for shard, path in enumerate(data.paths):
        for row in sequences(PretrainingData([path], [0], LENGTH, SPECIAL)):
            shard_of[row] = shard
    group = [shard_of[row] for row in read(data, 7)]
    assert len(set(group)) == 2
    assert group != sorted(group) and group != sorted(group, reverse=True)


def test_a_run_can_be_entered_at_any_batch(data: PretrainingData):
    """Across windows, groups and epochs: what follows is what the run would have had."""
    length = 2 * sum(data.sequences) // BATCH + 3
    whole = batches(data.training_batches(BATCH), length)
    for start in range(length - 1):
        assert_equal(batches(data.training_batches(BATCH, start), 2), whole[start : start + 2])


def test_masks_and_crops_differ_between_epochs(data: PretrainingData):
    size = sum(data.sequences)
    found = batches(data.training_batches(1), 2 * size)
    views = collections.defaultdict(list)
    for batch in found:
        masked = batch["masked_positions"][batch["masked_weights"] > 0]
        views[rows(batch["token_ids"])[0]].append(
            (masked.tolist(), batch["crop_token_ids"].tolist())
        )
    assert len(views) == size
    differing = [
        sum(first[view] != second[view] for first, second in views.values()) / size
        for view in range(2)
    ]
    assert min(differing) > 0.3


def test_masked_positions_hold_ordinary_tokens(data: PretrainingData):
    for batch in batches(data.training_batches(BATCH), 10):
        masked = np.take_along_axis(batch["token_ids"], batch["masked_positions"], axis=1)
        masked = masked[batch["masked_weights"] > 0]
        assert not np.isin(masked, [0, 1, 2, SPECIAL.mask]).any()


@pytest.mark.parametrize("hosts", [2, 5])
def test_hosts_read_disjoint_shares(data: PretrainingData, hosts: int):
    visited = []
    for host in range(hosts):
        share = sum(data.sequences[host::hosts])
        visited += read(data, share, pipelines=hosts, pipeline=host)
    assert collections.Counter(visited) == collections.Counter(sequences(data))


def test_hosts_mask_differently(make_dataset):
    data = opened(make_dataset(["the same text over again"] * 60, num_shards=2))
    positions = [
        [b["masked_positions"] for b in batches(data.training_batches(BATCH, 0, 2, host), 5)]
        for host in range(2)
    ]
    assert not np.array_equal(*positions)


def test_a_host_can_be_entered_at_any_batch(data: PretrainingData):
    whole = batches(data.training_batches(BATCH, 0, 2, 1), 12)
    for start in (1, 4, 9):
        assert_equal(batches(data.training_batches(BATCH, start, 2, 1), 2), whole[start:][:2])


def test_shapes_are_static(data: PretrainingData):
    for dataset in (data.training_batches(BATCH), data.validation_batches(BATCH)):
        shapes = {name: spec.shape.as_list() for name, spec in dataset.element_spec.items()}
        assert shapes == {
            "token_ids": [BATCH, LENGTH],
            "padding_mask": [BATCH, LENGTH],
            "masked_positions": [BATCH, 3],
            "masked_weights": [BATCH, 3],
            "crop_token_ids": [BATCH, 15],
            "crop_padding_mask": [BATCH, 15],
        }


def test_padding_is_masked(data: PretrainingData):
    for batch in batches(data.training_batches(BATCH), 5):
        np.testing.assert_array_equal(batch["padding_mask"], batch["token_ids"] != SPECIAL.pad)


def test_validation_is_the_same_at_each_pass(data: PretrainingData):
    dataset = data.validation_batches(BATCH)
    first = batches(dataset)
    assert_equal(first, batches(dataset))
    whole = sum(data.sequences) // BATCH
    assert len(first) == int(dataset.cardinality()) == whole
    visited = [row for batch in first for row in rows(batch["token_ids"])]
    assert not collections.Counter(visited) - collections.Counter(sequences(data))


def test_validation_mixes_the_texts(data: PretrainingData):
    stored = list(sequences(data))
    visited = [
        stored.index(row)
        for batch in batches(data.validation_batches(BATCH))
        for row in rows(batch["token_ids"])
    ]
    followers = sum(row + 1 == after for row, after in itertools.pairwise(visited))
    assert followers < len(visited) / 2


@pytest.mark.parametrize(("limit", "count"), [(2, 2), (10_000, None), (0, None)])
def test_validation_can_be_shortened(data: PretrainingData, limit: int, count: int | None):
    dataset = data.validation_batches(BATCH, limit)
    assert_equal(batches(dataset), batches(data.validation_batches(BATCH), count))
    assert int(dataset.cardinality()) == len(batches(dataset))


def test_every_validation_of_a_fit_begins_at_the_first_batch(data: PretrainingData):
    """Keras's `validation_steps` would go on where the validation before stopped."""
    seen = []

    class Model(keras.Model):
        def train_step(self, batch):
            return {"loss": 0.0}

        def test_step(self, batch):
            seen.append(rows(batch["token_ids"].numpy()))
            return {"loss": 0.0}

    model = Model()
    model.built = True
    model.compile(run_eagerly=True)
    model.fit(
        data.training_batches(BATCH),
        epochs=2,
        steps_per_epoch=1,
        validation_data=data.validation_batches(BATCH, 2),
        shuffle=False,
        verbose=0,
    )
    assert len(seen) == 4
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


def test_global_seed_changes_nothing(data: PretrainingData, monkeypatch: pytest.MonkeyPatch):
    found = []
    for seed in (1, 2):
        # Not tf.random.set_seed, which also destroys every tokenizer of the process.
        monkeypatch.setattr(context.context(), "_seed", seed)
        found.append(batches(data.training_batches(BATCH), 3))
    assert_equal(*found)


def test_a_glob_selects_shards(dataset: Manifest):
    data = PretrainingData.open(dataset.directory + "/data-0000[24]-*.tfrecord", LENGTH, SPECIAL)
    assert [Path(path).name[:10] for path in data.paths] == ["data-00002", "data-00004"]
    assert data.sequences == [dataset.shards[2].sequences, dataset.shards[4].sequences]
    size = sum(data.sequences)
    assert collections.Counter(read(data, size)) == collections.Counter(sequences(data))


def test_compressed_shards_give_the_same_batches(make_dataset, tmp_path: Path):
    plain = opened(make_dataset())
    packed = opened(make_dataset(compress=True, output_dir=str(tmp_path / "packed")))
    assert packed.paths[0].endswith(".gz")
    for name in ("training_batches", "validation_batches"):
        assert_equal(
            batches(getattr(plain, name)(BATCH), 5), batches(getattr(packed, name)(BATCH), 5)
        )


def test_a_wider_batch_is_padded(dataset: Manifest):
    wide = PretrainingData.open(dataset.directory, 2 * LENGTH, SPECIAL)
    (batch,) = batches(wide.training_batches(BATCH), 1)
    assert batch["token_ids"].shape == (BATCH, 2 * LENGTH)
    assert (batch["token_ids"][:, LENGTH:] == SPECIAL.pad).all()


def test_too_long_sequences_are_refused(dataset: Manifest):
    with pytest.raises(UserError, match="sequences of 16 tokens, more than data.sequence_length=8"):
        PretrainingData.open(dataset.directory, 8, SPECIAL)


@pytest.mark.parametrize("pattern", ["", "/*.tfrecord"])
def test_missing_data_is_named(tmp_path: Path, pattern: str):
    with pytest.raises(UserError, match=str(tmp_path)):
        PretrainingData.open(str(tmp_path) + pattern, LENGTH, SPECIAL)


def test_too_few_shards_for_the_hosts_are_refused(data: PretrainingData):
    with pytest.raises(UserError, match="5 shards do not suffice for 6 hosts.*--num_shards=6"):
        data.training_batches(BATCH, pipelines=6)


def test_too_few_sequences_to_validate_on_are_refused(data: PretrainingData):
    size = sum(data.sequences)
    with pytest.raises(UserError, match=f"has {size} sequences, too few .* batches of {size + 1}"):
        data.validation_batches(size + 1)
    assert len(batches(data.validation_batches(size))) == 1

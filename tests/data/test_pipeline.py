"""Batches as a function of the shards, the seed and their number."""

import collections
import dataclasses
import itertools
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from data_stand_ins import dataset_maker
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.eager import context

from cocolm_tf.data import pipeline as module
from cocolm_tf.data import reading
from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
from cocolm_tf.data.pipeline import Dataset, Mixture, PretrainingData, cut, parse_mixture, pieces
from cocolm_tf.data.shards import Manifest, parse, serialize
from cocolm_tf.errors import UserError

LENGTH, BATCH = 16, 4
SPECIAL = SpecialTokens(mask=99)
AUGMENTATION = Augmentation(SPECIAL)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch):
    """So few shards and sequences have several groups, and groups several windows."""
    monkeypatch.setattr(reading, "SHARDS_AT_ONCE", 2)
    monkeypatch.setattr(reading, "CHUNK", 2)
    monkeypatch.setattr(reading, "WINDOW", 4)
    monkeypatch.setattr(module, "MIXING_BLOCK", 10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Five shards of unique sequences, as their words are unique; tests read them only."""
    documents = [f"w{index}a w{index}b w{index}c " * (1 + index % 5) for index in range(30)]
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("dataset"))
        return dataset_maker(patch, folder)(documents, num_shards=5)


def opened(dataset: Manifest, seed: int = 0) -> PretrainingData:
    return PretrainingData.open(dataset.directory, LENGTH, AUGMENTATION, seed)


def size_of(data: PretrainingData) -> int:
    return sum(sum(dataset.records) for dataset in data.datasets)


@pytest.fixture
def data(dataset: Manifest) -> PretrainingData:
    return opened(dataset)


def batches(dataset: tf.data.Dataset, count: int | None = None) -> list[dict[str, np.ndarray]]:
    return list(dataset.take(-1 if count is None else count).as_numpy_iterator())


def sequences(data: PretrainingData) -> list[tuple[int, ...]]:
    """What the shards hold, in order."""
    paths = [path for dataset in data.datasets for path in dataset.paths]
    records = tf.data.TFRecordDataset(paths).batch(1000).get_single_element()
    return rows(parse(records, LENGTH).numpy())


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
    """Whatever the batch size: none is left out because it does not fill an epoch's last batch."""
    expected = collections.Counter(sequences(data))
    size = size_of(data)
    assert size > 3 * BATCH and size % BATCH
    visited = read(data, 2 * size, batch_size=BATCH)
    for epoch in range(2):
        assert collections.Counter(visited[epoch * size :][:size]) == expected
    assert visited == read(data, 2 * size)


def test_order_differs_between_epochs_and_seeds(dataset: Manifest):
    data, size = opened(dataset), size_of(opened(dataset))
    both = read(data, 2 * size)
    first, second = both[:size], both[size:]
    assert first != second
    assert first != sequences(data)
    assert read(opened(dataset, seed=1), size) != first


def test_sequences_of_different_shards_are_shuffled_together(data: PretrainingData):
    shard_of = {}
    for shard, path in enumerate(data.datasets[0].paths):
        for row in sequences(
            PretrainingData([Dataset("", [path], [0], LENGTH)], LENGTH, AUGMENTATION)
        ):
            shard_of[row] = shard
    group = [shard_of[row] for row in read(data, 8)]
    assert len(set(group)) == 2
    assert group != sorted(group) and group != sorted(group, reverse=True)


def test_a_run_can_be_entered_at_any_batch(data: PretrainingData):
    """Across windows, groups and epochs: what follows is what the run would have had."""
    epoch = size_of(data) // BATCH
    whole = batches(data.training_batches(BATCH), 2 * epoch + 2)
    for start in (1, epoch - 1, 2 * epoch):
        assert_equal(batches(data.training_batches(BATCH, start), 2), whole[start : start + 2])


def test_batches_of_another_size_continue_where_those_before_ended(data: PretrainingData):
    grown = data.training_batches(3, start=3, first_sequence=3 * 2)
    found = [row for batch in batches(grown, 4) for row in rows(batch["token_ids"])]
    assert found == read(data, 3 * 2 + 4 * 3)[3 * 2 :]


def test_masks_and_crops_differ_between_epochs(data: PretrainingData):
    size = size_of(data)
    found = batches(data.training_batches(1), 2 * size)
    augmented = collections.defaultdict(list)
    for batch in found:
        masked = batch["masked_positions"][batch["masked_weights"] > 0]
        augmented[rows(batch["token_ids"])[0]].append(
            (masked.tolist(), batch["crop_token_ids"].tolist())
        )
    assert len(augmented) == size
    differing = [
        sum(first[view] != second[view] for first, second in augmented.values()) / size
        for view in range(2)
    ]
    assert min(differing) > 0.3


def test_masks_are_of_ordinary_tokens_and_of_padding(data: PretrainingData):
    for batch in batches(data.training_batches(BATCH), 10):
        masked = np.take_along_axis(batch["token_ids"], batch["masked_positions"], axis=1)
        masked = masked[batch["masked_weights"] > 0]
        assert not np.isin(masked, [0, 1, 2, SPECIAL.mask]).any()
        np.testing.assert_array_equal(batch["padding_mask"], batch["token_ids"] != SPECIAL.pad)


def test_hosts_read_disjoint_shares(data: PretrainingData):
    visited = []
    for host in range(2):
        share = sum(data.datasets[0].records[host::2])
        visited += read(data, share, pipelines=2, pipeline=host)
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
    assert_equal(batches(data.training_batches(BATCH, 9, 2, 1), 2), whole[9:11])


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


def test_validation_is_the_same_at_each_pass(data: PretrainingData):
    dataset = data.validation_batches(BATCH)
    first = batches(dataset)
    assert_equal(first, batches(dataset))
    whole = size_of(data) // BATCH
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


def test_validation_can_be_shortened(data: PretrainingData):
    whole = batches(data.validation_batches(BATCH))
    for limit, count in ((2, 2), (10_000, len(whole))):
        dataset = data.validation_batches(BATCH, limit)
        assert_equal(batches(dataset), whole[:count])
        assert int(dataset.cardinality()) == count


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
    data = PretrainingData.open(
        dataset.directory + "/data-0000[24]-*.tfrecord", LENGTH, AUGMENTATION
    )
    assert [Path(path).name[:10] for path in data.datasets[0].paths] == ["data-00002", "data-00004"]
    assert data.datasets[0].records == [dataset.shards[2].sequences, dataset.shards[4].sequences]
    size = size_of(data)
    assert collections.Counter(read(data, size)) == collections.Counter(sequences(data))


def test_compressed_shards_give_the_same_batches(make_dataset, tmp_path: Path):
    plain = opened(make_dataset())
    packed = opened(make_dataset(compress=True, output_dir=str(tmp_path / "packed")))
    assert packed.datasets[0].paths[0].endswith(".gz")
    assert_equal(
        batches(plain.training_batches(BATCH), 5), batches(packed.training_batches(BATCH), 5)
    )


def test_a_wider_batch_is_padded(dataset: Manifest):
    wide = PretrainingData.open(dataset.directory, 2 * LENGTH, AUGMENTATION)
    (batch,) = batches(wide.training_batches(BATCH), 1)
    assert batch["token_ids"].shape == (BATCH, 2 * LENGTH)
    assert (batch["token_ids"][:, LENGTH:] == SPECIAL.pad).all()


def test_shards_may_be_in_a_store(dataset: Manifest, data: PretrainingData):
    for path in Path(dataset.directory).iterdir():
        tf.io.gfile.copy(str(path), f"ram://pipeline/{path.name}", overwrite=True)
    remote = PretrainingData.open("ram://pipeline", LENGTH, AUGMENTATION)
    assert_equal(
        batches(remote.training_batches(BATCH, 3), 3), batches(data.training_batches(BATCH, 3), 3)
    )


@pytest.mark.parametrize("pattern", ["", "/*.tfrecord"])
def test_missing_data_is_named(tmp_path: Path, pattern: str):
    with pytest.raises(UserError, match=str(tmp_path)):
        PretrainingData.open(str(tmp_path) + pattern, LENGTH, AUGMENTATION)


def test_too_few_shards_for_the_hosts_are_refused(data: PretrainingData):
    with pytest.raises(UserError, match="5 shards do not suffice for 6 hosts.*--num_shards=6"):
        data.training_batches(BATCH, pipelines=6)


def test_too_few_sequences_to_validate_on_are_refused(data: PretrainingData):
    size = size_of(data)
    with pytest.raises(UserError, match=f"has {size} sequences, too few .* batches of {size + 1}"):
        data.validation_batches(size + 1)
    assert len(batches(data.validation_batches(size))) == 1


# Several datasets.


@pytest.fixture
def mixed(make_dataset, tmp_path: Path) -> PretrainingData:
    """Two datasets whose sequences tell where they are from, one of them longer."""
    for name, count in (("wiki", 30), ("books", 12)):
        documents = [f"{name}{index}a {name}{index}b " * 3 for index in range(count)]
        make_dataset(documents, num_shards=3, output_dir=str(tmp_path / name))
    return PretrainingData.open(
        f"{tmp_path}/wiki=0.7,{tmp_path}/books=0.3", LENGTH, AUGMENTATION, seed=3
    )


def test_a_mixture_can_be_entered_at_any_batch(mixed: PretrainingData):
    whole = batches(mixed.training_batches(BATCH), 25)
    for start in (3, 11):
        assert_equal(batches(mixed.training_batches(BATCH, start), 3), whole[start : start + 3])


def test_each_dataset_of_a_mixture_has_epochs_of_its_own(mixed: PretrainingData):
    """And what is counted is what was read."""
    count = 30
    visited = read(mixed, count * BATCH, batch_size=BATCH)
    counted = mixed.sequences_by_dataset(BATCH * count)
    assert sum(counted.values()) == count * BATCH
    for dataset in mixed.datasets:
        alone = PretrainingData([dataset], LENGTH, AUGMENTATION)
        own = set(sequences(alone))
        found = [row for row in visited if row in own]
        assert len(found) == counted[dataset.pattern]
        size = len(own)
        for epoch in range(len(found) // size):
            assert set(found[epoch * size :][:size]) == own


@settings(max_examples=20, deadline=None)
@given(
    weights=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=3),
    sequences=st.integers(0, 10**9),
    seed=st.integers(0, 9),
)
def test_shares_are_met_everywhere(weights: list[float], sequences: int, seed: int):
    """To a sequence at the end of every block, and to those of a block within one."""
    block = module.MIXING_BLOCK
    counts = np.array(Mixture(weights, seed).counts(sequences))
    expected = sequences * np.array(weights) / sum(weights)
    assert counts.sum() == sequences
    rounding = sequences * 1e-8 + len(weights)
    assert (abs(counts - expected) <= rounding + (block if sequences % block else 0)).all()
    before = np.array(Mixture(weights, seed).counts(sequences // block * block))
    assert (counts >= before).all()


def test_counts_of_a_mixture_are_those_of_its_choices():
    mixture = Mixture([0.5, 0.2, 0.3], seed=7, pipeline=1)
    choices = list(mixture.choices(0).take(200).as_numpy_iterator())
    for count in (0, 1, 9, 10, 11, 57, 200):
        assert mixture.counts(count) == np.bincount(choices[:count], minlength=3).tolist()
    for count in (9, 57):
        assert list(mixture.choices(count).take(5).as_numpy_iterator()) == choices[count:][:5]


def test_shares_are_exact_in_expectation():
    """Over seeds, also of a first block that is too short for them."""
    counts = [Mixture([0.95, 0.05], seed).counts(module.MIXING_BLOCK)[1] for seed in range(100)]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.5, abs=5 * 0.5 / 10)


def test_mixtures_are_read_from_text():
    assert parse_mixture("wiki=0.7,/b/books=3e-1") == [("wiki", 0.7), ("/b/books", 0.3)]
    for plain in ("data/train", "data/year=2020", "data/*.tfrecord", "a,b"):
        assert parse_mixture(plain) == [(plain, 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wiki=0.7,books", "'books' is no PATH=WEIGHT"),
        ("wiki=0.7,books=0", "needs a weight of more than 0"),
        ("wiki=0.7,wiki=0.3", "wiki twice"),
        (",".join(f"d{i}=1" for i in range(33)), "33 datasets are more than the 32"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_mixture(text)


# Longer sequences than batches have.


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    longest=st.integers(40, 44),
    length=st.integers(3, 50),
)
def test_cutting_keeps_every_token_once(lengths: list[int], longest: int, length: int):
    records = [[0, *range(10, 8 + size), 2] for size in lengths]
    padded = np.array([record + [1] * (longest - len(record)) for record in records], np.int32)
    found, filled = cut(tf.constant(padded), length, SPECIAL)
    count = pieces(longest, length)
    assert found.shape == (len(records) * count, length)
    for number, record in enumerate(records):
        mine = slice(number * count, (number + 1) * count)
        parts = [row[row != 1].tolist() for row in found.numpy()[mine][filled.numpy()[mine]]]
        assert all(part[0] == 0 and part[-1] == 2 and len(part) > 2 for part in parts)
        assert [token for part in parts for token in part[1:-1]] == record[1:-1]
        assert len(parts) == pieces(len(record), length)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def long_dataset(folder: Path, short: int = 0) -> PretrainingData:
    """Records of 18 tokens, but for the last of each shard, for batches of 8."""
    paths, records = [], []
    for shard in range(3):
        path = folder / f"data-{shard:05d}-of-00003.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number in range(6 + shard):
                size = short if short and number == 5 else 16
                first = 1000 * shard + 20 * number + 100
                writer.write(serialize([0, *range(first, first + size), 2]))
        paths.append(str(path))
        records.append(6 + shard)
    return PretrainingData([Dataset(str(folder), paths, records, 18)], 8, AUGMENTATION)


def test_an_epoch_of_cut_sequences_has_every_token_once(tmp_path: Path):
    data = long_dataset(tmp_path)
    size = 3 * 21
    visited = read(data, 2 * size)
    for epoch in range(2):
        tokens = [token for row in visited[epoch * size :][:size] for token in row if token > 2]
        assert len(tokens) == len(set(tokens)) == 21 * 16
    whole = batches(data.training_batches(BATCH), 40)
    for start in (8, 35):
        assert_equal(batches(data.training_batches(BATCH, start), 2), whole[start : start + 2])


def test_pieces_take_the_places_that_short_records_leave(tmp_path: Path):
    data = long_dataset(tmp_path, short=4)
    visited = read(data, 3 * 21)
    assert all(len(set(row) - {0, 1, 2}) for row in visited)
    tokens = {token for row in visited for token in row if token > 2}
    assert len(tokens) == 18 * 16 + 3 * 4


def test_shards_that_were_never_shuffled_are_warned_of(dataset: Manifest, tmp_path: Path, capsys):
    opened(dataset)
    assert capsys.readouterr().err == ""
    copy = str(shutil.copytree(dataset.directory, tmp_path / "copy"))
    parameters = {name: x for name, x in dataset.parameters.items() if name != "break"}
    dataclasses.replace(dataset, directory=copy, parameters=parameters).save()
    PretrainingData.open(copy, LENGTH, AUGMENTATION)
    assert "was built by a version that did not shuffle" in capsys.readouterr().err

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
from data_stand_ins import WordTokenizer, dataset_maker
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf import files
from cocolm_tf.data import shards
from cocolm_tf.data.shards import (
    FILE_NAME,
    Manifest,
    parse,
    resolve_shards,
    serialize,
    shard_name,
    write_shard,
)
from cocolm_tf.errors import UserError


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=12), min_size=1, max_size=8))
def test_parse_gives_back_what_was_serialized_and_pads(rows):
    parsed = parse(tf.constant([serialize(row) for row in rows]), 12, pad_token_id=1)
    assert parsed.dtype == tf.int32
    assert parsed.numpy().tolist() == [row + [1] * (12 - len(row)) for row in rows]


def test_parse_has_a_static_length_in_a_pipeline():
    dataset = tf.data.Dataset.from_tensors([serialize([0, 7, 2])]).map(lambda x: parse(x, 5))
    assert dataset.element_spec.shape.as_list()[1] == 5
    assert next(iter(dataset)).numpy().tolist() == [[0, 7, 2, 1, 1]]


def test_parse_refuses_to_cut():
    dataset = tf.data.Dataset.from_tensors([serialize([0, 7, 8, 2])]).map(lambda x: parse(x, 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="longer than sequence_length=3"):
        next(iter(dataset))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("where", ["{}", "ram://shards"])
def test_a_shard_is_described_as_it_is_written(tmp_path: Path, compress: bool, where: str):
    path = files.join(where.format(tmp_path), shard_name(0, 1, compress))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    size, sha256 = write_shard(path, map(serialize, [[0, 5, 6, 2], [0, 5, 2]]), str(scratch))
    written = path + shards.TEMPORARY_SUFFIX
    records = tf.data.TFRecordDataset(written, compression_type=shards.compression(written))
    assert parse(tf.stack(list(records)), 4).numpy().tolist() == [[0, 5, 6, 2], [0, 5, 2, 1]]
    content = files.read_bytes(written)
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert shards.sha256_of(written) == sha256
    names = files.list_dir(where.format(tmp_path))
    assert files.name(path) not in names and not list(scratch.iterdir())


def test_names():
    assert shard_name(3, 16) == "data-00003-of-00016.tfrecord"
    assert shard_name(3, 16, compress=True) == "data-00003-of-00016.tfrecord.gz"
    assert shards.is_shard("/data/" + shard_name(3, 16, compress=True))
    assert not shards.is_shard("/data/manifest.json")
    assert not shards.is_shard("/data/" + shard_name(3, 16) + shards.TEMPORARY_SUFFIX)


@pytest.mark.parametrize("compress", [False, True])
def test_readable_records_stop_at_damage(tmp_path: Path, compress: bool):
    path = tmp_path / shard_name(0, 1, compress)
    options = tf.io.TFRecordOptions(compression_type=shards.compression(str(path)))
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for index in range(10):
            writer.write(serialize([0, *range(index * 1000, index * 1000 + 9), 2]))
    assert shards.readable_records(str(path)) == (10, True)
    path.write_bytes(path.read_bytes()[:-20])
    count, whole = shards.readable_records(str(path))
    assert count < 10 and not whole


# The manifest.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    with pytest.MonkeyPatch.context() as patch:
        return dataset_maker(patch, str(tmp_path_factory.mktemp("built") / "data"))()


@pytest.fixture
def dataset(built: Manifest, tmp_path: Path) -> Manifest:
    """A copy, which a test may damage."""
    return Manifest.load(shutil.copytree(built.directory, str(tmp_path / "data")))


def test_it_is_loaded_as_it_was_saved(dataset: Manifest):
    assert Manifest.load(dataset.directory) == dataset
    assert Manifest.load(dataset.directory + "/*.tfrecord") == dataset


def test_the_file_states_the_totals(dataset: Manifest):
    fields = json.loads(Path(dataset.directory, FILE_NAME).read_text())
    assert fields["counts"] == dataset.counts
    assert fields["counts"]["sequences"] == sum(shard["sequences"] for shard in fields["shards"])
    assert dataset.counts["documents"] == 60


def test_fill_rate_is_the_share_that_is_not_padding(dataset: Manifest):
    records = tf.data.TFRecordDataset(dataset.paths)
    lengths = [len(example_ids(record)) for record in records]
    assert dataset.fill_rate == pytest.approx(sum(lengths) / (16 * len(lengths)))


def example_ids(record: tf.Tensor) -> list[int]:
    example = tf.train.Example.FromString(record.numpy())
    return list(example.features.feature["token_ids"].int64_list.value)


def test_a_whole_dataset_passes(dataset: Manifest):
    dataset.verify(WordTokenizer())


def test_another_vocabulary_is_refused(dataset: Manifest):
    with pytest.raises(UserError, match="built with another vocabulary.*words0.*other"):
        dataset.verify(WordTokenizer("other"))


def test_a_missing_shard_is_named(dataset: Manifest):
    Path(dataset.paths[1]).unlink()
    with pytest.raises(UserError, match="data-00001-of-00003.tfrecord is missing"):
        dataset.verify(checksums=False)


@pytest.mark.parametrize("checksums", [False, True])
def test_a_truncated_shard_is_named_with_the_record(dataset: Manifest, checksums: bool):
    path = Path(dataset.paths[2])
    path.write_bytes(path.read_bytes()[:-3])
    last = dataset.shards[2].sequences - 1
    with pytest.raises(UserError, match=f"00002-of-00003.*truncated or corrupt at record {last}"):
        dataset.verify(checksums=checksums)


def test_a_flipped_bit_is_found(dataset: Manifest):
    path = Path(dataset.paths[0])
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 1
    path.write_bytes(damaged)
    dataset.verify(checksums=False)
    with pytest.raises(UserError, match="00000-of-00003.*at record 0"):
        dataset.verify()


def test_records_that_were_taken_away_are_found(dataset: Manifest):
    with tf.io.TFRecordWriter(dataset.paths[0]) as writer:
        writer.write(serialize([0, 2]))
    with pytest.raises(UserError, match="has 1 records and not the"):
        dataset.verify()


def test_a_shard_of_another_dataset_is_found(dataset: Manifest):
    with tf.io.TFRecordWriter(dataset.paths[0]) as writer:
        for _ in range(dataset.shards[0].sequences):
            writer.write(serialize([0, 2]))
    with pytest.raises(UserError, match="was altered"):
        dataset.verify()


@pytest.mark.parametrize("pattern", ["", "/*.tfrecord", "/*", "/data-*"])
def test_resolving_finds_all_shards(dataset: Manifest, pattern: str):
    assert resolve_shards(dataset.directory + pattern) == (dataset.paths, dataset)


def test_resolving_takes_a_part(dataset: Manifest):
    paths, _ = resolve_shards(dataset.directory + "/data-0000[01]-*")
    assert paths == dataset.paths[:2]


@pytest.mark.parametrize("pattern", ["/nowhere/*.tfrecord", "/nowhere", "{}/*.txt"])
def test_resolving_nothing_is_refused(dataset: Manifest, pattern: str):
    with pytest.raises(UserError, match="no shard matches"):
        resolve_shards(pattern.format(dataset.directory))


def test_resolving_without_a_manifest_is_refused(dataset: Manifest):
    Path(dataset.directory, FILE_NAME).unlink()
    for pattern in ("", "/*.tfrecord"):
        with pytest.raises(UserError, match="manifest.json does not exist"):
            resolve_shards(dataset.directory + pattern)


def test_resolving_two_datasets_is_refused(dataset: Manifest):
    shutil.copytree(dataset.directory, dataset.directory + "2")
    with pytest.raises(UserError, match="several datasets"):
        resolve_shards(dataset.directory + "*/*.tfrecord")


def test_resolving_a_stray_shard_is_refused(dataset: Manifest):
    shutil.copy(dataset.paths[0], Path(dataset.directory, "data-00000-of-00009.tfrecord"))
    with pytest.raises(UserError, match="data-00000-of-00009.tfrecord is not a shard of"):
        resolve_shards(dataset.directory + "/*.tfrecord")


def test_resolving_the_parent_of_train_and_validation_says_where_to_go(make_dataset, tmp_path):
    make_dataset(num_shards=2, validation_fraction=0.3)
    with pytest.raises(UserError, match="one level below: give .*train"):
        resolve_shards(str(tmp_path / "data"))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format_version": 1, "shards": [{}]}'])
def test_a_damaged_manifest_is_named(dataset: Manifest, content: str):
    Path(dataset.directory, FILE_NAME).write_text(content)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        Manifest.load(dataset.directory)


def test_another_format_version_is_refused(dataset: Manifest):
    file = Path(dataset.directory, FILE_NAME)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 9}))
    with pytest.raises(UserError, match="format version 9, not 1"):
        Manifest.load(dataset.directory)


def test_a_manifest_of_an_earlier_version_is_read(dataset: Manifest):
    file = Path(dataset.directory, FILE_NAME)
    fields = json.loads(file.read_text())
    del fields["cleaning"], fields["parameters"]["break"], fields["parameters"]["cleaning"]
    file.write_text(json.dumps(fields))
    earlier = Manifest.load(dataset.directory)
    assert earlier.shards == dataset.shards and earlier.cleaning == {}
    earlier.verify(WordTokenizer())


def test_a_dataset_may_be_on_a_remote_file_system(make_dataset):
    manifest = make_dataset(output_dir="ram://dataset")
    Manifest.load("ram://dataset").verify()
    assert resolve_shards("ram://dataset/*.tfrecord")[0] == manifest.paths

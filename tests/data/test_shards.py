import hashlib
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf import files
from cocolm_tf.data import shards
from cocolm_tf.data.shards import parse, serialize, shard_name, write_shard


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

"""Shards that cannot be read at once, or not at all."""

import gzip
import re
from pathlib import Path

import pytest
import tensorflow as tf

from cocolm_tf.data import reading as module
from cocolm_tf.data.reading import patiently, read_errors_told, read_records
from cocolm_tf.errors import UserError


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    """So few records are several chunks, and a test does not wait."""
    monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Six shards of 3, 5, 7, ... records."""
    paths = [tmp_path / f"data-{index:05d}-of-00006.tfrecord" for index in range(6)]
    for index, path in enumerate(paths):
        write(path, count(index))
    return paths


def count(index: int) -> int:
    return 3 + 2 * index


def write(path: Path, records: int) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(records):
            writer.write(f"{path.name[5:10]}:{number} {'x' * 20}".encode())


def dataset(paths: list[Path], counts: list[int] | None = None) -> tf.data.Dataset:
    counts = [count(index) for index in range(len(paths))] if counts is None else counts
    return read_records(tf.constant([str(path) for path in paths]), tf.constant(counts, tf.int64))


def read(paths: list[Path], counts: list[int] | None = None) -> list[bytes]:
    return list(dataset(paths, counts).as_numpy_iterator())


def expected(paths: list[Path]) -> list[bytes]:
    names = [str(path) for path in paths]
    return list(tf.data.TFRecordDataset(names, num_parallel_reads=4).as_numpy_iterator())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_shards_are_read_in_turns(shards: list[Path]):
    assert read(shards) == expected(shards)
    assert read(shards) == read(shards)


def test_compressed_shards_are_read_the_same(shards: list[Path], tmp_path: Path):
    packed = [tmp_path / f"{path.name}.gz" for path in shards]
    for path, copy in zip(shards, packed, strict=True):
        copy.write_bytes(gzip.compress(path.read_bytes()))
    names = tf.constant([str(path) for path in packed])
    counts = tf.constant([count(index) for index in range(6)], tf.int64)
    assert list(read_records(names, counts, "GZIP").as_numpy_iterator()) == expected(shards)


def test_a_shard_gives_its_first_records(shards: list[Path]):
    assert read(shards[3:4], [4]) == read(shards[3:4], [9])[:4]
    assert read(shards[:2], [0, 2]) == read(shards[1:2], [5])[:2]


def test_what_is_not_wanted_is_not_read(shards: list[Path]):
    cut(shards[2])
    shards[1].unlink()
    found = read(shards[:3], [3, 0, 6])
    assert len(found) == 9


def test_damage_is_told_with_file_and_record(shards: list[Path], capfd: pytest.CaptureFixture):
    cut(shards[2])
    with pytest.raises(UserError) as caught, read_errors_told():
        read(shards)
    message = str(caught.value)
    assert message.startswith(f"{shards[2]} is truncated or corrupt at record 6 (from 0)")
    assert "data.skip_corrupt=true" in message and "\n" not in message
    waits = re.findall(r"trying again in (\S+) s", capfd.readouterr().err)
    assert waits == ["0.001", "0.002", "0.004", "0.008", "0.016"]


def test_a_missing_file_is_told(shards: list[Path]):
    shards[4].unlink()
    with pytest.raises(UserError) as caught, read_errors_told():
        read(shards)
    assert f"{shards[4]} cannot be read: " in str(caught.value)
    assert "No such file" in str(caught.value)


def test_a_file_with_too_few_records_is_told(shards: list[Path]):
    write(shards[4], 2)
    with pytest.raises(UserError) as caught, read_errors_told():
        read(shards)
    assert f"{shards[4]} could not be read to its end" in str(caught.value)


def test_other_errors_are_left_alone():
    with pytest.raises(tf.errors.InvalidArgumentError, match="something else"), read_errors_told():
        raise tf.errors.InvalidArgumentError(None, None, "something else")


@pytest.mark.parametrize("records", [0, 5])
def test_a_file_that_comes_back_is_read_on(
    shards: list[Path], records: int, monkeypatch: pytest.MonkeyPatch
):
    """Whether it could not be opened or broke off: each record is given once, in its order."""
    wanted, whole, broken = expected(shards), shards[5].read_bytes(), shards[5]
    if records:
        size = len(whole) // count(5)
        broken.write_bytes(whole[: records * size + 3])
    else:
        broken.unlink()
    waits = []

    def come_back(path: tf.Tensor, attempts: tf.Tensor) -> int:
        waits.append(int(attempts))
        if len(waits) == 2:
            broken.write_bytes(whole)
        return int(attempts)

    monkeypatch.setattr(module, "_wait", come_back)
    assert read(shards) == wanted
    assert waits == [1, 2]


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def read() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the store hiccups")
        return "content"

    assert patiently("x.json", read) == "content"
    assert len(calls) == 3
    calls.clear()
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with pytest.raises(UserError, match="x.json cannot be read: the store hiccups."):
        patiently("x.json", read)

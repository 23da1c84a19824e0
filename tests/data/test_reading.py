"""Shards in a shuffled order that can be entered anywhere, and messages on broken ones."""

import gzip
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data import reading as module
from cocolm_tf.data import shards as shard_files
from cocolm_tf.data.reading import ReadingOrder, explain_read_errors
from cocolm_tf.data.shards import with_retries
from cocolm_tf.errors import RestartableError, UserError

COUNTS = (3, 0, 11, 5, 1, 8)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    """So few records are several chunks, windows and groups."""
    monkeypatch.setattr(module, "SHARDS_AT_ONCE", 3)
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "WINDOW", 3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six shards; tests read them only."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def own_shards(tmp_path: Path) -> list[Path]:
    return write_shards(tmp_path)


def write_shards(folder: Path) -> list[Path]:
    paths = [folder / f"data-{index:05d}-of-00006.tfrecord" for index in range(len(COUNTS))]
    for path, count in zip(paths, COUNTS, strict=True):
        write(path, count)
    return paths


def write(path: Path, records: int) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(records):
            writer.write(f"{path.name[5:10]}:{number} {'x' * 20}".encode())


def order(paths: list[Path], **changes) -> ReadingOrder:
    return ReadingOrder([str(path) for path in paths], COUNTS)._replace(**changes)


def windows(paths: list[Path], start: int = 0, **changes) -> list[tuple]:
    """Those of the first epoch."""
    found = order(paths, **changes).windows(start, endless=False)
    return [
        (tuple(seed), int(skip), tuple(records))
        for seed, skip, records in found.as_numpy_iterator()
    ]


def read(paths: list[Path], **changes) -> list[bytes]:
    return [record for _, _, records in windows(paths, **changes) for record in records]


def everything(paths: list[Path]) -> list[bytes]:
    return list(tf.data.TFRecordDataset([str(path) for path in paths]).as_numpy_iterator())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_an_epoch_has_every_record_once(shards: list[Path]):
    first, again, other = (read(shards, seed=seed) for seed in (0, 0, 1))
    assert sorted(first) == sorted(other) == sorted(everything(shards))
    assert first == again != other


def test_shards_are_read_in_turns(shards: list[Path]):
    """A chunk of each, and the next shards only when those are through."""
    for seed in range(2):
        records = read(shards, seed=seed)
        chunks = [records[0][:5]]
        for before, record in zip(records, records[1:], strict=False):
            if record[:5] != before[:5]:
                chunks.append(record[:5])
        first = [shard for shard in chunks if shard in chunks[:3]]
        assert len(set(first)) <= 3
        assert chunks[: len(first)] == first


@settings(max_examples=6, deadline=None)
@given(start=st.integers(1, 80), per_record=st.integers(1, 3), seed=st.integers(0, 3))
def test_reading_can_be_entered_at_any_sequence(
    shards: list[Path], start: int, per_record: int, seed: int
):
    """What follows, seeds included, is the tail of the whole."""

    def sequences(begin: int) -> list[tuple]:
        found = order(shards, per_record=per_record, seed=seed).windows(begin)
        numbered = []
        for place, skip, records in found.take(40).as_numpy_iterator():
            each = [(tuple(place), record) for record in records for _ in range(per_record)]
            numbered += each[int(skip) :]
        return numbered

    whole, tail = sequences(0), sequences(start)
    wanted = whole[start : start + 30]
    assert wanted and tail[: len(wanted)] == wanted


def test_epochs_differ(shards: list[Path]):
    size = sum(COUNTS)
    found = list(order(shards).windows().take(60).as_numpy_iterator())
    records = [record for _, _, window in found for record in window]
    assert sorted(records[:size]) == sorted(records[size : 2 * size])
    assert records[:size] != records[size : 2 * size]
    assert len({tuple(seed) for seed, _, _ in found}) == len(found)


def test_readers_shuffle_differently(shards: list[Path]):
    seeds = [{seed for seed, _, _ in windows(shards, reader=reader)} for reader in range(2)]
    assert not seeds[0] & seeds[1]


def test_compressed_shards_are_read_the_same(shards: list[Path], tmp_path: Path):
    packed = [tmp_path / f"{path.name}.gz" for path in shards]
    for path, copy in zip(shards, packed, strict=True):
        copy.write_bytes(gzip.compress(path.read_bytes()))
    for start in (0, 13):
        assert windows(packed, start) == windows(shards, start)


def test_a_shard_gives_its_first_records(shards: list[Path]):
    counts = (1, 0, 4, 5, 0, 2)
    records = [
        record
        for path, count in zip(shards, counts, strict=True)
        for record in everything([path])[:count]
    ]
    assert sorted(read(shards, counts=counts)) == sorted(records)


def test_what_is_not_wanted_is_not_read(own_shards: list[Path]):
    cut(own_shards[2])
    own_shards[3].unlink()
    assert len(read(own_shards, counts=(3, 0, 10, 0, 1, 8))) == 22


def test_a_reader_is_a_plain_graph(shards: list[Path]):
    """Hosts of remote TPUs run nothing that calls Python."""
    graph = tf.compat.v1.GraphDef.FromString(order(shards).windows()._as_serialized_graph().numpy())
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    operations = {node.op for node in nodes}
    assert {name for name in operations if "TFRecord" in name}
    assert not {name for name in operations if "PyFunc" in name}


def test_the_shards_that_are_being_read_come_first(shards: list[Path]):
    size = sum(COUNTS)
    for start in range(0, 2 * size, 17):
        paths = order(shards).paths_from(start)
        assert sorted(paths) == sorted(map(str, shards))
        ((_, _, records),) = order(shards).windows(start).take(1).as_numpy_iterator()
        first = {Path(path).name[5:10] for path in paths[:3]}
        assert first >= {record[:5].decode() for record in records}


# Errors.


def complaint(paths: list[Path], error: type[BaseException] = UserError) -> str:
    with pytest.raises(error) as caught, explain_read_errors(lambda: map(str, paths)):
        read(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(path: Path, record: int) -> None:
    content = bytearray(path.read_bytes())
    content[record * (len(content) // COUNTS[2]) + 20] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, lambda path: flip(path, 10)])
def test_damage_is_named_with_file_and_record(own_shards: list[Path], damage):
    damage(own_shards[2])
    message = complaint(own_shards)
    assert message.startswith(f"{own_shards[2]} is truncated or corrupt at record 10 (from 0)")
    assert "data.skip_corrupt=true" in message


def test_damage_of_a_compressed_shard_is_named(own_shards: list[Path]):
    packed = []
    for path in own_shards:
        packed.append(path.with_name(path.name + ".gz"))
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    packed[2].write_bytes(packed[2].read_bytes()[:40])
    assert complaint(packed).startswith(f"{packed[2]} ")


def test_a_missing_file_is_named(own_shards: list[Path]):
    own_shards[3].unlink()
    message = complaint(own_shards)
    assert message.startswith(f"{own_shards[3]} cannot be read: ")
    assert "No such file" in message


def test_a_file_with_too_few_records_is_named(own_shards: list[Path]):
    write(own_shards[5], 2)
    assert complaint(own_shards).startswith(f"{own_shards[5]} ends after 2 records, ")


def test_a_file_that_is_back_is_a_reason_to_continue(own_shards: list[Path]):
    """What a network lost for a moment is no mistake: status 75, and the run goes on."""
    with (
        pytest.raises(RestartableError, match="could not be read .* start again with the same"),
        explain_read_errors(lambda: map(str, own_shards)),
    ):
        raise tf.errors.UnavailableError(None, None, f"{own_shards[2]}; connection reset")


@pytest.mark.parametrize("error", [tf.errors.InvalidArgumentError, tf.errors.UnavailableError])
def test_other_errors_are_left_alone(own_shards: list[Path], error):
    with (
        pytest.raises(error, match="something else"),
        explain_read_errors(lambda: map(str, own_shards)),
    ):
        raise error(None, None, "something else")


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_files, "FIRST_WAIT_SECONDS", 0.001)
    calls = []

    def read() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the store hiccups")
        return "content"

    assert with_retries("x.json", read) == "content"
    assert len(calls) == 3
    calls.clear()
    monkeypatch.setattr(shard_files, "ATTEMPTS", 2)
    with pytest.raises(UserError, match="x.json cannot be read: the store hiccups."):
        with_retries("x.json", read)

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data import shuffle
from cocolm_tf.data.packing import NO_SHARD, Part, Record
from cocolm_tf.data.processes import PartRead, Workers
from cocolm_tf.data.shuffle import Run, Runs, merged_examples
from cocolm_tf.errors import UserError

RECORDS = st.lists(
    st.builds(
        Record,
        st.integers(0, 1),
        st.integers(0, 3),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=20),
    )
)
PART = Part(0, ("a",), stamp="now")


def counts_of(records: list[Record]) -> Counter[tuple[int, int, str]]:
    counts = Counter({(*NO_SHARD, "too_short"): 1})
    for record in records:
        counts[record.split, record.shard, "sequences"] += 1
    return counts


def written(folder: str | Path, records: list[Record], chunk: int, stamp: str = "now") -> Run:
    path = os.path.join(folder, f"000000-{chunk:06d}.run")
    return Run.write(path, sorted(records), [(0, chunk, stamp)], counts_of(records))


@settings(max_examples=30, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=9))
def test_merging_gives_each_shard_its_records_in_order(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("runs")
    everything = sorted(record for records in lists for record in records)
    with (
        pytest.MonkeyPatch.context() as patch,
        Runs(str(folder), "recipe", [PART]) as runs,
        Workers(0) as workers,
    ):
        patch.setattr(shuffle, "_MOST_OPEN", 2)
        for chunk, records in enumerate(lists):
            runs.add(written(folder, records, chunk))
        before = runs.counts()
        paths = runs.merge(workers)
        assert len(paths) <= 2 and len(list(folder.glob("*.run"))) == len(paths)
        for place in {record[:2] for record in everything} | {(0, 0)}:
            expected = [record.example for record in everything if record[:2] == place]
            assert list(merged_examples(paths, *place)) == expected
        assert runs.counts() == before
        assert before[*NO_SHARD, "too_short"] == len(lists)
        assert runs.done(PART) == set(range(len(lists)))


def test_a_later_build_finds_what_is_done(tmp_path: Path):
    folder = tmp_path / "runs"
    with Runs(str(folder), ["recipe"], [PART]) as runs:
        runs.add(written(folder, [Record(0, 0, 5, b"x")], 1))
        runs.add_read(PartRead(PART, 2, Counter(bad_records=3)))
        (folder / "000000-000000.run.tmp").write_bytes(b"half")
        (folder / "000000-000007.run").write_bytes(b"")  # As a machine leaves it that went down.
        (folder / "sorted").mkdir()
    with open(folder / "state.json", "a") as file:
        file.write('[0, "now", 9')  # Killed while it wrote.
    with Runs(str(folder), ["recipe"], [PART]) as runs:
        assert runs.done(PART) == {1} and runs.unread() == [PART]
        assert runs.counts()[*NO_SHARD, "bad_records"] == 3
        assert sorted(os.listdir(folder)) == ["000000-000001.run", "state.json"]
        runs.add(written(folder, [], 0))
        assert runs.unread() == []


@pytest.mark.parametrize("change", ["recipe", "stamp", "nothing to go on with"])
def test_what_another_build_left_is_removed(tmp_path: Path, change: str):
    folder = tmp_path / "runs"
    with Runs(str(folder), "recipe", [PART]) as runs:
        runs.add(written(folder, [Record(0, 0, 5, b"x")], 1))
    recipe = {"recipe": "another", "stamp": "recipe"}.get(change)
    part = Part(0, ("a",), stamp="later") if change == "stamp" else PART
    with Runs(str(folder), recipe, [part]) as runs:
        assert len(runs) == 0 and runs.unread() == [part]
        assert os.listdir(folder) == ["state.json"]
    assert not folder.exists()


def test_a_merged_run_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Though the build was killed before the runs that it was merged of were removed."""
    folder = tmp_path / "runs"
    monkeypatch.setattr(shuffle, "_MOST_OPEN", 2)
    with Runs(str(folder), "recipe", [PART]) as runs, Workers(0) as workers:
        for chunk in range(3):
            runs.add(written(folder, [Record(0, 0, chunk, b"x")], chunk))
        runs.merge(workers)
        expected = runs.counts()
        written(folder, [Record(0, 0, 0, b"x")], 0)
    with Runs(str(folder), "recipe", [PART]) as runs:
        assert runs.counts() == expected and len(runs) == 2
        assert not (folder / "000000-000000.run").exists()


def test_one_build_at_a_time_has_a_folder(tmp_path: Path):
    folder = str(tmp_path / "runs")
    second = Runs(folder, "recipe", [PART])
    message = "another build is at work in .*runs"
    with Runs(folder, "recipe", [PART]), pytest.raises(UserError, match=message):
        second.__enter__()
    with Runs(folder, "recipe", [PART]):
        pass


@pytest.mark.parametrize(("limit", "most"), [(8, 4), (shuffle.resource.RLIM_INFINITY, 128)])
def test_as_many_runs_are_open_as_the_system_allows(tmp_path: Path, monkeypatch, limit, most):
    monkeypatch.setattr(shuffle.resource, "getrlimit", lambda kind: (limit, limit))
    with Runs(str(tmp_path / "runs"), "recipe", [PART]) as runs, Workers(0) as workers:
        for chunk in range(9):
            runs.add(written(runs.folder, [], chunk))
        assert len(runs.merge(workers)) == min(9, most - 1)

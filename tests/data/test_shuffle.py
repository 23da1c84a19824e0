import os
import resource
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data import shuffle
from cocolm_tf.data.packing import NO_SHARD, Part, Record
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
    run = Run(os.path.join(folder, f"000000-{chunk:06d}.run"), 0, chunk, stamp)
    run.write(sorted(records), counts_of(records))
    return run


@settings(max_examples=30, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=9))
def test_merging_gives_each_shard_its_records_in_order(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("runs")
    everything = sorted(record for records in lists for record in records)
    with (
        pytest.MonkeyPatch.context() as patch,
        Runs(str(folder), "recipe", [PART]) as runs,
    ):
        patch.setattr(shuffle, "_RECORDS_IN_MEMORY", 8)
        for chunk, records in enumerate(lists):
            runs.add(written(folder, records, chunk))
        for place in {record[:2] for record in everything} | {(0, 0)}:
            expected = [record.example for record in everything if record[:2] == place]
            assert list(merged_examples(runs.paths, *place)) == expected
        counts = runs.counts()
        assert counts[*NO_SHARD, "too_short"] == len(lists)
        assert sum(counts.values()) == len(lists) + len(everything)
        assert runs.done(PART) == set(range(len(lists)))


def test_more_runs_are_merged_than_files_may_be_open(tmp_path: Path):
    paths = [written(tmp_path, [Record(0, 0, 99 - n, b"%d" % n)], n).path for n in range(50)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 9, hard))
        assert list(merged_examples(paths, 0, 0)) == [b"%d" % n for n in reversed(range(50))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_later_build_finds_what_is_done(tmp_path: Path):
    folder = tmp_path / "runs"
    with Runs(str(folder), ["recipe"], [PART]) as runs:
        runs.add(written(folder, [Record(0, 0, 5, b"x")], 1))
        (folder / "000000-000000.run.tmp").write_bytes(b"half")
        (folder / "000000-000007.run").write_bytes(b"")  # As a machine leaves it that went down.
        (folder / "sorted").mkdir()
    with Runs(str(folder), ["recipe"], [PART]) as runs:
        assert runs.done(PART) == {1}
        assert runs.counts()[0, 0, "sequences"] == 1
        assert sorted(os.listdir(folder)) == ["000000-000001.run", "state.json"]


@pytest.mark.parametrize("change", ["recipe", "stamp", "nothing to go on with"])
def test_what_another_build_left_is_removed(tmp_path: Path, change: str):
    folder = tmp_path / "runs"
    with Runs(str(folder), "recipe", [PART]) as runs:
        runs.add(written(folder, [Record(0, 0, 5, b"x")], 1))
    recipe = {"recipe": "another", "stamp": "recipe"}.get(change)
    part = Part(0, ("a",), stamp="later") if change == "stamp" else PART
    with Runs(str(folder), recipe, [part]) as runs:
        assert runs.paths == []
        assert os.listdir(folder) == ["state.json"]
    assert not folder.exists()


def test_one_build_at_a_time_has_a_folder(tmp_path: Path):
    folder = str(tmp_path / "runs")
    second = Runs(folder, "recipe", [PART])
    message = "another build is at work in .*runs"
    with Runs(folder, "recipe", [PART]), pytest.raises(UserError, match=message):
        second.__enter__()
    with Runs(folder, "recipe", [PART]):
        pass

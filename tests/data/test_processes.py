import functools
import itertools
import os
import queue
import time
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from data_stand_ins import Lists

from cocolm_tf.data import processes
from cocolm_tf.data.packing import Part, chunks, parts_of
from cocolm_tf.data.processes import PartRead, Workers
from cocolm_tf.errors import UserError

LISTS = Lists.of(["a", "b", "c"], [], ["d"])


def joined(part: Part, number: int, documents: Sequence[str]) -> str:
    return f"{part.number}.{number} {' '.join(documents)}"


def test_every_chunk_is_worked_on_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "chunks", functools.partial(chunks, size=2))
    with Workers(0, LISTS) as pool:
        results = list(pool.over_chunks(parts_of(LISTS), joined))
    assert [one for one in results if isinstance(one, str)] == ["0.0 a b", "0.1 c", "2.0 d"]
    reads = [one for one in results if isinstance(one, PartRead)]
    assert [(one.part.number, one.chunks) for one in reads] == [(0, 2), (1, 0), (2, 1)]


def test_what_is_done_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "chunks", functools.partial(chunks, size=1))
    with Workers(0, LISTS) as pool:
        done = {0: {0, 2}, 1: {0}, 2: ()}
        results = list(pool.over_chunks(parts_of(LISTS), joined, lambda part: done[part.number]))
    assert [one for one in results if isinstance(one, str)] == ["0.1 b", "2.0 d"]
    assert results[1].chunks == 3


def meet(folder: str, part: Part, number: int, documents: Sequence[str]) -> tuple[int, int]:
    """Goes on when another process has come here, too."""
    Path(folder, str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return number, os.getpid()


def fail(value: int) -> None:
    raise UnpicklableError(value, "more")


def refuse(value: int) -> None:
    raise UserError(f"{value} is refused")


class UnpicklableError(Exception):
    """What pickle cannot make again of its arguments."""

    def __init__(self, value: int, more: str):
        super().__init__(f"{value} is refused")


def test_errors_are_sent_as_they_are_or_described(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_set_up_process", lambda: None)
    tasks, sent = queue.Queue(), []
    sender = types.SimpleNamespace(send=sent.append)
    for function, argument in ((abs, -1), (fail, 2), (Path.touch, Path("/nowhere/file"))):
        tasks.put((functools.partial(processes._call, function, (argument,)), False))
    processes._work(tasks, sender, None)
    processes._work(tasks, sender, None)
    assert sent[:2] == [("result", 1), ("done", None)]
    (_, described), (_, same) = sent[2:]
    assert isinstance(described, RuntimeError) and isinstance(same, FileNotFoundError)
    assert "2 is refused" in str(described) and "cannot be pickled" in str(described)


@pytest.mark.slow
def test_a_single_part_occupies_all_processes(tmp_path: Path):
    document = "many words " * 380_000  # As long as a document may be.
    source = Lists.of([document] * 7)
    with Workers(2, source) as pool:
        results = list(pool.over_chunks(parts_of(source), functools.partial(meet, str(tmp_path))))
        # What is left in them does not harm what comes next, until it fails and one process ends.
        assert sorted(pool.map(abs, [0, -1])) == [0, 1]
        with pytest.raises(UserError, match="^1 is refused"):
            list(pool.map(refuse, [1]))
        with pytest.raises(UserError, match="a worker process ended unexpectedly"):
            list(pool.map(abs, itertools.count()))
    numbers, processes = zip(*(one for one in results if isinstance(one, tuple)), strict=True)
    assert sorted(numbers) == list(range(len(list(chunks(source)))))
    assert len(set(processes)) == 2 and os.getpid() not in processes

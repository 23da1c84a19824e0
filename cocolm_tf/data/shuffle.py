"""An external shuffle: distributes any number of records over shards, each in random order.

Records are kept in *runs*, sorted files: a run for each chunk, written as the chunk is done.
Merging the runs gives each shard its records. The memory that this takes depends neither on the
number of records nor on that of runs.

Runs are kept in a folder of their own until the dataset is complete, so that an interrupted build
resumes with the chunks that have none.
"""

import fcntl
import heapq
import json
import os
import resource
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.packing import NO_SHARD, Part, Record
from cocolm_tf.data.processes import PartRead, Workers
from cocolm_tf.data.shards import COUNTS, TEMPORARY_SUFFIX
from cocolm_tf.errors import UserError

_SUFFIX = ".run"
_STATE = "state.json"
_HEAD = struct.Struct("<QI")  # A record's key and the bytes of its example.
_END = struct.Struct("<QQ")  # The bytes of a run's table and of its text.
_COLUMNS = 3 + len(COUNTS)  # A table's: split, shard, where the shard's records begin, its counts.
_BUFFER = 1 << 18
_MOST_OPEN = 128

Chunk = tuple[int, int, str]  # The number of its part, its own, and the stamp of its part.


@dataclass(frozen=True)
class Run:
    """A file with the sorted records of some chunks."""

    path: str
    chunks: frozenset[Chunk]
    counts: Counter[str] = field(default_factory=Counter)  # those that belong to no shard

    @classmethod
    def write(
        cls,
        path: str,
        records: Iterable[Record],
        chunks: Iterable[Chunk],
        counts: Counter[tuple[int, int, str]],
    ) -> "Run":
        """Writes the sorted records of chunks atomically, with `chunk_sequences`' counts."""
        run = cls(
            path,
            frozenset(chunks),
            Counter({name[2]: count for name, count in counts.items() if name[:2] == NO_SHARD}),
        )
        try:
            with open(path + TEMPORARY_SUFFIX, "wb", _BUFFER) as file:
                run._write(file, records, counts)
        except OSError as error:
            # Python's error of a full disk has no path.
            error.filename = error.filename or path
            raise
        os.replace(path + TEMPORARY_SUFFIX, path)
        return run

    def _write(
        self, file: BinaryIO, records: Iterable[Record], counts: Counter[tuple[int, int, str]]
    ) -> None:
        starts: dict[tuple[int, int], int] = {}
        for split, shard, key, example in records:
            if (split, shard) not in starts:
                starts[split, shard] = file.tell()
            file.write(_HEAD.pack(key, len(example)))
            file.write(example)
        places = sorted({name[:2] for name in counts if name[:2] != NO_SHARD})
        rows = [
            [*place, starts.get(place, 0), *(counts[*place, name] for name in COUNTS)]
            for place in places
        ]
        table = np.array(rows, "<i8").tobytes()
        text = json.dumps([sorted(self.chunks), self.counts]).encode()
        file.write(table + text + _END.pack(len(table), len(text)))

    @classmethod
    def load(cls, path: str) -> "Run":
        """Reads the description at the end of a run's file."""
        with open(path, "rb") as file:
            _, text = _ends(file)
        chunks, counts = json.loads(text)
        return cls(path, frozenset(map(tuple, chunks)), Counter(counts))

    def table(self) -> np.ndarray:
        """The table [places, 3 + len(COUNTS)] int64: split, shard, first byte and counts."""
        with open(self.path, "rb") as file:
            table, _ = _ends(file)
        return np.frombuffer(table, "<i8").reshape(-1, _COLUMNS)

    def all_counts(self) -> Counter[tuple[int, int, str]]:
        """All counts, as `chunk_sequences` gives them."""
        counts = Counter({(*NO_SHARD, name): count for name, count in self.counts.items()})
        for split, shard, _, *values in self.table().tolist():
            counts.update({(split, shard, name): n for name, n in zip(COUNTS, values, strict=True)})
        return counts

    def records(self, place: tuple[int, int] | None = None) -> Iterator[Record]:
        """Reads the records, or those of one split and shard."""
        table = self.table()
        if place is not None:
            table = table[(table[:, 0] == place[0]) & (table[:, 1] == place[1])]
        with open(self.path, "rb", _BUFFER) as file:
            for split, shard, start, *counts in table.tolist():
                file.seek(start)
                for _ in range(counts[COUNTS.index("sequences")]):
                    key, size = _HEAD.unpack(file.read(_HEAD.size))
                    yield Record(split, shard, key, file.read(size))


class Runs:
    """The runs of a build, in a folder that is locked for one build at a time."""

    # `identity`, as JSON, is what decides the content of the runs besides the text: runs of another
    # identity are removed, and runs of other parts or other states of them. None for a build that
    # cannot be resumed. The folder is removed at the end if it holds no runs.

    def __init__(self, folder: str, identity: Any, parts: Sequence[Part]):
        self.folder = folder
        self._identity = json.loads(json.dumps(identity))
        self._parts = {part.number: part for part in parts}
        self._runs: dict[str, Run] = {}
        self._done: dict[int, set[int]] = defaultdict(set)
        self._read: dict[int, PartRead] = {}

    def __enter__(self) -> Self:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._state = open(os.path.join(self.folder, _STATE), "a+")  # noqa: SIM115 It stays open.
        try:
            fcntl.flock(self._state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._state.close()
            raise UserError(f"another build is at work in {self.folder}: wait for it.") from error
        except OSError:  # Not every mounted file system has locks.
            pass
        self._load()
        return self

    def __exit__(self, *exception: object) -> None:
        self._state.close()
        if self._identity is None or not self._runs:
            self.remove()
        else:
            message = "what is done is kept: the same command resumes from"
            print(f"{message} {self.folder}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self._runs)

    def done(self, part: Part) -> set[int]:
        """The numbers of a part's chunks that have runs."""
        return self._done[part.number]

    def unread(self) -> list[Part]:
        """The parts with chunks that have no run, or may have none."""
        return [
            part
            for number, part in self._parts.items()
            if number not in self._read or len(self._done[number]) < self._read[number].chunks
        ]

    def add(self, run: Run) -> None:
        """Registers a run."""
        self._runs[run.path] = run
        for part, number, _ in run.chunks:
            self._done[part].add(number)

    def add_read(self, read: PartRead) -> None:
        """Records that a part was read to its end, for this build and one that resumes it."""
        self._read[read.part.number] = read
        line = [read.part.number, read.part.stamp, read.chunks, read.counts]
        self._state.write(json.dumps(line) + "\n")
        self._state.flush()

    def counts(self) -> Counter[tuple[int, int, str]]:
        """All counts: of `chunk_sequences` and of the sources."""
        total: Counter[tuple[int, int, str]] = Counter()
        for read in self._read.values():
            total.update({(*NO_SHARD, name): count for name, count in read.counts.items()})
        for run in self._runs.values():
            total.update(run.all_counts())
        return total

    def merge(self, workers: Workers) -> list[str]:
        """Merges the runs until a process can have all of them open; returns their paths."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _MOST_OPEN
        if allowed != resource.RLIM_INFINITY:
            limit = max(2, min(limit, allowed // 2))
        while len(self._runs) > limit:
            paths = sorted(self._runs)
            groups = [paths[start : start + limit] for start in range(0, len(paths), limit)]
            for merged in workers.map(_merged, (group for group in groups if len(group) > 1)):
                self._drop(run for run in list(self._runs.values()) if run.chunks < merged.chunks)
                self.add(merged)
        return sorted(self._runs)

    def remove(self) -> None:
        """Removes the runs and the folder."""
        self._runs = {}
        files.remove_tree(self.folder)

    def _load(self) -> None:
        """Loads the valid runs of an interrupted build, and removes all else."""
        self._state.seek(0)
        lines = self._state.read().splitlines()
        if self._identity is None or not lines or _json(lines[0]) != self._identity:
            for name in set(os.listdir(self.folder)) - {_STATE}:
                _remove(os.path.join(self.folder, name))
            self._state.truncate(0)
            self._state.write(json.dumps(self._identity) + "\n")
            self._state.flush()
            return
        stamps = {number: part.stamp for number, part in self._parts.items()}
        for line in map(_json, lines[1:]):
            if line is not None and stamps.get(line[0]) == line[1]:
                number, _, chunks, counts = line
                self._read[number] = PartRead(self._parts[number], chunks, Counter(counts))
        runs = []
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            if name.endswith(_SUFFIX):
                try:
                    runs.append(Run.load(path))
                except (OSError, ValueError, struct.error):  # Truncated by a crash.
                    os.remove(path)
            elif name != _STATE:  # What a process was writing when it was killed.
                _remove(path)
        taken: set[Chunk] = set()
        for run in sorted(runs, key=lambda run: len(run.chunks), reverse=True):
            is_current = all(stamps.get(part) == stamp for part, _, stamp in run.chunks)
            # Otherwise it was merged, and the build killed before it was removed.
            if is_current and not run.chunks <= taken:
                self.add(run)
                taken |= run.chunks
            else:
                os.remove(run.path)

    def _drop(self, runs: Iterable[Run]) -> None:
        for run in runs:
            del self._runs[run.path]
            os.remove(run.path)


def merged_examples(paths: Sequence[str], split: int, shard: int) -> Iterator[bytes]:
    """Yields the examples of a shard from several runs, in their final order."""
    runs = [Run.load(path).records((split, shard)) for path in paths]
    return (record.example for record in heapq.merge(*runs))


def _merged(paths: Sequence[str]) -> Run:
    runs = [Run.load(path) for path in paths]
    counts = sum((run.all_counts() for run in runs), Counter())
    path = f"{paths[0].removesuffix(_SUFFIX)}_{len(paths)}{_SUFFIX}"
    records = heapq.merge(*(run.records() for run in runs))
    return Run.write(path, records, frozenset.union(*(run.chunks for run in runs)), counts)


def _ends(file: BinaryIO) -> tuple[bytes, bytes]:
    """Reads the table and the JSON at the end of a run."""
    file.seek(-_END.size, os.SEEK_END)
    table, text = _END.unpack(file.read(_END.size))
    file.seek(-_END.size - text - table, os.SEEK_END)
    return file.read(table), file.read(text)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        files.remove_tree(path)
    else:
        os.remove(path)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # The build was killed while it wrote the line.
        return None

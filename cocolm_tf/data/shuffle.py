"""An external shuffle: distributes any number of records over shards, each in random order.

Records are kept in *runs*, sorted files: one for each chunk, written as the chunk is done. Merging
the runs gives each shard its records. The memory that this takes does not depend on the number of
records.

Runs are kept in a folder of their own until the dataset is complete, so that an interrupted build
resumes with the chunks that have none.
"""

import fcntl
import heapq
import json
import os
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.packing import NO_SHARD, Part, Record
from cocolm_tf.data.shards import COUNTS, TEMPORARY_SUFFIX
from cocolm_tf.errors import UserError

_SUFFIX = ".run"
_STATE = "state.json"
_HEAD = struct.Struct("<QI")  # A record's key and the bytes of its example.
_END = struct.Struct("<QQ")  # The bytes of a run's table and of its JSON.
_COLUMNS = 3 + len(COUNTS)  # A table's: split, shard, where the shard's records begin, its counts.
_BUFFER = 1 << 18
# How many records a merge holds in memory, over all runs.
_RECORDS_IN_MEMORY = 1 << 16


@dataclass(frozen=True)
class Run:
    """A file with the sorted records of a chunk, and its counts."""

    path: str
    part: int = 0  # the number of the chunk's part
    chunk: int = 0  # its own
    stamp: str = ""  # of its part

    def write(self, records: Iterable[Record], counts: Counter[tuple[int, int, str]]) -> None:
        """Writes the sorted records of a chunk atomically, with `chunk_sequences`' counts."""
        try:
            with open(self.path + TEMPORARY_SUFFIX, "wb", _BUFFER) as file:
                self._write(file, records, counts)
        except OSError as error:
            # Python's error of a full disk has no path.
            error.filename = error.filename or self.path
            raise
        os.replace(self.path + TEMPORARY_SUFFIX, self.path)

    def _write(
        self, file: BinaryIO, records: Iterable[Record], counts: Counter[tuple[int, int, str]]
    ) -> None:
        starts: dict[tuple[int, int], int] = {}
        for split, shard, key, example in records:
            if (split, shard) not in starts:
                starts[split, shard] = file.tell()
            file.write(_HEAD.pack(key, len(example)))
            file.write(example)
        rows = [
            [*place, starts.get(place, 0), *(counts[*place, name] for name in COUNTS)]
            for place in sorted({name[:2] for name in counts} - {NO_SHARD})
        ]
        table = np.array(rows, "<i8").tobytes()
        of_no_shard = {name[2]: count for name, count in counts.items() if name[:2] == NO_SHARD}
        text = json.dumps([self.part, self.chunk, self.stamp, of_no_shard]).encode()
        file.write(table + text + _END.pack(len(table), len(text)))

    @classmethod
    def load(cls, path: str) -> "Run":
        """Reads what a run is of from the end of its file."""
        _, (part, chunk, stamp, _) = _ends(path)
        return cls(path, part, chunk, stamp)

    def counts(self) -> Counter[tuple[int, int, str]]:
        """The counts, as `chunk_sequences` gives them."""
        table, (_, _, _, of_no_shard) = _ends(self.path)
        counts = Counter({(*NO_SHARD, name): count for name, count in of_no_shard.items()})
        for split, shard, _, *values in table.tolist():
            counts.update({(split, shard, name): n for name, n in zip(COUNTS, values, strict=True)})
        return counts


def merged_examples(paths: Sequence[str], split: int, shard: int) -> Iterator[bytes]:
    """Yields the examples of a shard from several runs, in their final order."""
    at_once = max(1, _RECORDS_IN_MEMORY // max(1, len(paths)))
    runs = [_records(path, split, shard, at_once) for path in paths]
    return (example for _, example in heapq.merge(*runs))


def _records(path: str, split: int, shard: int, at_once: int) -> Iterator[tuple[int, bytes]]:
    """Yields the keys and examples of a shard in a run."""
    table, _ = _ends(path)
    rows = table[(table[:, 0] == split) & (table[:, 1] == shard)].tolist()
    for _, _, position, *counts in rows:
        left = counts[COUNTS.index("sequences")]
        while left:
            # Closed in between: there may be more runs than files that a process may have open.
            with open(path, "rb") as file:
                file.seek(position)
                heads = (_HEAD.unpack(file.read(_HEAD.size)) for _ in range(min(left, at_once)))
                records = [(key, file.read(size)) for key, size in heads]
                position = file.tell()
            left -= len(records)
            yield from records


class Runs:
    """The runs of a build, in a folder that is locked for one build at a time."""

    # `identity`, as JSON, is what decides the content of the runs besides the text: runs of another
    # identity are removed, and runs of other parts or other states of them. None for a build that
    # cannot be resumed. The folder is removed at the end if it holds no runs.

    def __init__(self, folder: str, identity: Any, parts: Sequence[Part]):
        self.folder = folder
        self._is_resumable = identity is not None
        self._identity = json.dumps(identity)
        self.parts = parts
        self._runs: list[Run] = []
        self._done: dict[int, set[int]] = defaultdict(set)

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
        if not self._is_resumable or not self._runs:
            self.remove()
        else:
            message = "what is done is kept: the same command resumes from"
            print(f"{message} {self.folder}", file=sys.stderr)

    @property
    def paths(self) -> list[str]:
        """The paths of the runs, sorted."""
        return sorted(run.path for run in self._runs)

    def done(self, part: Part) -> set[int]:
        """The numbers of a part's chunks that have runs."""
        return self._done[part.number]

    def add(self, run: Run) -> None:
        """Registers a run."""
        self._runs.append(run)
        self._done[run.part].add(run.chunk)

    def counts(self) -> Counter[tuple[int, int, str]]:
        """The sums of the runs' counts."""
        total: Counter[tuple[int, int, str]] = Counter()
        for run in self._runs:
            total.update(run.counts())
        return total

    def remove(self) -> None:
        """Removes the runs and the folder."""
        self._runs = []
        files.remove_tree(self.folder)

    def _load(self) -> None:
        """Loads the valid runs of an interrupted build, and removes all else."""
        self._state.seek(0)
        is_resumed = self._is_resumable and self._state.read() == self._identity
        if not is_resumed:
            self._state.truncate(0)
            self._state.write(self._identity)
            self._state.flush()
        stamps = {part.number: part.stamp for part in self.parts}
        for name in set(os.listdir(self.folder)) - {_STATE}:
            path = os.path.join(self.folder, name)
            if is_resumed and name.endswith(_SUFFIX):
                try:
                    run = Run.load(path)
                except (OSError, ValueError, struct.error):  # Truncated by a crash.
                    run = Run(path, part=-1)
                if stamps.get(run.part) == run.stamp:
                    self.add(run)
                    continue
            # Of another build, or what a process was writing when it was killed.
            if os.path.isdir(path):
                files.remove_tree(path)
            else:
                os.remove(path)


def _ends(path: str) -> tuple[np.ndarray, Any]:
    """The table [places, 3 + len(COUNTS)] at the end of a run, and the JSON behind it."""
    with open(path, "rb") as file:
        file.seek(-_END.size, os.SEEK_END)
        table, text = _END.unpack(file.read(_END.size))
        file.seek(-_END.size - text - table, os.SEEK_END)
        rows = np.frombuffer(file.read(table), "<i8").reshape(-1, _COLUMNS)
        return rows, json.loads(file.read(text))

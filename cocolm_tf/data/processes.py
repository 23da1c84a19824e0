"""Runs functions on the chunks of a source, in several processes or in this one.

Idle processes take the next task from one queue. Reading a part is a task: its reader puts the
chunks into the queue as long as there is room in it, and otherwise works on them itself. So many
small parts and a single large one occupy all processes alike, and only a few chunks are in memory
at any time.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from cocolm_tf.data.packing import Part, chunks
from cocolm_tf.data.sources import Source
from cocolm_tf.errors import UserError

# Called with a part, the number of a chunk in it, and the chunk's documents.
ChunkFunction = Callable[[Part, int, Sequence[str]], Any]
# Offers a task to the other processes; says whether one of them will take it.
HandOn = Callable[["Task"], bool]
# Yields its results. In the queue is with each task whether a process handed it on.
Task = Callable[[Source | None, HandOn], Iterator[Any]]

# Queued tasks per process.
_QUEUED_PER_WORKER = 2


@dataclass(frozen=True)
class PartRead:
    """The result of reading a part to its end; its chunks may not be done yet."""

    part: Part
    chunks: int  # their number
    counts: Counter[str]  # of its source


class Workers:
    """A pool of processes; with none, the calling process does everything."""

    # `source` is what `over_chunks` reads; None where only `map` is called.

    def __init__(self, number: int, source: Source | None = None):
        self._source = source
        # A fork of a process in which TensorFlow has started hangs.
        context = multiprocessing.get_context("spawn")
        self._queue = context.Queue(_QUEUED_PER_WORKER * number) if number else None
        self._processes, self._connections = [], []
        for _ in range(number):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(self._queue, sender, source), daemon=True)
            self._processes.append(process)
            self._connections.append((receiver, sender))

    def __enter__(self) -> Self:
        for process, (_, sender) in zip(self._processes, self._connections, strict=True):
            process.start()
            # With the only other end in the process, its death is the end of what it sends.
            sender.close()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.terminate()
        for process, (receiver, _) in zip(self._processes, self._connections, strict=True):
            process.join()
            receiver.close()
        if self._queue is not None:
            self._queue.close()
            self._queue.cancel_join_thread()

    def over_chunks(
        self,
        parts: Iterable[Part],
        function: ChunkFunction,
        done: Callable[[Part], Collection[int]] = lambda part: (),
    ) -> Iterator[Any]:
        """Yields a function's results for every chunk as they end, and a `PartRead` a part."""
        # The function is picklable. `done` gives the numbers of a part's chunks to leave out.
        return self._run(partial(_read, part, function, frozenset(done(part))) for part in parts)

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        """Calls a function as `map` does, and yields the results as they end."""
        return self._run(
            partial(_call, function, values) for values in zip(*arguments, strict=False)
        )

    def _run(self, tasks: Iterable[Task]) -> Iterator[Any]:
        if self._queue is None:
            for task in tasks:
                yield from task(self._source, lambda task: False)
            return
        tasks = iter(tasks)
        task = next(tasks, None)
        # Tasks from here, and tasks that readers have put into the queue.
        under_way = handed_on = 0
        while task is not None or under_way or handed_on:
            while task is not None and _try_put(self._queue, (task, False)):
                under_way += 1
                task = next(tasks, None)
            for connection in wait([receiver for receiver, _ in self._connections]):
                try:
                    kind, value = connection.recv()
                except EOFError as error:
                    raise UserError(
                        "a worker process ended unexpectedly, most often for want of memory: give "
                        "a smaller --num_workers."
                    ) from error
                if kind == "error":
                    raise value
                if kind == "result":
                    yield value
                elif kind == "done":
                    under_way -= 1
                elif kind == "handed on":
                    handed_on += value


# --- In the processes ---


def _call(
    function: Callable[..., Any], arguments: tuple[Any, ...], source: Source | None, hand_on: HandOn
) -> Iterator[Any]:
    yield function(*arguments)


def _read(
    part: Part, function: ChunkFunction, done: frozenset[int], source: Source, hand_on: HandOn
) -> Iterator[Any]:
    """Reads a part; yields the results of those chunks that no other process takes."""
    total, counts = 0, Counter()
    for number, chunk in enumerate(chunks(part.documents(source, counts))):
        total = number + 1
        task = partial(_call, function, (part, number, chunk))
        if number not in done and not hand_on(task):
            yield from task(source, hand_on)
    yield PartRead(part, total, counts)


def _work(tasks: multiprocessing.Queue, sender: Connection, source: Source | None) -> None:
    """Takes tasks from the queue for ever, and sends pairs of a kind and a value."""
    _set_up_process()

    def hand_on(task: Task) -> bool:
        if has_room := _try_put(tasks, (task, True)):
            sender.send(("handed on", 1))
        return has_room

    try:
        while True:
            task, was_handed_on = tasks.get()
            for result in task(source, hand_on):
                sender.send(("result", result))
            sender.send(("handed on", -1) if was_handed_on else ("done", None))
    except Exception as error:
        sender.send(("error", _picklable(error)))


def _try_put(tasks: multiprocessing.Queue, task: tuple[Task, bool]) -> bool:
    try:
        tasks.put_nowait(task)
    except queue.Full:
        return False
    return True


def _picklable(error: Exception) -> Exception:
    """The error with its traceback as a note, which pickling would lose."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception as problem:  # Pickling runs code of the error's class.
        return RuntimeError(f"{error!r}, which cannot be pickled: {problem!r}")
    return error


def _set_up_process() -> None:
    # On Ctrl-C the calling process cleans up, and stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    # Without this, a worker would outlive a calling process that was killed.
    threading.Thread(target=end_with_parent, daemon=True).start()
    # Slow to import, and only the workers need it.
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")  # Tokenizing would only occupy its memory.

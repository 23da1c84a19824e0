"""Times several programs in one run: each in a process of its own, one at a time, in turn.

A machine's speed changes within minutes. What is timed in turn, round by round, meets the same
changes, so that ratios within a round hold where times do not.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from cocolm_tf.errors import UserError

# On a GPU the contenders share its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# The state of a worker process: the function that it times, and its CPU time while it waited.
_worker = types.SimpleNamespace()


@dataclass(frozen=True)
class Contender:
    """Something to time."""

    name: str
    # Called once, in a process of its own; returns the function to time. It must be picklable, a
    # function of a module or a `functools.partial` of one, and so must what the function returns.
    build: Callable[[], Callable[[], Any]]
    # Variables of that process, set before it imports anything else.
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timings:
    """The times of a contender."""

    first_seconds: float  # Of its function's first call: with tracing and compiling
    first_result: Any
    seconds: list[float]  # Of each round
    results: list[Any]
    # The share of a CPU that its process used while the others had their turns. It should be near
    # 0; threads that wait by spinning would slow the others down.
    waiting_cpu_share: float


def thread_environment(threads: int, intra_op: int | None = None) -> dict[str, str]:
    """The variables that limit the threads of TensorFlow, PyTorch and `tokenizers`."""
    # `intra_op` are those of one operation of TensorFlow's; None for all.
    of_operation = str(threads if intra_op is None else intra_op)
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TF_NUM_INTEROP_THREADS")
    return dict.fromkeys(names, str(threads)) | {"TF_NUM_INTRAOP_THREADS": of_operation}


def alternate(
    contenders: Sequence[Contender],
    rounds: int,
    warmup_calls: int = 1,
    pause: float = 0.5,
    seed: int = 0,
) -> dict[str, Timings]:
    """Times contenders in alternation."""
    # All are built first, and stay in memory until the end. Each is called `1 + warmup_calls`
    # times, then once a round, in an order that is drawn anew for each. Within `pause` seconds the
    # threads of the one whose turn is over, which may spin for a while, go to sleep.
    order, generator = list(contenders), random.Random(seed)
    turns = {contender.name: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        workers = {one.name: stack.enter_context(_process(one)) for one in contenders}
        progress = stack.enter_context(
            tqdm(total=len(contenders) * (1 + rounds), unit="turn", dynamic_ncols=True)
        )

        def call(phase: str, name: str, task: Callable, *arguments: Any) -> Any:
            progress.set_description(f"{phase} {name}")
            try:
                result = workers[name].submit(task, *arguments).result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"the process of {name} ended unexpectedly, most often for want of memory: "
                    "take smaller sizes or fewer contenders."
                ) from error
            progress.update()
            return result

        first = {
            one.name: call("preparing", one.name, _prepare, one.build, warmup_calls)
            for one in contenders
        }
        for _ in range(rounds):
            generator.shuffle(order)
            for one in order:
                time.sleep(pause)
                turns[one.name].append(call("timing", one.name, _turn))
        shares = {name: workers[name].submit(_waiting_cpu_share).result() for name in workers}
    return {
        name: Timings(*first[name], *map(list, zip(*turns[name], strict=True)), shares[name])
        for name in turns
    }


def spread_of_ratios(dividends: Sequence[float], divisors: Sequence[float]) -> dict[str, float]:
    """Divides times round by round; the median and quartiles of the ratios."""
    ratios = np.asarray(dividends) / np.asarray(divisors)
    names = ("first_quartile", "median", "third_quartile")
    return dict(zip(names, np.percentile(ratios, [25, 50, 75]).tolist(), strict=True))


def _process(contender: Contender) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max_workers=1,
        # A fork of a process in which TensorFlow has started hangs.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_set_up_process,
        initargs=(dict(contender.environment),),
    )


# --- In the contender's process ---


def _set_up_process(environment: dict[str, str]) -> None:
    # On Ctrl-C the calling process stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)


def _end_with_parent() -> None:
    # Without this, a worker would outlive a calling process that was killed.
    multiprocessing.parent_process().join()
    os._exit(1)


def _prepare(build: Callable[[], Callable[[], Any]], warmup_calls: int) -> tuple[float, Any]:
    _worker.function = build()
    first = _timed_call()
    for _ in range(warmup_calls):
        _worker.function()
    _worker.waited = _worker.waited_cpu = 0.0
    _start_waiting()
    return first


def _turn() -> tuple[float, Any]:
    _stop_waiting()
    timed = _timed_call()
    _start_waiting()
    return timed


def _timed_call() -> tuple[float, Any]:
    started = time.perf_counter()
    result = _worker.function()
    return time.perf_counter() - started, result


def _waiting_cpu_share() -> float:
    _stop_waiting()
    return _worker.waited_cpu / _worker.waited


def _start_waiting() -> None:
    _worker.waits_since = time.perf_counter(), time.process_time()


def _stop_waiting() -> None:
    since, since_cpu = _worker.waits_since
    _worker.waited += time.perf_counter() - since
    _worker.waited_cpu += time.process_time() - since_cpu

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

# The state of a worker process: the function that it times, and its CPU time while it waited.
_worker = types.SimpleNamespace()


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Args:
        name: Identifies it.
        build: Called once, in a process of its own; returns the function to time. It must be
            picklable, a function of a module or a `functools.partial` of one, and so must what
            the function returns.
        environment: Variables of that process, set before it imports anything else.

    Example:
    ```python
    Contender("product", functools.partial(make_product, width=1024), {"OMP_NUM_THREADS": "2"})
    ```
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timings:
    """The times of one of `alternate`'s contenders.

    Args:
        first_seconds: The time of its function's first call: with tracing and compiling, where
            there is some.
        first_result: What it returned then.
        seconds: The time of each round.
        results: What it returned in each round.
        waiting_cpu_share: The share of a CPU that its process used while the others had their
            turns. It should be near 0; threads that wait by spinning would slow the others down.

    Example:
    ```python
    alternate([one, other], rounds=5)["other"].seconds  # 5 of them
    ```
    """

    first_seconds: float
    first_result: Any
    seconds: list[float]
    results: list[Any]
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
    """Times contenders in alternation.

    All of them are built first and called `1 + warmup_calls` times; then each is called once a
    round, in an order that is drawn anew for each round. Only one is active at any time.

    Args:
        contenders: what to time. All stay in memory until the end.
        rounds: How often each is timed.
        warmup_calls: How often each is called untimed, after its first call.
        pause: Seconds between two turns, in which the threads of the one whose turn is
            over, which may spin for a while, go to sleep.
        seed: Decides the orders.

    Returns:
        The timings by the contenders' names.

    Raises:
        UserError: if a contender's process dies. What else a contender raises is raised.

    Example:
    ```python
    one, other = (Contender(name, builds[name]) for name in ("one", "other"))
    timings = alternate([one, other], rounds=5)
    [a / b for a, b in zip(timings["one"].seconds, timings["other"].seconds)]
    ```
    """
    order, generator = list(contenders), random.Random(seed)
    turns = {contender.name: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        workers = {
            contender.name: stack.enter_context(_Worker(contender)) for contender in contenders
        }
        progress = stack.enter_context(
            tqdm(total=len(contenders) * (1 + rounds), unit="turn", dynamic_ncols=True)
        )
        for name, worker in workers.items():
            progress.set_description(f"preparing {name}")
            worker.prepare(warmup_calls)
            progress.update()
        for _ in range(rounds):
            generator.shuffle(order)
            for contender in order:
                progress.set_description(f"timing {contender.name}")
                time.sleep(pause)
                turns[contender.name].append(workers[contender.name].turn())
                progress.update()
        return {name: worker.timings(turns[name]) for name, worker in workers.items()}


def spread_of_ratios(dividends: Sequence[float], divisors: Sequence[float]) -> dict[str, float]:
    """Divides times round by round; the median and quartiles of the ratios."""
    ratios = np.asarray(dividends) / np.asarray(divisors)
    names = ("first_quartile", "median", "third_quartile")
    quartiles = np.percentile(ratios, [25, 50, 75])
    return {name: float(value) for name, value in zip(names, quartiles, strict=True)}


def describe_spread(spread: dict[str, float], digits: int = 3) -> str:
    """Formats a median and its quartiles."""
    low, middle, high = (
        f"{spread[name]:.{digits}g}" for name in ("first_quartile", "median", "third_quartile")
    )
    return f"{middle} ({low} to {high})"


class _Worker:
    """A contender's process, seen from the calling one."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._executor = ProcessPoolExecutor(
            max_workers=1,
            # A fork of a process in which TensorFlow has started hangs.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_set_up_process,
            initargs=(dict(contender.environment),),
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def prepare(self, warmup_calls: int) -> None:
        self._first = self._call(_prepare, self._contender.build, warmup_calls)

    def turn(self) -> tuple[float, Any]:
        return self._call(_turn)

    def timings(self, turns: list[tuple[float, Any]]) -> Timings:
        seconds, results = (list(column) for column in zip(*turns, strict=True))
        return Timings(*self._first, seconds, results, self._call(_waiting_cpu_share))

    def _call(self, task: Callable, *arguments: Any) -> Any:
        try:
            return self._executor.submit(task, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"the process of {self._contender.name} ended unexpectedly, most often for want "
                "of memory: take smaller sizes or fewer contenders."
            ) from error


# The worker's side.


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
    _worker.waits_since = time.perf_counter()
    _worker.waits_since_cpu = time.process_time()


def _stop_waiting() -> None:
    _worker.waited += time.perf_counter() - _worker.waits_since
    _worker.waited_cpu += time.process_time() - _worker.waits_since_cpu

"""Load of clients that ask one question after the other, and the latency that they see."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


def answer_clients(
    ask: Callable[[str], Any], texts: Sequence[str], clients: int, seconds: float
) -> dict[str, float]:
    """Answers clients for a while, each the next question when the last one is answered."""
    # Drawn by all clients in turn: `next` of a cycle is one step of the interpreter.
    questions = itertools.cycle(texts)
    waits: list[list[float]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(clients + 1)

    def client(own_waits: list[float]) -> None:
        barrier.wait()
        now = time.perf_counter()
        try:
            while now < end and not failures:
                ask(next(questions))
                asked, now = now, time.perf_counter()
                own_waits.append(now - asked)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(own,), daemon=True) for own in waits]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end = start + seconds
    barrier.wait()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    if failures:
        raise failures[0]
    milliseconds = 1000 * np.concatenate(waits)
    quantiles = np.percentile(milliseconds, [50, 95, 99])
    names = ("p50_ms", "p95_ms", "p99_ms")
    return {
        "requests_per_second": len(milliseconds) / elapsed,
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
    }


def texts_of_mixed_lengths(
    words: Iterable[str], count: int, longest: int, seed: int = 0
) -> list[str]:
    """Cuts a stream of words into texts whose lengths are log-uniform."""
    stream = itertools.cycle(words)
    draw = random.Random(seed)
    lengths = (round(longest ** draw.random()) for _ in range(count))
    return [" ".join(itertools.islice(stream, length)) for length in lengths]

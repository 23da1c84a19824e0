"""Runs a benchmark's program, its contenders in this process instead of one each.

To import TensorFlow takes each of them seconds; `alternate` has tests of its own.
"""

import json
import pickle
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import alternation
from benchmarks.alternation import Contender, Timings


def alternate(
    contenders: Sequence[Contender], rounds: int, warmup_calls: int = 1
) -> dict[str, Timings]:
    timings = {}
    for one in contenders:
        function = pickle.loads(pickle.dumps(one)).build()
        first, *_ = [_timed(function) for _ in range(1 + warmup_calls)]
        seconds, results = zip(*(_timed(function) for _ in range(rounds)), strict=True)
        timings[one.name] = Timings(*first, list(seconds), list(results), 0.0)
    return timings


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def run_benchmark(name: str, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """The lines that a program prints, and the JSON that they end with."""
    from programs import ROOT, Program

    done = Program(__file__, timeout=600)(str(ROOT / "scripts" / name), *arguments)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return lines, json.loads(last)


if __name__ == "__main__":
    alternation.alternate = alternate
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

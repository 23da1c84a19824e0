"""Runs programs within the process of a test: what their `main` does, without a process's start.

How a program ends, and what it does with processes of its own, `tests/programs.py` is for.
"""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver

from cocolm_tf.finetuning.run import run_task
from cocolm_tf.jobs import RESULTS_FILENAME, SPEC_FILENAME, Job, write_json
from cocolm_tf.ops import fusion

SCRIPTS = Path(__file__).parents[1] / "scripts"


def call(name: str, *arguments: str) -> str | None:
    """Calls the `main` of a file in `scripts/` with flags, and returns what it does."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name[:-3]}", SCRIPTS / name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with given_flags(lambda: spec.loader.exec_module(module), *arguments):
            return module.main()
    finally:
        del sys.modules[spec.name]


@contextlib.contextmanager
def given_flags(define: Callable[[], None], *arguments: str) -> Iterator[None]:
    """Flags that a function defines, with values from the command line; they are gone after it."""
    before = set(flags.FLAGS)
    try:
        define()
        with flagsaver.flagsaver():
            flags.FLAGS(["program", *arguments])
            yield
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


@contextlib.contextmanager
def without_fusion() -> Iterator[None]:
    """Has fused operations run as they stand, not compiled for each shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "is_compiled", lambda *_: False)
        yield


class InProcessRunner:
    """What `JobRunner` is to an experiment, and to `run_task` its reporter, without processes."""

    def __init__(self, module: str, at_once: int, total: float) -> None:
        assert module == "cocolm_tf.finetuning.run"

    def __enter__(self) -> "InProcessRunner":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def progress(self, share: float, note: str = "") -> None:
        pass

    def run_all(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        return [job.results() or self._run(job) for job in jobs]

    def _run(self, job: Job) -> dict[str, Any]:
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(job.spec, str(folder / SPEC_FILENAME))
        options = dict(job.options) | ({"until": job.until} if job.until else {})
        results = run_task(json.loads(json.dumps(job.spec)), job.folder, self, **options)
        write_json(results, str(folder / RESULTS_FILENAME))
        self.say(f"{job.label}: {results['headline']}")
        return results

"""Runs programs as their users do, each in a process of its own, and says how they end."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Seconds for what does not wait for TensorFlow, on a machine that may be busy.
AT_ONCE = 60
_PROFILE = "import time:"


class Program:
    """A program, which a call with its arguments runs to the end.

    It runs in the working directory of the test, with our code and the packages the test finds.

    Args:
        name: A file in `scripts/`, or a module to run with `python -m`.
        timeout: How many seconds a run may take.

    Example:
    ```python
    report = Program("report.py")
    done = report(f"--model_dir={model_dir}", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "--model_dir" in report.mistakes("--output_dir=out")[-1]
    ```
    """

    def __init__(self, name: str, timeout: float = 300):
        start = [str(ROOT / "scripts" / name)] if name.endswith(".py") else ["-m", name]
        self.command = [sys.executable, *start]
        self.timeout = timeout

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(arguments, self.timeout)

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen:
        """Starts it, silenced unless `how`, which is `subprocess.Popen`'s, tells where to write."""
        how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | how
        return subprocess.Popen([*self.command, *arguments], env=_environment(), **how)

    def help(self) -> str:
        """What it answers to --help, which must not take long."""
        done = self._run(["--help"], AT_ONCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mistakes(self, *arguments: str) -> list[str]:
        """What it says, line by line, when it refuses what it was given.

        That is its last line: TensorFlow, if it was started, may have said something before.
        """
        return _refusal(self._run(arguments, self.timeout))

    def mistakes_before_tensorflow(self, *arguments: str) -> list[str]:
        """What it says, line by line, when it refuses what it was given without TensorFlow."""
        done = self._run(arguments, AT_ONCE, PYTHONPROFILEIMPORTTIME="1")
        # Every program imports absl: without it, this was no profile of imports.
        assert "absl" in done.stderr and "tensorflow" not in done.stderr, done.stderr
        return [line for line in _refusal(done) if not line.startswith(_PROFILE)]

    def _run(
        self, arguments: Sequence[str], timeout: float, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=_environment() | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def _environment() -> dict[str, str]:
    # Whether a package of an extra is there is the same for a test and for what it runs.
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def _refusal(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == "", done.stdout
    return done.stderr.splitlines()

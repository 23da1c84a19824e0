"""Runs programs as their users do, each in a process of its own, and says how they end.

Most of what a program takes is to import TensorFlow. A process of this file has done so once and
forks for each run. It never starts TensorFlow's runtime, which does not survive a fork, and gives
each run the arguments, the environment and the folder that a new process would have.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Seconds for what does not wait for TensorFlow, on a machine that may be busy.
AT_ONCE = 60
_PROFILE = "import time:"
_IMPORTED_ONCE = ("tensorflow", "tensorflow_text", "keras_hub")


class Program:
    """A program, which a call with its arguments runs to the end.

    It runs in the working directory of the test, with our code and the packages the test finds.

    Args:
        name: A file in `scripts/` or its absolute path, or a module to run with `python -m`.
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
        self.name = str(ROOT / "scripts" / name) if name.endswith(".py") else name
        start = [self.name] if name.endswith(".py") else ["-m", name]
        self.command = [sys.executable, *start]
        self.timeout = timeout

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _warm().run(self.name, arguments, self.timeout)

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
        return _refusal(self(*arguments))

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


def run_python(code: str, *arguments: object) -> str:
    """Runs code in a process of its own to its end, and returns what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.py")
        path.write_text(code)
        done = Program(str(path))(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


class _WarmProcess:
    """A process that has imported what takes long, and forks for each program."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, name: str, arguments: Sequence[str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            written = [Path(folder, stream) for stream in ("stdout", "stderr")]
            how = {"environment": _environment(), "folder": os.getcwd()}
            request = {"name": name, "arguments": arguments, "written": list(map(str, written))}
            print(json.dumps(request | how), file=self._process.stdin, flush=True)
            answers = self._process.stdout
            if not select.select([answers], [], [], timeout)[0]:
                os.killpg(self._process.pid, signal.SIGKILL)
                _warm.cache_clear()
                raise subprocess.TimeoutExpired([name, *arguments], timeout)
            status = answers.readline()
            assert status, "the process that forks for each program has ended"
            said = (path.read_text() for path in written)
            return subprocess.CompletedProcess([name, *arguments], int(status), *said)


@functools.cache
def _warm() -> _WarmProcess:
    return _WarmProcess()


def _fork_for_each() -> dict[str, Any]:
    """Returns, in a process of its own each, what is to be run."""
    for line in sys.stdin:
        if not (child := os.fork()):
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def _become(
    name: str,
    arguments: list[str],
    written: list[str],
    environment: dict[str, str],
    folder: str,
) -> None:
    for stream, path in enumerate([os.devnull, *written]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *arguments]
    first = os.path.dirname(name) if name.endswith(".py") else folder
    found = environment["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [first, *found, *(path for path in sys.path[1:] if path not in found)]
    try:
        if name.endswith(".py"):
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        _end["status"] = 0
    except SystemExit as end:
        _end["status"] = end.code or 0
        raise


# What a run ends with, unless it says so: an exception is a failure.
_end = {"status": 1}


def _leave() -> None:
    sys.stdout.flush()
    os._exit(_end["status"])


def _environment() -> dict[str, str]:
    # Whether a package of an extra is there is the same for a test and for what it runs.
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def _refusal(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == "", done.stdout
    return done.stderr.splitlines()


if __name__ == "__main__":
    # The first to be registered, so the last to be called. To take down all of TensorFlow's
    # modules, as Python does from here on, would cost as much as the fork has saved.
    atexit.register(_leave)
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)
    # What was imported stays shared: no run looks for garbage in it.
    gc.freeze()
    _become(**_fork_for_each())

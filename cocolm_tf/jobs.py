"""Jobs: runs in processes of their own, several at once, reported as they go, each done once.

A job has a folder:

    job.json       its spec
    log.txt        the standard error of its process
    results.json   its results, written last: with it, the job is done

and a process, `python -m MODULE FOLDER SLOT SLOTS OPTIONS`, whose module calls `serve`. Importing
TensorFlow takes longer than a short job: one process does so once, and forks for each job.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import queue
import runpy
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.cpus import available_cpus
from cocolm_tf.errors import RestartableError, UserError, refusal
from cocolm_tf.program import RESTARTABLE

SPEC_FILENAME = "job.json"
LOG_FILENAME = "log.txt"
RESULTS_FILENAME = "results.json"

# Where a spec has the fingerprints of the files that the job reads, by their paths.
CONTENT_KEY = "content_fingerprints"
# Where results say how far a job was taken, if not to its end.
UNTIL_KEY = "until"

# The option that says over which devices a job is spread.
STRATEGY_OPTION = "distribution_strategy"

_SECONDS_BETWEEN_REPORTS = 1.0


@dataclasses.dataclass(frozen=True)
class Job:
    """Work that a process of its own does once."""

    folder: str  # Its own: a folder has one `spec`.
    spec: dict[str, Any]  # what to do, as JSON
    label: str  # its name for people
    # Whether its process resumes from all that an earlier one left in the folder. Otherwise an
    # interrupted job begins in a folder that is empty but for `keeps`.
    resumes: bool = False
    keeps: Sequence[str] = ()  # files and folders in it by which an interrupted job resumes
    # Up to which share of its work to take it; 0 for to its end. Results of a job that was not
    # taken as far are partial.
    until: float = 0.0
    # Keyword arguments of the function that `serve` calls, which do not change the results, as the
    # devices.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def results(self) -> dict[str, Any] | None:
        """The results, or None if the job is not done as far as wanted."""
        # Raises UserError for the results of another job, except where they `diverged`: then the
        # user is free to try other settings.
        path = os.path.join(self.folder, RESULTS_FILENAME)
        if not files.is_file(path):
            return None
        before = _read_json(os.path.join(self.folder, SPEC_FILENAME))
        now, results = json.loads(json.dumps(self.spec)), _read_json(path)
        if before != now:
            if results.get("diverged"):
                return None
            raise UserError(
                f"{self.folder} was made with {_difference(before, now)}: give another "
                "--output_dir, or remove that folder to do it again."
            )
        reached = results.get(UNTIL_KEY, 0)
        return results if not reached or 0 < self.until <= reached else None


class JobRunner:
    """Runs jobs in processes, `at_once` at a time, with a line of progress on the terminal."""

    # The processes share the cores and the GPUs. One that dies leaves its job undone; one whose
    # parent dies ends soon. A job that fails for a mistake of the user's leaves nothing.

    def __init__(self, module: str, at_once: int, total: int) -> None:
        self._module = module
        # The process that forks starts with the first job. It imports the module and never starts
        # TensorFlow's runtime, which does not survive a fork.
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload([module])
        self._at_once = at_once
        self._slots: queue.Queue[int] = queue.Queue()
        for slot in range(at_once):
            self._slots.put(slot)
        self._processes: set[BaseProcess] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._made: set[str] = set()
        self._shares: dict[str, float] = {}
        self._bar = tqdm(
            total=total,
            unit="run",
            file=sys.stderr,
            bar_format="{percentage:3.0f}%|{bar:20}| {n:.2f} of {total} runs [{elapsed}]{postfix}",
            # In a log file, a line now and then is enough.
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

    def __enter__(self) -> "JobRunner":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Terminates the processes."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.terminate()
        self._bar.close()

    def run_all(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Runs those jobs that are not done, in order; the results of all. A failure ends all."""
        for job in jobs:
            job.results()  # Raises before any work is begun.
        with concurrent.futures.ThreadPoolExecutor(self._at_once) as pool:
            futures = [pool.submit(self.run, job) for job in jobs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                self.close()  # also where this thread was interrupted
                raise

    def run(self, job: Job) -> dict[str, Any]:
        """Runs a job, when a slot is free, unless it is done; its results. A failure ends all."""
        results = job.results()
        if results is None:
            slot = self._slots.get()
            try:
                self._prepare(job)
                self._wait_for(job, slot)
            except BaseException:
                self.close()
                raise
            finally:
                self._slots.put(slot)
            results = job.results()
        self._show(job, 1.0, results.get("headline", ""))
        self.say(f"{job.label}: {results.get('headline', 'done')}")
        return results

    def say(self, text: str) -> None:
        """Writes lines above the progress, each distinct text once."""
        with self._lock:
            if text not in self._said:
                self._said.add(text)
                self._bar.write(text, file=sys.stderr)

    def _prepare(self, job: Job) -> None:
        # The results first: with them, the job would look done.
        files.remove(os.path.join(job.folder, RESULTS_FILENAME))
        if not job.resumes:
            _clear(job)
        folder = files.absolute(job.folder)
        with self._lock:
            while folder and not files.is_dir(folder):
                self._made.add(folder)
                folder = os.path.dirname(folder)
            files.make_dirs(job.folder)
        write_json(job.spec, os.path.join(job.folder, SPEC_FILENAME))

    def _discard(self, job: Job) -> None:
        """Removes a job's folder, and empty parents that were made for it."""
        files.remove_tree(job.folder)
        folder = os.path.dirname(files.absolute(job.folder))
        with self._lock:
            while folder in self._made and files.remove_empty(folder):
                folder = os.path.dirname(folder)

    def _wait_for(self, job: Job, slot: int) -> None:
        log_path = os.path.join(job.folder, LOG_FILENAME)
        options = json.dumps({**job.options, **({UNTIL_KEY: job.until} if job.until else {})})
        operands = [job.folder, str(slot), str(self._at_once), options]
        with files.open_append(log_path) as log:
            with self._lock:
                if self._closed:
                    raise concurrent.futures.CancelledError
                reader, writer = self._forks.Pipe(duplex=False)
                arguments = (self._module, operands, dict(os.environ), writer, log.name)
                process = self._forks.Process(target=_become, args=arguments)
                process.start()
                self._processes.add(process)
            writer.close()
            mistake = None
            with reader, os.fdopen(os.dup(reader.fileno()), encoding="utf-8") as lines:
                for line in lines:
                    mistake = self._receive(job, line, log) or mistake
            wait([process.sentinel])
            # Starting a process asks all others how they ended, and only one thread may at a time.
            with self._lock:
                process.join()
                self._processes.discard(process)
        if process.exitcode == 0:
            return
        is_resumed = job.resumes or (not mistake and _kept(job))
        if (mistake or self._closed) and not is_resumed:
            self._discard(job)
        if self._closed:
            raise concurrent.futures.CancelledError
        if mistake:
            raise UserError(f"{job.label}: {mistake}")
        if process.exitcode == RESTARTABLE:
            raise RestartableError(
                f"{job.label} was stopped: start again with the same flags to resume."
            )
        if process.exitcode < 0:
            raise UserError(
                f"{job.label} was killed by signal {-process.exitcode}, as when memory runs "
                f"out; {log_path} has what it said. Start again to resume."
            )
        text = files.read_bytes(log_path).decode(errors="replace")
        end = "".join(text.splitlines(keepends=True)[-25:])
        raise RuntimeError(f"{job.label} failed; {log_path} ends:\n{end}")

    def _receive(self, job: Job, line: str, log: Any) -> str | None:
        """Handles a line from a process; returns the user's mistake, if that is what it reports."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            log.write(line)  # Something else that the process printed.
        elif "say" in event:
            self.say(event["say"])
        elif "share" in event:
            self._show(job, event["share"], event["note"])
        return event.get("mistake") if isinstance(event, dict) else None

    def _show(self, job: Job, share: float, note: str) -> None:
        with self._lock:
            self._shares[job.folder] = share
            self._bar.set_postfix_str(f"{job.label}: {note}" if note else job.label, refresh=False)
            self._bar.update(sum(self._shares.values()) - self._bar.n)


class Reporter:
    """Sends reports of a job's process to its parent."""

    def __init__(self) -> None:
        self._last = 0.0

    def progress(self, share: float, note: str = "") -> None:
        """Reports the share of the work that is done; not every call is sent."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_REPORTS:
            self._last = now
            self._send({"share": share, "note": note})

    def say(self, text: str) -> None:
        """Reports a text that is worth a line of its own."""
        self._send({"say": text})

    def mistake(self, text: str) -> None:
        """Reports that the job cannot be done, because of a mistake of the user's."""
        self._send({"mistake": text})

    def _send(self, event: dict[str, Any]) -> None:
        # Fails once the parent is gone, which ends this process too.
        print(json.dumps(event), flush=True)


def serve(do: Callable[..., dict[str, Any]]) -> None:
    """Runs the job that the command line names; a job's module calls it as a program."""
    # `do` gets the spec, the folder and a reporter, and as keywords the options, and `until` if the
    # job has one; it returns the results as JSON, whose `headline`, if any, is shown.
    folder, slot, slots, text = sys.argv[1:]
    options = json.loads(text)
    _take_share(int(slot), int(slots), options.get(STRATEGY_OPTION, "one_device"))
    spec = _read_json(os.path.join(folder, SPEC_FILENAME))
    reporter = Reporter()
    try:
        results = do(spec, folder, reporter, **options)
        write_json(results, os.path.join(folder, RESULTS_FILENAME))
    except UserError as error:
        reporter.mistake(str(error))
        sys.exit(1)
    except RestartableError as error:
        print(error, file=sys.stderr)
        sys.exit(RESTARTABLE)
    except Exception as error:
        if message := refusal(error):
            reporter.mistake(message)
            sys.exit(1)
        raise


def _become(
    module: str, operands: list[str], environment: dict[str, str], writer: Connection, log: str
) -> None:
    """Makes a fork `python -m module`, which writes to the parent and to a log."""
    os.environ.update(environment)
    with writer, files.open_append(log) as file:
        os.dup2(writer.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = [module, *operands]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def write_json(value: Any, path: str) -> None:
    """Writes a JSON file atomically."""
    files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def refuse_another(job: Job) -> None:
    """Refuses a folder with another job, be it done or interrupted."""
    path = os.path.join(job.folder, SPEC_FILENAME)
    if not files.is_file(path):
        return
    before, now = _read_json(path), json.loads(json.dumps(job.spec))
    if before != now:
        raise UserError(
            f"{job.folder} was begun with {_difference(before, now)}: give another --output_dir, "
            "or remove that folder to do it again."
        )


def leave_devices() -> None:
    """Keeps this process off the GPUs, whose memory its jobs need; before TensorFlow is used."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # TensorFlow has initialized them already.
            tf.config.set_visible_devices([], "GPU")


def _take_share(slot: int, slots: int, strategy: str) -> None:
    """Limits this process to its share of the cores and GPUs."""
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return
    if slots > 1:
        tf.config.threading.set_intra_op_parallelism_threads(max(1, available_cpus() // slots))
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        share = gpus[slot::slots] or [gpus[slot % len(gpus)]]
        share = share[:1] if strategy == "one_device" else share
        tf.config.set_visible_devices(share, "GPU")
        for gpu in share:
            tf.config.experimental.set_memory_growth(gpu, True)


def _clear(job: Job) -> None:
    """Empties a job's folder, but for what it resumes by."""
    kept = _kept(job)
    if not kept:
        files.remove_tree(job.folder)
    for name in set(files.list_dir(job.folder)) - set(kept):
        path = os.path.join(job.folder, name)
        (files.remove_tree if files.is_dir(path) else files.remove)(path)


def _kept(job: Job) -> list[str]:
    return [name for name in job.keeps if files.exists(os.path.join(job.folder, name))]


def _read_json(path: str) -> Any:
    try:
        return json.loads(files.read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _difference(before: Any, now: Any, prefix: str = "") -> str:
    """Describes the first value in which two specs differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *now]:
            if before.get(key) != now.get(key):
                if prefix.rpartition(".")[2] == CONTENT_KEY:
                    return f"other content of {key}"
                if key == CONTENT_KEY and key not in before:
                    return "files of which it did not record what they held"
                return _difference(before.get(key), now.get(key), f"{prefix}.{key}".lstrip("."))
    return f"{prefix}={before!r}, not {now!r}"

"""What a run is spread over: its devices, and its processes, one a host.

`Workers` is which of the processes writes and what they agree on, `StopSignal` SIGTERM.
"""

import contextlib
import glob
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from official.common import distribute_utils

from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.losses.replicas import compiles_communication

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")

# How long a TPU may take to answer at all, and to get ready: a large slice takes minutes.
TPU_CONNECT_SECONDS = 10
TPU_READY_SECONDS = 600
# How long the workers wait for each other: hosts of a cluster may start minutes apart.
WORKERS_READY_SECONDS = 600

# The jobs of a cluster whose tasks share a run.
_JOBS = ("chief", "worker")
# Files that reveal an accelerator which TensorFlow silently ignores, and the remedy.
_CUDA = "pip install 'tensorflow[and-cuda]~=2.20.0'"
_TPU_FILES = "/dev/accel[0-9]*"
_UNUSED = {
    "/dev/nvidia[0-9]*": f"it most likely lacks CUDA: {_CUDA}",
    "/dev/dxg": f"it most likely lacks CUDA: {_CUDA}",  # Windows's GPU, in WSL 2
    "/proc/driver/nvidia/version": "if this is a container, start it with --gpus=all",
    _TPU_FILES: "a TPU takes --distribution_strategy=tpu --tpu=local",
}
_TPU_PACKAGE = "pip install --no-deps --force-reinstall tensorflow-tpu==2.20.0 libtpu==0.0.21"

_TF_CONFIG = (
    'TF_CONFIG must be like {"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
    '"task": {"type": "worker", "index": 0}}, with the same cluster and another index on each host'
)


# The errors of a collective operation that waits for a lost worker.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)
_TPU_GONE = (tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.UnavailableError)


def make_strategy(
    name: str, tpu: str = "", worker_timeout: float = WORKERS_READY_SECONDS
) -> tf.distribute.Strategy:
    """Makes the distribution strategy that a flag names.

    `multi_worker_mirrored` reads the environment variable `TF_CONFIG` and waits until all workers
    have called this; it must be the first thing that a program asks of TensorFlow. Where a driver
    shows a GPU or a TPU that goes unused, a warning on standard error names the remedy.

    Args:
        name: One of `STRATEGIES`. Without a GPU, `mirrored` takes the logical CPUs, and says so.
        tpu: The address of a TPU, or `local`, for `tpu`.
        worker_timeout: Seconds that `multi_worker_mirrored` waits for all workers.

    Returns:
        The strategy. One device is a `OneDeviceStrategy`, and one worker is its devices, whatever
        the name.

    Raises:
        UserError: If the name is unknown, its devices are not there, or `TF_CONFIG` is wrong.
        RestartableError: If the workers do not connect, or SIGTERM ends their waiting.

    Example:
    ```python
    with make_strategy("one_device").scope():
        pretrainer = build_pretrainer(config, mask_token_id)
    ```
    """
    if name not in STRATEGIES:
        raise UserError(f"--distribution_strategy is one of {', '.join(STRATEGIES)}, not {name!r}.")
    if name == "tpu":
        return _connect_to_tpu(tpu)
    warn_of_unused_devices()
    if name == "multi_worker_mirrored":
        address, others = _check_tf_config(os.environ.get("TF_CONFIG", ""))
        if others:
            _meet_workers(address, others, worker_timeout)
            return _find_workers()
        name = "mirrored"
    gpus, cpus = (tf.config.list_logical_devices(kind) for kind in ("GPU", "CPU"))
    if name == "mirrored" and not gpus:
        threads = "" if len(cpus) == 1 else f" as {len(cpus)} logical devices"
        print(f"warning: TensorFlow sees no GPU: training on the CPU{threads}.", file=sys.stderr)
    devices = [device.name for device in gpus or cpus]
    if name == "one_device" or len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)


def per_replica_batch(batch_size: int, micro_batches: int, strategy: tf.distribute.Strategy) -> int:
    """One replica's share of the global batch."""
    replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % (replicas * micro_batches):
        raise UserError(
            f"trainer.batch_size={batch_size} does not divide into {replicas} replicas of "
            f"{micro_batches} micro-batches: make it a multiple of {replicas * micro_batches}."
        )
    return batch_size // replicas


def compiles_step(wanted: bool | None, strategy: tf.distribute.Strategy) -> bool:
    """Whether XLA compiles the whole step: `runtime.jit_compile`, None to decide by the devices."""
    # With None, on the GPUs of one host: on a CPU the compiled step is the slower one, several
    # hosts cannot talk to each other in one, and on a TPU the strategy compiles.
    possible = compiles_communication(strategy)
    if wanted and not possible:
        raise UserError(
            "runtime.jit_compile=true compiles the step of one device or of the GPUs of one host: "
            f"set it to false or leave it out for the {strategy.num_replicas_in_sync} replicas of "
            "this strategy."
        )
    if wanted is None:
        return possible and bool(tf.config.list_physical_devices("GPU"))
    return wanted


def warn_of_unused_devices() -> None:
    """Warns on standard error of an accelerator that goes unused, with the remedy."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    # Physical devices: to list the logical ones would start TensorFlow before it knows its cluster.
    if hidden or tf.config.list_physical_devices("GPU"):
        return
    for pattern, advice in _UNUSED.items():
        if found := glob.glob(pattern):
            print(
                f"warning: TensorFlow sees no GPU, though {min(found)} is there: {advice}",
                file=sys.stderr,
            )
            return


def _find_workers() -> tf.distribute.Strategy:
    gpus = len(tf.config.list_physical_devices("GPU"))
    try:
        return distribute_utils.get_distribution_strategy("multi_worker_mirrored", num_gpus=gpus)
    except ValueError as error:
        raise UserError(
            f"--distribution_strategy=multi_worker_mirrored: {_one_line(error)}."
        ) from error
    except tf.errors.OpError as error:
        # A restarted worker may meet others that have not noticed its end yet.
        raise RestartableError(
            f"the workers could not find together ({_one_line(error)}): start all of them again."
        ) from error


def _check_tf_config(text: str) -> tuple[str, list[str]]:
    """The address of this worker, and those of the others."""
    # Unchecked, a mistake here would be a wait without end, or an error inside TensorFlow.
    needed = f"--distribution_strategy=multi_worker_mirrored: {_TF_CONFIG}"
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], _whole_number(task["index"])
        jobs = {job: _addresses(found) for job, found in cluster.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"not {text!r}" if text else "and is not set"
        raise UserError(f"{needed}, {found}.") from error
    if kind not in _JOBS:
        raise UserError(f"{needed}: task.type is chief or worker, not {kind!r}.")
    if others := [job for job in jobs if job not in _JOBS]:
        raise UserError(
            f"{needed}: cluster has {' and '.join(others)}, whom no other waits for: leave out all "
            "but chief and worker."
        )
    if len(jobs.get("chief", [])) > 1:
        raise UserError(f"{needed}: cluster.chief has more than one address.")
    places = jobs.get(kind, [])
    if not 0 <= index < len(places):
        raise UserError(
            f"{needed}: task.index={index}, but cluster.{kind} has {len(places)} addresses."
        )
    addresses = [address for job in _JOBS for address in jobs.get(job, [])]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"{needed}: {address!r} is not of the form host:port.")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"{needed}: an address stands twice in {addresses}.")
    if len(addresses) > 1:
        print(f"{kind} {index} waits for all {len(addresses)} workers.", file=sys.stderr)
    return places[index], [address for address in addresses if address != places[index]]


def _whole_number(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError(f"{value} is no whole number")
    return int(value)


def _addresses(found: Any) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TypeError(f"{found} is no list of addresses")
    return found


def _meet_workers(address: str, others: list[str], seconds: float) -> None:
    """Waits until every other worker has answered."""
    # TensorFlow would wait without end for a worker that never starts, deaf to signals.
    deadline = time.monotonic() + seconds
    # The others find this listener until TensorFlow's own server runs.
    with StopSignal(), _listener(address, backlog=16 + 2 * len(others)):
        while others := [other for other in others if not _answers(other)]:
            if time.monotonic() > deadline:
                missing = ", ".join(others[:5]) + (" and others" if len(others) > 5 else "")
                raise RestartableError(
                    f"nothing answers at {missing} after {seconds:g} seconds: start all workers "
                    "again."
                )
            time.sleep(0.2)


def _listener(address: str, backlog: int) -> socket.socket:
    port = int(address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"TF_CONFIG: port {port} of {address} cannot be listened on ({error.strerror}): end "
            "the program that has it, or give another."
        ) from error


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
        return True
    return False


def _connect_to_tpu(address: str) -> tf.distribute.Strategy:
    if not address:
        raise UserError("--distribution_strategy=tpu needs --tpu=ADDRESS, or --tpu=local.")
    if ":" in address and "://" not in address:
        address = f"grpc://{address}"  # without it, TensorFlow would look for a TPU of this name
    _check_reachable(address)
    outcome: dict[str, Any] = {}

    def connect() -> None:
        try:
            outcome["strategy"] = distribute_utils.get_distribution_strategy(
                "tpu", tpu_address=address
            )
        except Exception as error:  # of TensorFlow's, or of the cloud's client; raised again below
            outcome["error"] = error

    # TensorFlow waits without end for a TPU that does not answer, and cannot be interrupted.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TPU_READY_SECONDS)
    if thread.is_alive():
        raise UserError(f"--tpu={address} was not ready after {TPU_READY_SECONDS} seconds.")
    if "error" in outcome:
        where = "this machine has no TPU" if address == "local" else "there is no such TPU"
        if address == "local" and (found := glob.glob(_TPU_FILES)):
            where = f"TensorFlow sees no TPU, though {min(found)} is there: {_TPU_PACKAGE}"
        error = outcome["error"]
        raise UserError(f"--tpu={address}: {where} ({_one_line(error)}).") from error
    return outcome["strategy"]


def _check_reachable(address: str) -> None:
    """Refuses an address at which nothing answers; TensorFlow looks up names without a port."""
    for part in address.split(","):
        url = urllib.parse.urlsplit(part)
        try:
            host, port = url.hostname, url.port
        except ValueError as error:
            raise UserError(f"--tpu={address}: {error}.") from error
        if not host or not port:
            continue
        try:
            socket.create_connection((host, port), TPU_CONNECT_SECONDS).close()
        except OSError as error:
            raise UserError(
                f"--tpu={address}: nothing answers at {host}:{port} ({error})."
            ) from error


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


class Workers:
    """The processes that share a run. Under most strategies there is one."""

    # Methods in which workers agree are called by all of them, in the same order: each waits for
    # the others.

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self._has_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        self.count, self.index = 1, 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            cluster = resolver.cluster_spec().as_dict()
            chiefs, others = (len(cluster.get(job, [])) for job in ("chief", "worker"))
            self.count = max(1, chiefs + others)
            self.index = (resolver.task_id or 0) + (chiefs if resolver.task_type == "worker" else 0)

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes."""
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any worker."""
        return bool(self._sum(np.int32(flag))) if self.count > 1 else flag

    def sum(self, value: float) -> float:
        """The sum of the workers' values, in float32 where there are several."""
        return float(self._sum(np.float32(value))) if self.count > 1 else value

    def from_chief(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """Gives every worker the chief's arrays, to the bit."""
        if self.count == 1:
            return values
        received = []
        for value in values:
            bits = np.atleast_1d(value).view(np.int32) * np.int32(self.is_chief)
            received.append(self._sum(bits).view(value.dtype).reshape(value.shape))
        return received

    def wait_for_all(self) -> None:
        """Waits until all workers have called it."""
        self.any(False)

    @contextlib.contextmanager
    def lost_worker_errors(self) -> Iterator[None]:
        """Turns the errors of a lost worker or TPU into one that says so."""
        try:
            yield
        except _LOST as error:
            if self.count == 1:
                if self._has_tpu and isinstance(error, _TPU_GONE):
                    raise RestartableError(
                        "the TPU, or a store, does not answer any more: start again with the same "
                        "flags to resume from the last checkpoint. (TensorFlow says: "
                        f"{type(error).__name__})"
                    ) from error
                raise
            found = re.search(r"ollective ops is aborted by: (.+)", str(error))
            reason = found[1] if found else type(error).__name__
            raise RestartableError(
                f"worker {self.index} of {self.count} has lost another one, whose own output says "
                "why it ended: start all of them again with the same flags to resume from the last "
                f"checkpoint. (TensorFlow says: {reason})"
            ) from error

    def _sum(self, value: np.ndarray | np.generic) -> np.ndarray:
        return self._strategy.reduce("SUM", tf.convert_to_tensor(value), axis=None).numpy()


class StopSignal:
    """Handles SIGTERM within a `with` block."""

    # Where there is nothing to save, the signal ends the program at once. Inside `deferred()` it is
    # noted in `received` only, for code that can stop without a loss. Python sees no signal outside
    # its main thread; there this does nothing.

    def __init__(self) -> None:
        self.received = False
        self._is_deferred = False

    def __enter__(self) -> "StopSignal":
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._previous)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only notes the signal within the block."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _receive(self, *_: object) -> None:
        self.received = True
        if not self._is_deferred:
            raise RestartableError(
                "stopped by SIGTERM while there was nothing to save: start again with the same "
                "flags to go on."
            )

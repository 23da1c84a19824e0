"""The devices that a run is spread over."""

import glob
import json
import os
import socket
import sys
import threading
import urllib.parse
from typing import Any

import tensorflow as tf
from official.common import distribute_utils

from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.losses.replicas import compiles_communication

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")

# How long a TPU may take to answer at all, and to get ready: a large slice takes minutes.
TPU_CONNECT_SECONDS = 10
TPU_READY_SECONDS = 600

# The files by which an accelerator shows that TensorFlow passes over in silence, and what to do.
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


def make_strategy(name: str, tpu: str = "") -> tf.distribute.Strategy:
    """Makes the distribution strategy that a flag names.

    `multi_worker_mirrored` reads the environment variable `TF_CONFIG` and waits until all workers
    have called this; it must be the first thing that a program asks of TensorFlow. Where a driver
    shows a GPU or a TPU that goes unused, a warning on standard error says what mends it.

    Args:
        name: one of `STRATEGIES`. Without a GPU, `mirrored` takes the logical CPUs, and says so.
        tpu: the address of a TPU, or `local`, for `tpu`.

    Returns:
        The strategy. One device is a `OneDeviceStrategy`, and one worker is its devices, whatever
        the name.

    Raises:
        UserError: if the name is unknown, its devices are not there, or `TF_CONFIG` is wrong.
        RestartableError: if the workers do not find together.

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
        if _count_workers(os.environ.get("TF_CONFIG", "")) > 1:
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
    """One replica's share of the global batch.

    Raises:
        UserError: if the batch cannot be shared out evenly.

    Example:
    ```python
    per_replica_batch(2048, micro_batches=4, strategy=make_strategy("one_device"))
    ```
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % (replicas * micro_batches):
        raise UserError(
            f"trainer.batch_size={batch_size} does not divide into {replicas} replicas of "
            f"{micro_batches} micro-batches: make it a multiple of {replicas * micro_batches}."
        )
    return batch_size // replicas


def compiles_step(wanted: bool | None, strategy: tf.distribute.Strategy) -> bool:
    """Whether XLA compiles the whole step.

    Args:
        wanted: `runtime.jit_compile`; None to decide by the devices: on the GPUs of one host it
            does. On a CPU the compiled step is the slower one, several hosts cannot talk to each
            other in one, and on a TPU the strategy compiles.
        strategy: the devices.

    Returns:
        Whether to give `jit_compile` to `TrainingStep.compile`.

    Raises:
        UserError: if it is wanted for replicas that are not the GPUs of one host.

    Example:
    ```python
    compiles_step(None, make_strategy("one_device"))
    ```
    """
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
    """Tells on standard error of an accelerator that goes unused, with what mends it."""
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
        # One that was started again may meet others that have not noticed its end yet.
        raise RestartableError(
            f"the workers could not find together ({_one_line(error)}): start all of them again."
        ) from error


def _count_workers(text: str) -> int:
    """How many workers `TF_CONFIG` names.

    What is wrong here would otherwise be a wait for ever, or a trace of TensorFlow's insides.
    """
    needed = f"--distribution_strategy=multi_worker_mirrored: {_TF_CONFIG}"
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        addresses = [address for job in ("chief", "worker") for address in cluster.get(job, [])]
        places = len(cluster.get(kind, []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"not {text!r}" if text else "and is not set"
        raise UserError(f"{needed}, {found}.") from error
    if kind not in ("chief", "worker"):
        raise UserError(f"{needed}: task.type is chief or worker, not {kind!r}.")
    if not 0 <= index < places:
        raise UserError(f"{needed}: task.index={index}, but cluster.{kind} has {places} addresses.")
    for address in addresses:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"{needed}: {address!r} is not of the form host:port.")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"{needed}: an address stands twice in {addresses}.")
    if len(addresses) > 1:
        print(f"{kind} {index} waits for all {len(addresses)} workers.", file=sys.stderr)
    return len(addresses)


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

    # TensorFlow waits for ever for a TPU that does not answer, and cannot be interrupted.
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
    """Tells a wrong address from a slow TPU. A name is looked up by TensorFlow."""
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

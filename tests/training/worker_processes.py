"""Processes that stand for the hosts of one run, and find each other by TF_CONFIG.

They are forks of a process that has imported TensorFlow, which takes longer than a short training.
"""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tf_configs(count: int) -> list[str]:
    """TF_CONFIG of each of several workers, at free ports."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
    for port in ports:
        port.close()
    cluster = {"worker": addresses}
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


def start_worker(
    do: Callable[..., None], tf_config: str, log: Path, *arguments: object
) -> BaseProcess:
    """Starts a process that calls a function and writes its standard error to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distribution_cases", "cocolm_tf.training.pretraining"])
    process = context.Process(target=_work, args=(do, tf_config, str(log), arguments))
    process.start()
    return process


def _work(do: Callable[..., None], tf_config: str, log: str, arguments: tuple) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ["TF_CONFIG"] = tf_config
    os.chdir(ROOT)

    import tensorflow as tf

    # As in conftest.py.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    do(*arguments)

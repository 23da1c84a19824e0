"""Several hosts: processes of this machine that find each other by TF_CONFIG."""

import json
import os
import runpy
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from worker_processes import start_worker, tf_configs

from cocolm_tf.errors import RestartableError
from cocolm_tf.training.config import save_config
from cocolm_tf.training.distribution import StopSignal, Workers

# One worker.


@pytest.mark.parametrize("mirrored_strategy", [2], indirect=True)
def test_most_strategies_have_one(mirrored_strategy: tf.distribute.Strategy):
    for strategy in (mirrored_strategy, tf.distribute.get_strategy()):
        workers = Workers(strategy)
        assert (workers.count, workers.index, workers.is_chief) == (1, 0, True)
        assert workers.any(True) and not workers.any(False)
        assert workers.sum(0.1) == 0.1
        workers.wait_for_all()
        values = [np.float32(1.5)]
        assert workers.from_chief(values) is values


def test_alone_an_error_is_no_loss():
    with (
        pytest.raises(tf.errors.UnavailableError),
        Workers(tf.distribute.get_strategy()).lost_worker_errors(),
    ):
        raise tf.errors.UnavailableError(None, None, "the store is down")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.UnavailableError(None, None, "Socket closed"), RestartableError),
        (tf.errors.InternalError(None, None, "does not compile"), tf.errors.InternalError),
    ],
)
def test_a_tpu_that_is_gone_is_worth_another_start(error: Exception, expected: type):
    workers = Workers(tf.distribute.get_strategy())
    workers._has_tpu = True
    message = "start again|does not compile"
    with pytest.raises(expected, match=message), workers.lost_worker_errors():
        raise error


# SIGTERM.


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_where_nothing_is_to_be_saved_it_ends_at_once():
    with pytest.raises(RestartableError, match="stopped by SIGTERM.*start again"), StopSignal():
        terminate()


def test_where_something_is_it_is_noted():
    with StopSignal() as stop:
        with stop.deferred():
            assert not stop.received
            terminate()
            terminate()
        assert stop.received
        with pytest.raises(RestartableError):
            terminate()


def test_what_was_there_before_comes_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with StopSignal():
            pass
        terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [1]


def test_another_thread_leaves_signals_alone():
    found = []

    def run() -> None:
        with StopSignal() as stop:
            found.append(stop.received)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGTERM) is before


# Several, without the others.


class Together(Workers):
    """One of two workers, the sum over whom a test decides."""

    def __init__(self, index: int, other: np.ndarray):
        self.count, self.index, self._other = 2, index, other
        self.sent: list[np.ndarray] = []

    def _sum(self, value: np.ndarray) -> np.ndarray:
        self.sent.append(value)
        return value + self._other


@pytest.mark.parametrize(("mine", "other"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_any_says_yes(mine: int, other: int):
    assert Together(0, np.int32(other)).any(bool(mine)) is bool(mine or other)


def test_what_all_have_is_added_up():
    assert Together(0, np.float32(2)).sum(1.5) == 3.5


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint32, np.float64])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_what_the_chief_has_arrives_to_the_bit(dtype: type, shape: tuple[int, ...]):
    chiefs = np.random.default_rng(0).integers(1, 9, shape).astype(dtype)
    if dtype is np.float32:
        chiefs = np.where(chiefs > 4, np.float32("nan"), np.float32("-0")).astype(dtype)
    chief, other = Together(0, np.int32(0)), Together(1, np.int32(0))
    (kept,) = chief.from_chief([chiefs])
    other._other = chief.sent[0]
    (received,) = other.from_chief([np.full(shape, 7, dtype)])
    for value in (kept, received):
        assert (value.dtype, value.shape) == (chiefs.dtype, chiefs.shape)
        assert value.tobytes() == chiefs.tobytes()


def test_a_loss_is_reported_in_one_line():
    said = "Graph execution error:\n\nCollective ops is aborted by: worker 1 is gone\nThe error"
    with pytest.raises(RestartableError) as caught, Together(0, np.int32(0)).lost_worker_errors():
        raise tf.errors.UnavailableError(None, None, said)
    message = str(caught.value)
    assert message.startswith("worker 0 of 2 has lost another one")
    assert "start all of them again with the same flags" in message
    assert "worker 1 is gone" in message and "\n" not in message


def test_a_defect_stays_one():
    with (
        pytest.raises(tf.errors.InvalidArgumentError),
        Together(0, np.int32(0)).lost_worker_errors(),
    ):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")


def test_workers_are_counted_chief_first(monkeypatch: pytest.MonkeyPatch):
    cluster = tf.train.ClusterSpec({"chief": ["a:1"], "worker": ["b:1", "c:1"]})
    for kind, task, index in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        resolver = types.SimpleNamespace(cluster_spec=lambda: cluster, task_type=kind, task_id=task)
        strategy = types.SimpleNamespace(cluster_resolver=resolver)
        monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", types.SimpleNamespace)
        workers = Workers(strategy)
        assert (workers.count, workers.index) == (3, index)
        assert workers.is_chief is (kind == "chief")


# Several, as processes.


def pretrain(arguments: list[str]) -> None:
    sys.argv = ["scripts/pretrain.py", *arguments]
    runpy.run_path("scripts/pretrain.py", run_name="__main__")


@pytest.fixture
def start(tiny, corpus, tmp_path: Path) -> Callable[[int], list[BaseProcess]]:
    """Starts two workers. Only the chief's folder is the run's: others need none."""
    intervals = {"log_interval": 10, "validation_interval": 75, "checkpoint_interval": 10}
    # What traces the least.
    config = tiny(objective={"name": "masked_lm"}, trainer={"train_steps": 150} | intervals)
    save_config(config, str(tmp_path / "config.yaml"))

    def start(attempt: int) -> list[BaseProcess]:
        arguments = [
            f"--config_file={tmp_path}/config.yaml",
            f"--train_data={corpus.train}",
            f"--validation_data={corpus.validation}",
            f"--vocabulary={corpus.vocabulary}",
            "--distribution_strategy=multi_worker_mirrored",
        ]
        return [
            start_worker(
                pretrain,
                config,
                tmp_path / f"{index}-{attempt}.err",
                [*arguments, f"--model_dir={tmp_path}/worker-{index}"],
            )
            for index, config in enumerate(tf_configs(2))
        ]

    return start


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_nothing_is_lost(start, tmp_path: Path):
    run = tmp_path / "worker-0"

    def wait_for_step(step: int, chief: BaseProcess, attempt: int) -> None:
        deadline = time.monotonic() + 900
        while max(steps_of(run), default=0) < step:
            assert chief.is_alive() and time.monotonic() < deadline, said(tmp_path, 0, attempt)
            time.sleep(0.02)

    def status(worker: BaseProcess) -> int | None:
        worker.join(600)
        return worker.exitcode

    chief, other = start(attempt=0)
    wait_for_step(10, chief, attempt=0)
    other.kill()
    assert status(chief) == 75, said(tmp_path, 0, 0)
    assert said(tmp_path, 0, 0).splitlines()[-1].startswith("worker 0 of 2 has lost another one")

    # Told to stop, one tells the others.
    chief, other = start(attempt=1)
    wait_for_step(max(steps_of(run)) + 10, chief, attempt=1)
    other.terminate()
    for index, worker in enumerate((chief, other)):
        assert status(worker) == 75, said(tmp_path, index, 1)
        assert "stopped by SIGTERM at step" in said(tmp_path, index, 1).splitlines()[-1]

    for index, worker in enumerate(start(attempt=2)):
        assert status(worker) == 0, said(tmp_path, index, 2)
    steps = [line["step"] for line in lines(run) if line["split"] == "train"]
    assert steps == list(range(10, 151, 10))
    assert [line["step"] for line in lines(run) if line["split"] == "validation"] == [75, 150]
    assert (run / "preset" / "config.json").exists()
    assert not (tmp_path / "worker-1").exists()


def said(folder: Path, index: int, attempt: int) -> str:
    return (folder / f"{index}-{attempt}.err").read_text()


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[int]:
    paths = (run / "checkpoints").glob("ckpt-*.index")
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in paths)

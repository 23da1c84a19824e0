import concurrent.futures
import contextlib
import fnmatch
import json
import os
import re
import signal
import socket
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from programs import Program

from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.training import distribution as module
from cocolm_tf.training.distribution import (
    STRATEGIES,
    compiles_step,
    make_strategy,
    per_replica_batch,
    warn_of_unused_devices,
)


def test_one_device_is_the_first():
    strategy = make_strategy("one_device")
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert strategy.num_replicas_in_sync == 1


def test_mirrored_takes_every_logical_device(capsys: pytest.CaptureFixture):
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    strategy = make_strategy("mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == len(devices)
    if devices[0].device_type == "CPU":
        warning = f"sees no GPU: training on the CPU as {len(devices)} logical devices.\n"
        assert capsys.readouterr().err.endswith(warning)


@pytest.fixture
def one_logical_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else []
    )


@pytest.mark.usefixtures("one_logical_device")
@pytest.mark.parametrize("name", ["one_device", "mirrored", "multi_worker_mirrored"])
def test_one_device_is_one_device_whatever_the_name(monkeypatch: pytest.MonkeyPatch, name: str):
    """Its step is compiled, also where a strategy would merge the replicas' updates."""
    monkeypatch.setenv("TF_CONFIG", tf_config(cluster={"worker": HOSTS[:1]}))
    strategy = make_strategy(name)
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert compiles_step(True, strategy)


@pytest.mark.parametrize(
    ("there", "advice"),
    [
        ("/dev/nvidia0", "/dev/nvidia0 is there: .* pip install 'tensorflow.and-cuda.~=2.20.0'"),
        ("/proc/driver/nvidia/version", "if this is a container, start it with --gpus=all"),
        ("/dev/accel1", "/dev/accel1 is there: a TPU takes .*=tpu --tpu=local"),
    ],
)
def test_an_accelerator_that_goes_unused_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, there: str, advice: str
):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(
        module.glob, "glob", lambda pattern: [there] * fnmatch.fnmatch(there, pattern)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    warn_of_unused_devices()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(advice, line)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as is the user's will
    warn_of_unused_devices()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "Mirrored", "off", "parameter_server"])
def test_another_name_is_refused_with_those_there_are(name: str):
    with pytest.raises(UserError) as caught:
        make_strategy(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in STRATEGIES)


# Several hosts.

HOSTS = ["host0:2222", "host1:2222"]


def tf_config(**changes) -> str:
    config = {"cluster": {"worker": HOSTS}, "task": {"type": "worker", "index": 0}}
    return json.dumps(config | changes)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "and is not set."),
        ("{", "not '{'."),
        ("[]", "not '[]'."),
        ("{}", "not '{}'."),
        (tf_config(task={"type": "worker"}), "not '{"),
        (tf_config(task={"type": "worker", "index": "first"}), "not '{"),
        (tf_config(task={"type": "worker", "index": 2}), "task.index=2, but cluster.worker has 2"),
        (tf_config(task={"type": "worker", "index": -1}), "task.index=-1, but"),
        (tf_config(task={"type": "chief", "index": 0}), "but cluster.chief has 0 addresses"),
        (tf_config(task={"type": "ps", "index": 0}), "task.type is chief or worker, not 'ps'"),
        (tf_config(cluster={"worker": ["host0", HOSTS[1]]}), "'host0' is not of the form host:p"),
        (tf_config(cluster={"worker": ["host0:a", HOSTS[1]]}), "'host0:a' is not of the form"),
        (
            tf_config(cluster={"worker": ["http://a:1", HOSTS[1]]}),
            "'http://a:1' is not of the form",
        ),
        (tf_config(cluster={"worker": ["host0:70000"]}), "'host0:70000' is not of the form"),
        (
            tf_config(cluster={"worker": HOSTS, "ps": ["host2:2222"]}),
            "cluster has ps, whom no other",
        ),
        (tf_config(cluster={"worker": HOSTS, "evaluator": []}), "cluster has evaluator, whom no"),
        (tf_config(cluster={"worker": HOSTS, "chief": ["a:1", "b:1"]}), "chief has more than one"),
        (tf_config(cluster={"worker": []}), "task.index=0, but cluster.worker has 0 addresses"),
        (tf_config(cluster={"worker": "host0:2222"}), "not '{"),
        (tf_config(cluster={"worker": [2222, 2223]}), "not '{"),
        (tf_config(task={"type": "worker", "index": True}), "not '{"),
        (tf_config(cluster={"worker": [HOSTS[0]] * 2}), "an address stands twice in ['host0:2222'"),
    ],
)
def test_a_wrong_tf_config_is_reported(monkeypatch: pytest.MonkeyPatch, text: str, complaint: str):
    """At once, where TensorFlow would wait for ever."""
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError) as caught:
        make_strategy("multi_worker_mirrored")
    message = str(caught.value)
    assert message.startswith("--distribution_strategy=multi_worker_mirrored: TF_CONFIG must be")
    assert complaint in message and "\n" not in message


def test_a_missing_tf_config_is_reported(monkeypatch: pytest.MonkeyPatch):
    """Where TensorFlow would train each host by itself."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="and is not set"):
        make_strategy("multi_worker_mirrored")


@pytest.mark.parametrize("index", [0, "1"])
def test_a_right_tf_config_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, index: int | str, capsys: pytest.CaptureFixture
):
    made = []
    monkeypatch.setattr(
        module.distribute_utils,
        "get_distribution_strategy",
        lambda name, num_gpus: made.append(name),
    )
    cluster = {"chief": ["a:1"], "worker": ["b:1", "[::1]:2"]}
    task = {"type": "worker", "index": index}
    monkeypatch.setenv("TF_CONFIG", tf_config(cluster=cluster, task=task))
    monkeypatch.setattr(module, "_meet_workers", lambda *arguments: made.append(arguments))
    make_strategy("multi_worker_mirrored", worker_timeout=5)
    address, others = ("b:1", ["a:1", "[::1]:2"]) if index == 0 else ("[::1]:2", ["a:1", "b:1"])
    assert made == [(address, others, 5), "multi_worker_mirrored"]
    assert f"worker {index} waits for all 3 workers." in capsys.readouterr().err


def test_workers_that_do_not_find_together_may_be_started_again(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str, num_gpus: int) -> None:
        raise tf.errors.AbortedError(None, None, "worker 1 is unexpectedly another one\n\n[[x]]")

    monkeypatch.setattr(module.distribute_utils, "get_distribution_strategy", fail)
    monkeypatch.setattr(module, "_meet_workers", lambda *arguments: None)
    monkeypatch.setenv("TF_CONFIG", tf_config())
    with pytest.raises(RestartableError, match="find together .worker 1 is .* another one.: start"):
        make_strategy("multi_worker_mirrored")


def test_a_worker_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    with listening() as free, listening() as other:
        pass
    addresses = [f"localhost:{free}", f"localhost:{other}"]
    monkeypatch.setenv("TF_CONFIG", tf_config(cluster={"worker": addresses}))
    with pytest.raises(RestartableError, match=f"answers at localhost:{other} after 0.1 seconds"):
        make_strategy("multi_worker_mirrored", worker_timeout=0.1)


def test_sigterm_ends_the_waiting(monkeypatch: pytest.MonkeyPatch):
    def asked(address: str) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    with listening() as free:
        pass
    monkeypatch.setattr(module, "_answers", asked)
    with pytest.raises(RestartableError, match="stopped by SIGTERM"):
        module._meet_workers(f"localhost:{free}", ["localhost:1"], seconds=60)


def test_a_worker_that_comes_late_is_waited_for():
    with listening() as free, listening() as other:
        pass
    with concurrent.futures.ThreadPoolExecutor() as pool, socket.socket() as late:
        late.bind(("127.0.0.1", other))
        meeting = pool.submit(module._meet_workers, f"localhost:{free}", [f"127.0.0.1:{other}"], 60)
        assert not concurrent.futures.wait([meeting], timeout=0.3).done
        late.listen()
        meeting.result()


def test_a_port_that_another_program_has_is_reported(monkeypatch: pytest.MonkeyPatch):
    with listening() as taken:
        workers = [f"localhost:{taken}", "localhost:1"]  # one alone would listen to nobody
        monkeypatch.setenv("TF_CONFIG", tf_config(cluster={"worker": workers}))
        with pytest.raises(UserError, match=f"port {taken} of localhost:{taken} cannot be listen"):
            make_strategy("multi_worker_mirrored")


# TPUs.


def test_a_tpu_needs_an_address():
    with pytest.raises(UserError, match="--distribution_strategy=tpu needs --tpu=ADDRESS"):
        make_strategy("tpu")


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize("form", ["grpc://127.0.0.1:{}", "127.0.0.1:{}"])
def test_a_tpu_that_is_not_there_is_reported(form: str):
    with listening() as port:
        pass
    address = form.format(port)
    with pytest.raises(UserError) as caught:
        make_strategy("tpu", address)
    complaint = f"--tpu=grpc://127.0.0.1:{port}: nothing answers at 127.0.0.1:{port} ("
    assert str(caught.value).startswith(complaint)


def test_an_address_without_sense_is_reported():
    with pytest.raises(UserError, match="--tpu=grpc://host:99999999: Port out of range"):
        make_strategy("tpu", "host:99999999")


@pytest.mark.parametrize("there", ["", "/dev/accel0"])
def test_a_machine_without_tpu_is_reported(monkeypatch: pytest.MonkeyPatch, there: str):
    monkeypatch.setattr(module.glob, "glob", lambda pattern: [there] * bool(there))
    with pytest.raises(UserError) as caught:
        make_strategy("tpu", "local")
    where = "TensorFlow sees no TPU, though /dev/accel0 is there: pip install --no-deps"
    assert str(caught.value).startswith(
        f"--tpu=local: {where if there else 'this machine has no TPU ('}"
    )
    assert "\n" not in str(caught.value)


def test_a_name_that_nobody_knows_is_reported(monkeypatch: pytest.MonkeyPatch):
    def look_up(name: str, tpu_address: str) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(module.distribute_utils, "get_distribution_strategy", look_up)
    with pytest.raises(UserError, match="--tpu=mine: there is no such TPU .Name or service not"):
        make_strategy("tpu", "mine")


MUTE = """
from cocolm_tf import program
from cocolm_tf.training import distribution
distribution.TPU_READY_SECONDS = 2
program.run(lambda address: distribution.make_strategy("tpu", address), ["address"])
"""


@pytest.mark.slow
def test_a_tpu_that_does_not_answer_is_not_waited_for(tmp_path: Path):
    """In a process of its own, of which a thread waits for ever."""
    (tmp_path / "mute.py").write_text(MUTE)
    with listening() as port:
        start = time.monotonic()
        done = Program(str(tmp_path / "mute.py"))(f"127.0.0.1:{port}")
    assert done.returncode == 1
    complaint = f"--tpu=grpc://127.0.0.1:{port} was not ready after 2 seconds."
    assert done.stderr.splitlines()[-1] == f"error: {complaint}"
    assert time.monotonic() - start > 2


# XLA.


def replicas(count: int, device: str = "CPU", hosts: int = 1) -> tf.distribute.Strategy:
    devices = [f"/device:{device}:{index}" for index in range(count // hosts)]
    return types.SimpleNamespace(
        num_replicas_in_sync=count, extended=types.SimpleNamespace(worker_devices=devices)
    )


@pytest.mark.parametrize(
    ("wanted", "strategy", "gpus", "compiled"),
    [
        (None, replicas(1, "GPU"), 1, True),
        (None, replicas(1), 0, False),
        (None, replicas(2), 0, False),
        (None, replicas(2, "GPU"), 2, True),
        (None, replicas(4, "GPU", hosts=2), 2, False),
        (None, replicas(8, "TPU"), 0, False),
        (True, replicas(1), 0, True),
        (True, replicas(2, "GPU"), 2, True),
        (False, replicas(1, "GPU"), 1, False),
        (False, replicas(2, "GPU"), 2, False),
    ],
)
def test_the_devices_decide_on_compiling(
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool | None,
    strategy: tf.distribute.Strategy,
    gpus: int,
    compiled: bool,
):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * gpus)
    assert compiles_step(wanted, strategy) is compiled


@pytest.mark.parametrize("strategy", [replicas(2), replicas(2, "GPU", hosts=2), replicas(2, "TPU")])
def test_compiling_for_other_replicas_is_refused(strategy: tf.distribute.Strategy):
    with pytest.raises(UserError, match="runtime.jit_compile=true .* for the 2 replicas of this"):
        compiles_step(True, strategy)


# The batch.


@given(share=st.integers(1, 100), micro_batches=st.integers(1, 8), count=st.integers(1, 64))
def test_the_batch_is_shared_out_evenly(share: int, micro_batches: int, count: int):
    batch_size = share * micro_batches * count
    assert per_replica_batch(batch_size, micro_batches, replicas(count)) == share * micro_batches


@given(batch_size=st.integers(-5, 1000), micro_batches=st.integers(1, 8), count=st.integers(1, 64))
def test_a_batch_that_does_not_divide_is_refused(batch_size: int, micro_batches: int, count: int):
    parts = micro_batches * count
    if batch_size > 0 and batch_size % parts == 0:
        assert per_replica_batch(batch_size, micro_batches, replicas(count)) * count == batch_size
        return
    with pytest.raises(UserError, match=f"trainer.batch_size={batch_size} .* multiple of {parts}"):
        per_replica_batch(batch_size, micro_batches, replicas(count))

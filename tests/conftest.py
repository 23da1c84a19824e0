"""What every test session needs before TensorFlow starts, and the strategies tests share."""

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
# XLA compiles a lot for the tests and runs it a few times: LLVM's optimizations do not pay.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import hypothesis
import pytest
import tensorflow as tf
from tensorflow.python.distribute import collective_util, mirrored_run
from tensorflow.python.distribute import mirrored_strategy as mirrored_strategy_module
from tensorflow.python.framework import ops

from cocolm_tf import files
from cocolm_tf.losses import replicas

# However long an example takes on a busy machine, no test is about that.
hypothesis.settings.register_profile("any_time", deadline=None)
hypothesis.settings.load_profile("any_time")

# Four logical CPUs stand in for four accelerators. Devices cannot be split once TensorFlow has
# used them, so this comes before any test module is imported.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


# What Grappler gains, graphs that run a few times do not earn back. Programs have it.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that have slow tests, so that no process is left alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What was imported stays: no search for garbage looks at it."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file together, as --dist=loadfile does, and those of the exports."""
    from xdist.scheduler import LoadFileScheduling

    class ByFixture(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            serving = "tests/serving/"
            return serving if nodeid.startswith(serving) else super()._split_scope(nodeid)

    return ByFixture(config, log)


@pytest.fixture(scope="module", autouse=True)
def _release_graphs() -> Iterator[None]:
    """Lets go of the graphs of a file's tests.

    TensorFlow registers the gradient of each `tf.custom_gradient` that it traces, by a name of its
    own and for good, and with the gradient the graph: 100 MB for every small training.
    """
    yield
    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient")]:
        del registered[name]
    gc.collect()
    gc.freeze()  # compiled functions stay, too


@pytest.fixture
def to_store(tmp_path: Any) -> Callable[[os.PathLike | str], str]:
    """Copies a folder, which may be none, to a store of this process; returns its path there."""

    def copy(folder: os.PathLike | str) -> str:
        target = f"ram://{tmp_path.name}/{files.name(folder)}"
        for name in files.walk(folder):
            files.make_dirs(files.join(target, os.path.dirname(name)))
            files.copy(files.join(folder, name), files.join(target, name))
        return target

    return copy


@pytest.fixture
def mirrored_strategy(request: pytest.FixtureRequest) -> tf.distribute.MirroredStrategy:
    """A MirroredStrategy over two logical CPUs, or over as many as an indirect parameter says.

    `@pytest.mark.parametrize("mirrored_strategy", [2, 4], indirect=True)`
    """
    replicas = getattr(request, "param", 2)
    # The default, TensorFlow's collectives, allows one strategy a process: they number their
    # groups and messages from 1 in every strategy, and a second one's would meet the first's.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


@pytest.fixture
def gpu_strategy(monkeypatch: pytest.MonkeyPatch) -> tf.distribute.MirroredStrategy:
    """What TensorFlow takes for the GPUs of one host. Of its steps there is a program, but no run.

    Two logical CPUs, the strategy's view of which is changed in the two respects that matter to it.
    """
    for module in (mirrored_run, mirrored_strategy_module, replicas):
        monkeypatch.setattr(module, "_is_gpu_device", lambda device: True)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    nccl = collective_util.Options(
        implementation=tf.distribute.experimental.CommunicationImplementation.NCCL
    )
    for launcher in strategy.extended._collective_ops._launchers:
        launcher._options = nccl
    return strategy

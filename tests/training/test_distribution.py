import types

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.errors import UserError
from cocolm_tf.training.distribution import STRATEGIES, make_strategy, per_replica_batch


def test_one_device_is_the_first():
    strategy = make_strategy("one_device")
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert strategy.num_replicas_in_sync == 1


def test_mirrored_takes_every_logical_device():
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    strategy = make_strategy("mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == len(devices)


@pytest.mark.parametrize("name", ["", "Mirrored", "off", "parameter_server"])
def test_another_name_is_refused_with_those_there_are(name: str):
    with pytest.raises(UserError) as caught:
        make_strategy(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in STRATEGIES)


def test_a_tpu_needs_an_address():
    with pytest.raises(UserError, match="--distribution_strategy=tpu needs --tpu=ADDRESS"):
        make_strategy("tpu")


def replicas(count: int) -> tf.distribute.Strategy:
    return types.SimpleNamespace(num_replicas_in_sync=count)


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

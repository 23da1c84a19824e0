import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.losses import weighted_mean


def test_is_the_weighted_mean():
    assert float(weighted_mean([2.0, 4.0, 9.0], [3.0, 1.0, 0.0])) == pytest.approx(2.5)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float16", "bfloat16", "float64"])
def test_takes_weights_of_any_dtype(dtype):
    weights = tf.cast([1, 1, 0], dtype)
    mean = weighted_mean(tf.constant([2.0, 4.0, 9.0]), weights)
    assert mean.dtype == tf.float32
    assert float(mean) == pytest.approx(3.0)


def test_sums_many_float16_weights_without_overflow():
    weights = tf.ones([70_000], tf.float16)  # float16 ends at 65,504
    assert float(weighted_mean(tf.fill([70_000], 2.0), weights)) == pytest.approx(2.0)


def test_without_any_weight_is_zero_with_zero_gradients():
    values = tf.constant([2.0, 4.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        mean = weighted_mean(values, tf.zeros([2]))
    assert mean == 0
    np.testing.assert_array_equal(tape.gradient(mean, values), [0, 0])


def test_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="incompatible"):
        weighted_mean(tf.ones([3]), tf.ones([3, 1]))

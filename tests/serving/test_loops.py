import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.serving.encoder import concatenated

OUTPUTS = (tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 2], tf.string))


@tf.function(input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
def counted(count: tf.Tensor) -> tuple[tf.Tensor, ...]:
    def function(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        numbers = tf.fill([number], number)
        return numbers, tf.fill([number, 2], tf.strings.as_string(number))

    return concatenated(function, count, OUTPUTS)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_joins_parts_of_different_sizes(count: int):
    numbers, strings = counted(count)
    expected = [number for number in range(count) for _ in range(number)]
    assert numbers.numpy().tolist() == expected
    assert strings.shape == (len(expected), 2)
    np.testing.assert_array_equal(strings[:, 1], [str(number).encode() for number in expected])

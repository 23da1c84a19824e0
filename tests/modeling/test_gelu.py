import math

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.ops.elementwise import exact_gelu

X = np.linspace(-6, 6, 97, dtype=np.float32)


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def value_and_gradient(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = exact_gelu(x, tf.zeros(tf.shape(x)[-1:], x.dtype))
        total = tf.reduce_sum(3 * y)
    return y, tape.gradient(total, x)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 1e-2)]
)
def test_equals_the_definition_and_its_slope(dtype, precision):
    x = tf.cast(X, dtype)
    y, gradient = value_and_gradient(x)
    assert y.dtype == gradient.dtype == dtype
    exact = tf.cast(x, tf.float64).numpy()
    slope = [3 * (gelu(v + 1e-5) - gelu(v - 1e-5)) / 2e-5 for v in exact]
    np.testing.assert_allclose(
        tf.cast(y, tf.float64), [gelu(v) for v in exact], rtol=precision, atol=precision
    )
    np.testing.assert_allclose(
        tf.cast(gradient, tf.float64), slope, rtol=precision, atol=4 * precision
    )


@pytest.mark.parametrize("in_graph", [False, True])
def test_bias_is_added_first_and_learns_from_every_row(in_graph):
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    bias = tf.constant([0.5, -1.0, 2.0])

    def run(function, *inputs):
        def value_and_gradients(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = function(*inputs)
                total = tf.reduce_sum(y * tf.range(3.0))
            return y, *tape.gradient(total, inputs)

        return (tf.function(value_and_gradients) if in_graph else value_and_gradients)(*inputs)

    ours = run(exact_gelu, x, bias)
    theirs = run(lambda x, bias: tf.nn.gelu(x + bias, approximate=False), x, bias)
    for actual, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [-1e30, -100.0, 100.0, 1e30])
def test_far_values_are_finite(value):
    y, gradient = value_and_gradient(tf.constant([value]))
    assert y[0] == max(value, 0)
    assert gradient[0] == (3 if value > 0 else 0)


def test_takes_any_shape_in_a_graph():
    function = tf.function(
        value_and_gradient, input_signature=[tf.TensorSpec([None, None])], autograph=False
    )
    y, gradient = function(X[:96].reshape(8, 12))
    np.testing.assert_allclose(y, np.vectorize(gelu)(X[:96].reshape(8, 12)), atol=1e-6)
    assert gradient.shape == (8, 12)

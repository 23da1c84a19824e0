import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.transformer import ResidualNorm
from cocolm_tf.ops.elementwise import dropout_mask, residual_norm

SEED = tf.constant([3, 4])


def reference(x, update, bias, gamma, beta, epsilon, factors):
    total = x + (update + bias) * factors
    centered = total - total.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def operands(*shape, dtype="float32"):
    rng = np.random.default_rng(0)
    width = shape[-1]
    arrays = [rng.normal(size=size) for size in (shape, shape, (width,), (width,), (width,))]
    return [tf.constant(array, dtype) for array in arrays]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 64)])
@pytest.mark.parametrize("in_graph", [False, True])
def test_adds_what_is_kept_and_normalizes(rate, shape, in_graph):
    arguments = operands(*shape)

    def run(*arguments):
        return residual_norm(*arguments, 1e-3, rate, SEED if rate else None)

    factors = dropout_mask(shape, rate, SEED).numpy() if rate else 1.0
    expected = reference(*(a.numpy().astype(np.float64) for a in arguments), 1e-3, factors)
    actual = (tf.function(run) if in_graph else run)(*arguments)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("in_graph", [False, True])
def test_gradients_are_those_of_the_formula(rate, width, in_graph):
    arguments = operands(4, width)
    target = tf.constant(np.random.default_rng(1).normal(size=(4, width)), tf.float32)

    def formula(x, update, bias, gamma, beta):
        total = x + (update + bias) * (dropout_mask(x.shape, rate, SEED) if rate else 1.0)
        mean, variance = tf.nn.moments(total, [-1], keepdims=True)
        return (total - mean) * tf.math.rsqrt(variance + 1e-3) * gamma + beta

    def ours(*arguments):
        return residual_norm(*arguments, 1e-3, rate, SEED if rate else None)

    def gradients(function):
        def run(*arguments):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                total = tf.reduce_sum(function(*arguments) * target)
            return tape.gradient(total, arguments)

        return (tf.function(run) if in_graph else run)(*arguments)

    for actual, expected in zip(gradients(ours), gradients(formula), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_in_float32(dtype):
    # The sum of squares of these exceeds what float16 can hold.
    x, update, bias, gamma, beta = operands(4, 64, dtype=dtype)
    x *= 300
    actual = residual_norm(x, update, bias, gamma, beta, 1e-5, 0.0, None)
    assert actual.dtype == dtype
    wide = (tf.cast(a, tf.float64).numpy() for a in (x, update, bias, gamma, beta))
    np.testing.assert_allclose(tf.cast(actual, tf.float64), reference(*wide, 1e-5, 1.0), atol=0.05)


def test_layer_is_layer_normalization_where_nothing_is_added():
    random.seed(0)
    layer, theirs = ResidualNorm(epsilon=1e-5), keras.layers.LayerNormalization(epsilon=1e-5)
    x = tf.random.stateless_normal([3, 16], [1, 2])
    np.testing.assert_allclose(layer(x, tf.zeros_like(x)), theirs(x), atol=1e-5)
    assert [w.name for w in layer.weights] == [w.name for w in theirs.weights]


def test_layer_drops_at_its_rate():
    layer, x = ResidualNorm(rate=0.3), tf.random.stateless_normal([3, 16], [1, 2])
    np.testing.assert_array_equal(
        layer(x, x, seed=SEED),
        residual_norm(x, x, None, tf.ones([16]), tf.zeros([16]), layer.epsilon, 0.3, SEED),
    )
    assert (layer(x, x, seed=SEED).numpy() != layer(x, x).numpy()).any()

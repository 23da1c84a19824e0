import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.attention import attention_probabilities

BATCH, HEADS, QUERIES, KEYS = 2, 3, 5, 64
SCALE = 0.25


def operands(relative_shape, dtype="float32"):
    rng = np.random.default_rng(0)
    products = rng.normal(size=(BATCH, HEADS, QUERIES, KEYS)) * 3
    excluded = np.zeros((BATCH, 1, 1, KEYS))
    excluded[1, ..., 40:] = -1e4
    relative = rng.normal(size=relative_shape)
    return [tf.constant(x, dtype) for x in (products, excluded, relative)]


def formula(products, excluded, relative):
    return tf.nn.softmax(products * SCALE + excluded + relative)


def ours(products, excluded, relative):
    return attention_probabilities(products, SCALE, excluded, relative)


RELATIVE_SHAPES = [
    (1, HEADS, QUERIES, KEYS),
    (BATCH, HEADS, QUERIES, KEYS),
    (1, 1, 1, 1),
]


@pytest.mark.parametrize("relative_shape", RELATIVE_SHAPES)
@pytest.mark.parametrize("in_graph", [False, True])
def test_values_and_gradients_are_those_of_the_softmax(relative_shape, in_graph):
    arguments = operands(relative_shape)
    if relative_shape == (1, 1, 1, 1):
        arguments[2] = tf.zeros_like(arguments[2])  # what stands for no bias
    target = tf.constant(np.random.default_rng(1).normal(size=arguments[0].shape), tf.float32)

    def run(function):
        def both(products, excluded, relative):
            with tf.GradientTape() as tape:
                tape.watch([products, relative])
                y = function(products, excluded, relative)
                total = tf.reduce_sum(y * target)
            return y, *tape.gradient(total, [products, relative])

        return (tf.function(both) if in_graph else both)(*arguments)

    for actual, expected in zip(run(ours), run(formula), strict=True):
        if relative_shape == (1, 1, 1, 1):
            expected = expected if expected.shape != (1, 1, 1, 1) else tf.zeros_like(expected)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_probabilities_add_up_and_leave_padding_out():
    products, excluded, relative = operands(RELATIVE_SHAPES[0])
    for run in (ours, tf.function(ours)):
        probabilities = run(products, excluded, relative).numpy()
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
        assert (probabilities[1, ..., 40:] == 0).all()
        assert (probabilities[0] > 0).all()


@pytest.mark.parametrize("in_graph", [False, True])
def test_large_logits_do_not_overflow(in_graph):
    products = tf.constant([[[[1e5, 0.0, -1e5] + [0.0] * 29]]])
    arguments = products, tf.zeros([1, 1, 1, 32]), tf.zeros([1, 1, 1, 1])
    probabilities = (tf.function(ours) if in_graph else ours)(*arguments)
    np.testing.assert_array_equal(probabilities[0, 0, 0], [1.0] + [0.0] * 31)


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_logit_that_is_no_number_shows(in_graph):
    products = tf.constant([[[[np.nan] + [0.0] * 31], [[0.0] * 32]]])
    arguments = products, tf.zeros([1, 1, 1, 32]), tf.zeros([1, 1, 1, 1])
    probabilities = (tf.function(ours) if in_graph else ours)(*arguments).numpy()
    assert np.isnan(probabilities[0, 0]).all()
    assert np.isfinite(probabilities[0, 1]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("in_graph", [False, True])
def test_half_precision_rounds_only_the_result(dtype, in_graph):
    half = operands(RELATIVE_SHAPES[0], dtype)
    actual = (tf.function(ours) if in_graph else ours)(*half)
    assert actual.dtype == dtype
    expected = formula(*(tf.cast(x, tf.float32) for x in half))
    np.testing.assert_allclose(tf.cast(actual, tf.float32), expected, rtol=0.01, atol=1e-6)

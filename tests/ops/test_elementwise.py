import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.costs.compiled import compiled_costs
from cocolm_tf.ops.elementwise import add_bias, dropout, dropout_mask, exact_gelu, residual_norm

SEED = tf.constant([3, 4])
PRECISION = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}


def value_and_gradients(function, *inputs, weight=1.0, in_graph=False):
    """What a function gives, and the gradients of its sum by its inputs."""

    def compute(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
            total = tf.reduce_sum(y * tf.cast(weight, y.dtype))
        return y, *tape.gradient(total, inputs)

    return (tf.function(compute) if in_graph else compute)(*inputs)


# --- Dropout ---


@pytest.mark.parametrize(("rate", "dtype"), [(0.1, "float32"), (0.5, "bfloat16"), (0.9, "float16")])
def test_dropout_zeroes_the_share_and_scales_the_rest(rate, dtype):
    kept = dropout(tf.ones([400_001], dtype), rate, SEED)
    assert kept.dtype == dtype
    kept = tf.cast(kept, tf.float64).numpy()
    # Five standard deviations of the share, and the rounding of the scale.
    assert np.mean(kept == 0) == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / 400_001))
    precision = {"float32": 1e-4, "bfloat16": 4e-3, "float16": 5e-4}[dtype]
    np.testing.assert_allclose(kept[kept > 0], 1 / (1 - rate), rtol=precision)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(-(2**31), 2**31 - 1))
def test_dropout_is_a_function_of_the_seed_for_any_shape(shape, seed):
    x = tf.random.normal(shape)
    first, second = (dropout(x, 0.4, tf.constant([seed, 7])) for _ in range(2))
    assert first.shape == x.shape
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, np.where(first.numpy() == 0, 0, x / 0.6), rtol=1e-4)


def test_compiled_dropout_reads_no_indices_from_memory():
    """The input, the output and a number per row and column: nothing else of the input's size."""
    compiled = tf.function(lambda x, seed: dropout(x, 0.1, seed), jit_compile=True)
    found = compiled_costs(compiled, tf.ones([200, 300]), SEED)
    assert found["bytes_accessed"] < 4 * 2.2 * 200 * 300


def test_seeds_that_follow_each_other_drop_independently():
    # A seed generator counts: neighbors in either number, and a mask moved along another.
    seeds = [(7, count) for count in range(20)] + [(8, 0)]
    masks = np.stack([dropout_mask([4096], 0.5, seed).numpy() > 0 for seed in seeds])
    deviations = 2.0 * masks - 1
    correlations = deviations @ deviations.T / 4096
    assert np.abs(correlations[~np.eye(len(seeds), dtype=bool)]).max() < 5 / np.sqrt(4096)
    for one, other in [(0, 1), (3, 4)]:
        shifted = np.fft.irfft(
            np.fft.rfft(deviations[one]) * np.conj(np.fft.rfft(deviations[other]))
        )
        assert np.abs(shifted).max() < 6 * np.sqrt(4096)


def test_elements_are_dropped_independently():
    dropped = dropout_mask([400, 128, 8], 0.3, SEED).numpy().ravel() == 0
    for offset in (1, 2, 64, 127, 128, 8192):
        one, other = dropped[:-offset], dropped[offset:]
        assert np.corrcoef(one, other)[0, 1] == pytest.approx(0, abs=5 / np.sqrt(len(one)))


def test_runs_are_as_long_as_chance_makes_them():
    # The patterns of eight elements in a row, at even chances: all 256 are equally frequent.
    bits = dropout_mask([2**18], 0.5, SEED).numpy().reshape(-1, 8) > 0
    counts = np.bincount(bits @ (1 << np.arange(8)), minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_every_row_and_column_gets_its_share():
    dropped = dropout_mask([512, 512], 0.1, SEED).numpy() == 0
    for axis in (0, 1):
        # The variance of binomial counts, within what 512 of them tell.
        assert dropped.sum(axis).var() == pytest.approx(512 * 0.1 * 0.9, rel=0.35)


def test_the_gradient_of_dropout_is_the_mask_times_the_scale():
    y, gradient = value_and_gradients(lambda x: dropout(x, 0.25, SEED), tf.ones([3, 5, 7]))
    np.testing.assert_allclose(gradient, (y.numpy() != 0) / 0.75, rtol=1e-4)


def test_dropout_is_the_same_in_a_graph_of_unknown_shape():
    signature = [tf.TensorSpec([None, None]), tf.TensorSpec([2], tf.int32)]
    function = tf.function(lambda x, seed: dropout(x, 0.4, seed), input_signature=signature)
    x = tf.random.normal([3, 5])
    np.testing.assert_array_equal(function(x, SEED), dropout(x, 0.4, SEED))


# --- Bias and GELU ---


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_a_bias_is_added_and_learns_from_every_row(shape, in_graph):
    rng = np.random.default_rng(0)
    x, target = (tf.constant(rng.normal(size=shape), tf.float32) for _ in range(2))
    bias = tf.constant([1.0, -2.0, 0.5])
    y, by_x, by_bias = value_and_gradients(add_bias, x, bias, weight=target, in_graph=in_graph)
    np.testing.assert_allclose(y, x + bias, rtol=1e-6)
    np.testing.assert_array_equal(by_x, target)
    np.testing.assert_allclose(by_bias, target.numpy().reshape(-1, 3).sum(0), rtol=1e-5, atol=1e-6)


def test_a_bias_is_not_joined_with_the_product_before_it():
    @tf.function
    def run(x, kernel, bias):
        return add_bias(tf.matmul(x, kernel), bias)

    specs = [tf.TensorSpec(shape) for shape in ([4, 3], [3, 5], [5])]
    graph = run.get_concrete_function(*specs).graph.as_graph_def()
    assert not {"BiasAdd", "Add", "AddV2"} & {node.op for node in graph.node}


X = np.linspace(-6, 6, 97, dtype=np.float32)


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize(("dtype", "precision"), PRECISION.items())
def test_gelu_equals_the_definition_and_its_slope(dtype, precision):
    x = tf.cast(X, dtype)
    y, gradient, _ = value_and_gradients(exact_gelu, x, tf.zeros(97, dtype), weight=3)
    assert y.dtype == gradient.dtype == dtype
    exact = tf.cast(x, tf.float64).numpy()
    slope = [3 * (gelu(v + 1e-5) - gelu(v - 1e-5)) / 2e-5 for v in exact]
    for actual, expected, atol in ((y, list(map(gelu, exact)), 1), (gradient, slope, 4)):
        actual = tf.cast(actual, tf.float64)
        np.testing.assert_allclose(actual, expected, rtol=precision, atol=atol * precision)


@pytest.mark.parametrize("shape", [None, (4, 3), (None, None)], ids=["eager", "known", "unknown"])
def test_gelu_adds_the_bias_first_which_learns_from_every_row(shape):
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    bias, weight = tf.constant([0.5, -1.0, 2.0]), tf.range(3.0)

    def ours(x, bias):
        return value_and_gradients(exact_gelu, x, bias, weight=weight)

    if shape:
        ours = tf.function(ours, input_signature=[tf.TensorSpec(shape), tf.TensorSpec([3])])
    theirs = value_and_gradients(
        lambda x, bias: tf.nn.gelu(x + bias, approximate=False), x, bias, weight=weight
    )
    for actual, expected in zip(ours(x, bias), theirs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_gelu_of_far_values_is_finite():
    x = tf.constant([-1e30, -100.0, 100.0, 1e30])
    y, gradient, _ = value_and_gradients(exact_gelu, x, tf.zeros([4]), weight=3)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(gradient, [0, 0, 3, 3])


# --- The end of a sublayer ---


def sublayer(*shape, dtype="float32"):
    """What `residual_norm` takes: x, update, bias, gamma and beta."""
    rng = np.random.default_rng(0)
    width = shape[-1]
    arrays = [rng.normal(size=size) for size in (shape, shape, (width,), (width,), (width,))]
    return [tf.constant(array, dtype) for array in arrays]


def formula(x, update, bias, gamma, beta, epsilon, rate):
    total = x + (update + bias) * (dropout_mask(x.shape, rate, SEED) if rate else 1.0)
    mean, variance = tf.nn.moments(total, [-1], keepdims=True)
    return (total - mean) * tf.math.rsqrt(variance + epsilon) * gamma + beta


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 64)])
@pytest.mark.parametrize("in_graph", [False, True])
def test_residual_norm_and_its_gradients_are_those_of_the_formula(rate, shape, in_graph):
    arguments = sublayer(*shape)
    target = tf.constant(np.random.default_rng(1).normal(size=shape), tf.float32)

    def ours(*arguments):
        return residual_norm(*arguments, 1e-3, rate, SEED if rate else None)

    actual = value_and_gradients(ours, *arguments, weight=target, in_graph=in_graph)
    expected = value_and_gradients(lambda *x: formula(*x, 1e-3, rate), *arguments, weight=target)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_residual_norm_of_half_precision_computes_in_float32(dtype):
    # The sum of squares of these exceeds what float16 can hold.
    x, *others = sublayer(4, 64, dtype=dtype)
    actual = residual_norm(300 * x, *others, 1e-5, 0.0, None)
    assert actual.dtype == dtype
    expected = formula(*(tf.cast(a, tf.float32) for a in (300 * x, *others)), 1e-5, 0.0)
    np.testing.assert_allclose(tf.cast(actual, tf.float32), expected, atol=0.05)

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.costs.compiled import compiled_costs
from cocolm_tf.modeling.transformer import Dropout
from cocolm_tf.ops.elementwise import dropout, dropout_mask

SEED = tf.constant([3, 4])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_zeroes_the_share_and_scales_the_rest(rate, dtype):
    kept = dropout(tf.ones([400_001], dtype), rate, SEED)
    assert kept.dtype == dtype
    kept = tf.cast(kept, tf.float64).numpy()
    # Five standard deviations of the share, and the rounding of the scale.
    assert np.mean(kept == 0) == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / 400_001))
    precision = {"float32": 1e-4, "bfloat16": 4e-3, "float16": 5e-4}[dtype]
    np.testing.assert_allclose(kept[kept > 0], 1 / (1 - rate), rtol=precision)


def test_keeps_the_expectation():
    x = np.linspace(-2, 3, 7, dtype=np.float32)
    mean = tf.reduce_mean(dropout(tf.tile(x[np.newaxis], [50_000, 1]), 0.3, SEED), axis=0)
    # The standard deviation of one element is |x| sqrt(0.3 / 0.7).
    np.testing.assert_allclose(mean, x, atol=5 * 3 * np.sqrt(0.3 / 0.7 / 50_000))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(-(2**31), 2**31 - 1))
def test_is_a_function_of_the_seed_for_any_shape(shape, seed):
    x = tf.random.normal(shape)
    first, second = (dropout(x, 0.4, tf.constant([seed, 7])) for _ in range(2))
    assert first.shape == x.shape
    np.testing.assert_array_equal(first, second)
    dropped = first.numpy() == 0
    np.testing.assert_allclose(first, np.where(dropped, 0, x / 0.6), rtol=1e-4)


def test_a_compiled_loop_reads_no_indices_from_memory():
    """The input, the output and a number per row and column: nothing else of the input's size."""
    compiled = tf.function(lambda x, seed: dropout(x, 0.1, seed), jit_compile=True)
    found = compiled_costs(compiled, tf.ones([200, 300]), SEED)
    assert found["bytes_accessed"] < 4 * 2.2 * 200 * 300


def test_different_seeds_drop_different_elements():
    masks = [dropout(tf.ones([1000]), 0.5, seed).numpy() == 0 for seed in ([1, 2], [1, 3], [2, 2])]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert np.mean(masks[one] == masks[other]) == pytest.approx(0.5, abs=0.1)


def test_seeds_that_follow_each_other_are_independent():
    # A seed generator counts: neighbors in seed, and any shift of one mask against another.
    masks = np.stack([dropout_mask([4096], 0.5, [7, count]).numpy() > 0 for count in range(20)])
    deviations = 2.0 * masks - 1
    correlations = deviations @ deviations.T / 4096
    assert np.abs(correlations[~np.eye(20, dtype=bool)]).max() < 5 / np.sqrt(4096)
    for one, other in [(0, 1), (3, 4)]:
        shifted = np.fft.irfft(
            np.fft.rfft(deviations[one]) * np.conj(np.fft.rfft(deviations[other]))
        )
        assert np.abs(shifted).max() < 6 * np.sqrt(4096)


@pytest.mark.parametrize("offset", [1, 2, 64, 127, 128, 8192])
def test_elements_share_no_fate(offset):
    dropped = dropout_mask([400, 128, 8], 0.3, SEED).numpy().ravel() == 0
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
        counts = dropped.sum(axis)
        # The variance of binomial counts, within what 512 of them tell.
        assert counts.var() == pytest.approx(512 * 0.1 * 0.9, rel=0.35)


def test_gradient_is_the_mask_times_the_scale():
    x = tf.random.normal([3, 5, 7])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropout(x, 0.25, SEED)
    gradient = tape.gradient(y, x)
    np.testing.assert_allclose(gradient, (y.numpy() != 0) / 0.75, rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_same_in_a_graph_of_unknown_shape(compiled):
    x = tf.random.normal([3, 5])
    function = tf.function(
        lambda x, seed: dropout(x, 0.4, seed),
        input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([2], tf.int32)],
        jit_compile=compiled,
    )
    share = np.mean(function(x, SEED).numpy() == 0)
    assert 0 < share < 1
    if not compiled:
        np.testing.assert_array_equal(function(x, SEED), dropout(x, 0.4, SEED))


def test_layer_acts_in_training_only():
    layer, x = Dropout(0.5, keras.random.SeedGenerator(0)), tf.ones([100])
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, training=False), x)
    assert 0 in layer(x, training=True).numpy()


def test_layer_without_a_rate_draws_nothing():
    generator = keras.random.SeedGenerator(0)
    state = generator.state.numpy()
    assert Dropout(0.0, generator).draw(training=True) is None
    assert Dropout(0.5, generator).draw(training=False) is None
    np.testing.assert_array_equal(generator.state, state)


def test_layer_follows_from_the_state_of_its_generator():
    generator = keras.random.SeedGenerator(0)
    layer, x = Dropout(0.5, generator), tf.ones([100])
    state = generator.state.numpy()
    first, second = layer(x, training=True).numpy(), layer(x, training=True).numpy()
    assert (first != second).any()
    generator.state.assign(state)
    np.testing.assert_array_equal(layer(x, training=True), first)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_refuses_rates_that_are_no_share(rate):
    with pytest.raises(ValueError, match="A dropout rate lies in"):
        Dropout(rate, keras.random.SeedGenerator(0))

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.modeling.corruption import (
    gather_positions,
    random_tokens,
    replace_tokens,
    sample_tokens,
)

SEED = tf.constant([1, 2])


@settings(max_examples=15)
@given(st.integers(0, 3), st.integers(1, 6), st.integers(0, 4), st.sampled_from([(), (1,), (3,)]))
def test_gathers_row_by_row(sequences, length, slots, width):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sequences, length, *width)).astype(np.float32)
    positions = rng.integers(0, length, (sequences, slots))  # int64, as NumPy makes them
    expected = [x[b, position] for b in range(sequences) for position in positions[b]]
    gathered = gather_positions(tf.constant(x), positions)
    np.testing.assert_array_equal(gathered, np.reshape(expected, [-1, *width]))


@settings(max_examples=15)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(0, 5), st.integers(0, 1000))
def test_replaces_at_the_positions_and_nowhere_else(sequences, length, slots, seed):
    slots = min(slots, length)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50, (sequences, length)).astype(np.int32)
    positions = rng.permuted(np.tile(np.arange(length), (sequences, 1)), axis=1)[:, :slots]
    positions = positions.astype(np.int32)
    new = rng.integers(50, 99, sequences * slots).astype(np.int32)
    expected = ids.copy()
    np.put_along_axis(expected, positions, new.reshape(sequences, slots), axis=1)
    placed = replace_tokens(tf.constant(ids), tf.constant(positions), tf.constant(new))
    assert placed.dtype == tf.int32
    np.testing.assert_array_equal(placed, expected)


def test_place_leaves_positions_that_are_not_used():
    """Also where they stand for the same token as others."""
    placed = replace_tokens(
        tf.constant([[5, 6, 7], [8, 9, 10]]),
        tf.constant([[1, 2], [0, 0]]),
        59,
        tf.constant([[0.0, 1.0], [0.0, 0.0]]),
    )
    np.testing.assert_array_equal(placed, [[5, 6, 59], [8, 9, 10]])


def test_place_takes_one_token_for_all_positions():
    placed = replace_tokens(tf.constant([[5, 6, 7], [8, 9, 10]]), tf.constant([[1, 2], [2, 0]]), 59)
    np.testing.assert_array_equal(placed, [[5, 59, 59], [59, 9, 59]])


LOGITS = np.array(
    [
        [0.0, 0, 0, 0, 0, 0],
        [3.0, 1, 0, -1, -2, 0.5],
        [-300.0, -301, -300, -302, -299, -303],
        [0.0, np.log(3), -80, -np.inf, 1, 0],
    ],
    np.float32,
)


@pytest.mark.parametrize(
    ("row", "dtype"), [(0, "float16"), (1, "bfloat16"), (2, "float32"), (3, "float32")]
)
def test_samples_follow_the_softmax(row, dtype):
    draws = 20_000
    logits = tf.cast(LOGITS[row], dtype)
    sampled = sample_tokens(tf.tile(logits[tf.newaxis], [draws, 1]), tf.constant([row, 17]))
    assert sampled.dtype == tf.int32
    counts = np.bincount(sampled, minlength=6)
    expected = draws * tf.nn.softmax(tf.cast(logits, tf.float64)).numpy()
    likely = expected > 1
    assert counts[~likely].sum() == 0
    expected = expected[likely] * draws / expected[likely].sum()
    assert scipy.stats.chisquare(counts[likely], expected).pvalue > 1e-4


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_divides_the_logits(temperature: float):
    logits, draws = LOGITS[1], 20_000
    rows = tf.tile(tf.constant(logits)[tf.newaxis], [draws, 1])
    sampled = sample_tokens(rows, tf.constant([5, 17]), temperature=temperature)
    expected = draws * tf.nn.softmax(tf.constant(logits, tf.float64) / temperature).numpy()
    counts = np.bincount(sampled, minlength=6)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_rows_are_sampled_apart():
    pairs = sample_tokens(tf.zeros([20_000, 3]), SEED).numpy().reshape(-1, 2)
    counts = np.bincount(3 * pairs[:, 0] + pairs[:, 1], minlength=9)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_samples_are_a_function_of_the_seed():
    logits = tf.random.normal([500, 20])
    first = sample_tokens(logits, SEED)
    np.testing.assert_array_equal(first, sample_tokens(logits, tf.cast(SEED, tf.uint32)))
    for other in ([1, 3], [2, 2]):
        assert np.mean(first == sample_tokens(logits, tf.constant(other))) < 0.5


def test_some_of_many_rows_are_sampled_as_they_are_among_all():
    logits = tf.random.normal([50, 7])
    together = sample_tokens(logits, SEED)
    apart = [sample_tokens(logits[start : start + 20], SEED, start) for start in (0, 20, 40)]
    np.testing.assert_array_equal(tf.concat(apart, 0), together)


def test_samples_are_tokens_of_the_vocabulary():
    sampled = sample_tokens(tf.random.normal([1000, 7]), SEED).numpy()
    assert set(sampled) <= set(range(7))


def test_no_gradient_flows_through_a_sample():
    logits = tf.random.normal([4, 5])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(tf.cast(sample_tokens(logits, SEED), tf.float32) + 0 * logits[:, 0])
    np.testing.assert_array_equal(tape.gradient(total, logits), np.zeros([4, 5]))


def test_random_tokens_are_uniform():
    tokens = random_tokens([30_000], 60, SEED)
    assert tokens.dtype == tf.int32
    assert scipy.stats.chisquare(np.bincount(tokens, minlength=60)).pvalue > 1e-4
    assert len(np.bincount(tokens)) == 60


def test_random_tokens_are_a_function_of_the_seed():
    tokens = random_tokens([100], 60, SEED)
    np.testing.assert_array_equal(tokens, random_tokens([100], 60, tf.cast(SEED, tf.uint32)))
    assert (tokens.numpy() != random_tokens([100], 60, tf.constant([1, 3])).numpy()).any()

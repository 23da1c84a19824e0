import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.modeling.transformer import AttentionBias, relative_position_buckets


@st.composite
def sizes(draw) -> tuple[int, int, int]:
    bins = 4 * draw(st.integers(1, 32))
    return bins, bins // 4 + draw(st.integers(2, 400)), draw(st.integers(1, 300))


@pytest.mark.parametrize(
    ("bins", "max_distance", "max_positions"), [(32, 128, 512), (64, 128, 512), (128, 256, 512)]
)
def test_released_sizes_follow_the_formula(bins, max_distance, max_positions):
    buckets = relative_position_buckets(bins, max_distance, max_positions)
    distances = range(1 - max_positions, max_positions)
    expected = [reference.bucket(r, bins, max_distance, max_positions) for r in distances]
    np.testing.assert_array_equal(buckets, expected)
    # The last row is never met: there are bins - 1 signed buckets.
    assert buckets.max() == bins - 2


@settings(max_examples=60)
@given(sizes())
def test_any_sizes_follow_the_formula(size):
    buckets = relative_position_buckets(*size)
    distances = range(1 - size[2], size[2])
    # At the edge of a bin float32 may round to either side.
    signed = [reference.signed_bucket(r, *size[:2]) for r in distances]
    assert np.mean(buckets - buckets[size[2] - 1] != signed) <= 0.02


@settings(max_examples=60)
@given(sizes())
def test_buckets_are_rows_of_the_table_ordered_by_distance(size):
    buckets = relative_position_buckets(*size)
    assert buckets.shape == (2 * size[2] - 1,)
    assert buckets.dtype == np.int32
    assert buckets.min() == 0
    assert buckets.max() < size[0]
    assert (np.diff(buckets) >= 0).all()
    zero = buckets[size[2] - 1]
    np.testing.assert_array_equal(buckets - zero, (zero - buckets)[::-1])


def test_near_distances_have_a_bucket_each():
    buckets = relative_position_buckets(bins=32, max_distance=128, max_positions=512)
    assert len(set(buckets[511 - 8 : 511 + 9])) == 17


def test_short_sequences_start_at_bucket_zero():
    np.testing.assert_array_equal(
        relative_position_buckets(bins=32, max_distance=128, max_positions=3), range(5)
    )


@pytest.mark.parametrize("bins", [2, 3, 6, 30, -4])
def test_refuses_bins_that_do_not_halve_twice(bins):
    with pytest.raises(ValueError, match=f"multiple of 4, not {bins}"):
        relative_position_buckets(bins, 128, 512)


def test_refuses_a_distance_within_the_exact_bins():
    with pytest.raises(ValueError, match="must exceed 9 for 32 bins, not 9"):
        relative_position_buckets(32, 9, 512)
    relative_position_buckets(32, 10, 512)


def make_bias(**changes) -> AttentionBias:
    arguments = {"num_heads": 3, "bins": 8, "max_distance": 12, "max_positions": 16} | changes
    return AttentionBias(**arguments)


def test_bias_reads_the_row_of_key_minus_query():
    layer = make_bias()
    padding, bias = layer(tf.ones([2, 5], tf.int32))
    assert padding.shape == (2, 1, 1, 5)
    assert not padding.numpy().any()
    assert bias.shape == (1, 3, 5, 5)
    table = layer.table.numpy()
    for query, key in np.ndindex(5, 5):
        row = reference.bucket(key - query, 8, 12, 16)
        np.testing.assert_array_equal(bias[0, :, query, key], table[row])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bins", [0, 8])
def test_padding_gets_no_attention(dtype, bins):
    layer = make_bias(bins=bins, dtype=dtype)
    padding, relative = layer(tf.constant([[1, 1, 0], [1, 0, 0]]))
    assert padding.dtype == relative.dtype == dtype
    bias = padding + relative
    assert np.isfinite(bias).all()
    probabilities = tf.nn.softmax(tf.cast(bias, tf.float32)).numpy()
    assert (probabilities[0, ..., 2] == 0).all()
    assert (probabilities[1, ..., 1:] == 0).all()
    assert (probabilities[0, ..., :2] > 0).all()


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_takes_masks_of_any_type(dtype):
    layer = make_bias()
    mask = tf.constant([[1, 1, 0]])
    np.testing.assert_array_equal(layer(tf.cast(mask, dtype))[0], layer(mask)[0])


def test_table_learns_from_each_pair_of_its_distance():
    layer = make_bias()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.ones([2, 5]))[1])
    gradient = tf.convert_to_tensor(tape.gradient(total, layer.table.value)).numpy()
    rows = [reference.bucket(key - query, 8, 12, 16) for query, key in np.ndindex(5, 5)]
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(rows, minlength=8))


def test_without_bins_there_is_no_table_and_no_square():
    layer = make_bias(bins=0)
    assert layer(tf.ones([2, 5]))[1].shape == (1, 1, 1, 1)
    assert not layer.weights
    assert layer.compute_output_shape((None, None)) == ((None, 1, 1, None), (1, 1, 1, 1))
    assert make_bias().compute_output_shape((2, 5)) == ((2, 1, 1, 5), (1, 3, 5, 5))


def test_one_table_serves_every_length():
    layer = make_bias()
    long, short = layer(tf.ones([1, 16]))[1], layer(tf.ones([1, 7]))[1]
    np.testing.assert_array_equal(short, long[:, :, :7, :7])


def test_heads_start_out_looking_at_different_neighbors():
    bias = make_bias(num_heads=5, bins=16, max_distance=32, max_positions=16, neighbor_bias=6.0)
    logits = bias(np.ones((1, 9), np.int32))[1].numpy()[0]
    middle = 4
    assert [int(logits[head, middle].argmax()) - middle for head in range(5)] == [-1, 1, -2, 2, -3]
    assert np.abs(np.sort(logits[:, middle])[:, -1] - 6).max() < 0.2
    assert np.abs(np.sort(logits[:, middle])[:, :-1]).max() < 0.2

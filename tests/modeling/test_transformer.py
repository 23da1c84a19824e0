import random

import keras
import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.modeling.transformer import (
    AttentionBias,
    Dropout,
    ResidualNorm,
    TransformerBlock,
    relative_position_buckets,
)
from cocolm_tf.ops.elementwise import residual_norm

# --- The block ---


NO_BIAS = tf.zeros([1, 1, 1, 1])


def make_block(dropout: float = 0.0, **changes) -> TransformerBlock:
    random.seed(0)  # Keras draws the initializers' seeds from here
    return TransformerBlock(2, 12, dropout, keras.random.SeedGenerator(5), **changes)


@pytest.mark.parametrize(("changes", "deviation"), [({}, 0.02), ({"initializer_range": 0.3}, 0.3)])
def test_matrices_start_normal(changes, deviation):
    block = make_block(**changes)
    block.build((None, None, 300))
    for layer in (block.query, block.key, block.value, block.attention_output):
        matrix = layer.kernel.numpy()
        assert matrix.std() == pytest.approx(deviation, rel=0.02)
        assert matrix.mean() == pytest.approx(0, abs=5 * deviation / 300)


def test_refuses_a_width_that_the_heads_do_not_divide():
    with pytest.raises(ValueError, match="7 is not a multiple of 2 heads"):
        make_block()(tf.ones([1, 3, 7]), tf.zeros([1, 1, 1, 3]), NO_BIAS)


def test_bias_steers_attention():
    # All but one key excluded: every query then reads that key's value alone.
    block, x = make_block(), tf.random.normal([1, 4, 8])
    only = tf.constant([-1e9, -1e9, 0.0, -1e9])[tf.newaxis, tf.newaxis, tf.newaxis]
    block.build(x.shape)
    attended = block._attend(x[0], x[0], only, NO_BIAS, None)
    np.testing.assert_allclose(attended, np.tile(block.value(x)[0, 2], (4, 1)), atol=1e-6)


def test_heads_have_biases_of_their_own():
    block, x = make_block(), tf.random.normal([1, 4, 8])
    block.build(x.shape)
    first = np.zeros([1, 2, 4, 4], np.float32)
    first[:, 0, :, 1:] = -1e9
    padding = tf.zeros([1, 1, 1, 4])
    attended = block._attend(x[0], x[0], padding, tf.constant(first), None)
    unbiased = block._attend(x[0], x[0], padding, NO_BIAS, None)
    np.testing.assert_allclose(attended[:, :4], np.tile(block.value(x)[0, 0, :4], (4, 1)), 1e-5)
    np.testing.assert_allclose(attended[..., 4:], unbiased[..., 4:], atol=1e-7)


def test_dropout_acts_in_training_only():
    block, x, bias = make_block(0.5), tf.random.normal([2, 4, 8]), tf.zeros([2, 1, 1, 4])
    np.testing.assert_array_equal(block(x, bias, NO_BIAS), make_block(0.0)(x, bias, NO_BIAS))
    assert (block(x, bias, NO_BIAS, training=True).numpy() != block(x, bias, NO_BIAS).numpy()).any()


@pytest.mark.parametrize(
    ("dropout", "in_graph", "dtype"),
    [(0.0, True, "float32"), (0.3, False, "mixed_float16"), (0.3, True, "mixed_bfloat16")],
)
@pytest.mark.parametrize("what", ["attention", "block"])
def test_rematerializing_changes_nothing(dropout, in_graph, dtype, what):
    computed = tf.dtypes.as_dtype(dtype.removeprefix("mixed_"))
    x = tf.cast(tf.random.normal([2, 4, 8], seed=3), computed)
    bias, no_bias = tf.zeros([2, 1, 1, 4], computed), tf.cast(NO_BIAS, computed)

    def outputs_and_gradients(rematerialize):
        block = make_block(dropout, rematerialize=rematerialize, dtype=dtype)
        block.build(x.shape)

        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = block(x, bias, no_bias, training=True)
                total = tf.reduce_mean(tf.cast(y, tf.float32) * tf.reshape(tf.range(64.0), y.shape))
            return y, *tape.gradient(total, [x, *[v.value for v in block.trainable_variables]])

        return (tf.function(run) if in_graph else run)(x)

    plain, again = outputs_and_gradients("none"), outputs_and_gradients(what)
    assert len(plain) == 2 + 16
    for one, other in zip(plain, again, strict=True):
        assert one.dtype == other.dtype
        one, other = (tf.cast(result, tf.float32) for result in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_rematerializing_computes_again():
    x, bias = tf.random.normal([2, 4, 8]), tf.zeros([2, 1, 1, 4])

    def products(rematerialize):
        """Those of weights, and those of two positions."""
        block = make_block(rematerialize=rematerialize)
        block.build(x.shape)

        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(block(x, bias, NO_BIAS, training=True) ** 2)
            return tape.gradient(total, [v.value for v in block.trainable_variables])

        definition = gradients.get_concrete_function(x).graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        kinds = [node.op for node in nodes]
        return kinds.count("MatMul"), kinds.count("BatchMatMulV2")

    (weights, pairs), attention, block = (products(x) for x in ("none", "attention", "block"))
    assert attention == (weights, pairs + 1)
    assert block[0] >= weights + 4
    assert products(False) == (weights, pairs) and products(True) == block


def test_an_unknown_rematerialization_is_refused():
    with pytest.raises(ValueError, match="none, attention, block, not 'blocks'"):
        make_block(rematerialize="blocks")


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_computes_near_float32(dtype):
    x, bias = tf.random.normal([2, 4, 8]), tf.zeros([2, 1, 1, 4])
    half = make_block(dtype=dtype)(x, bias, tf.zeros([1, 1, 1, 1], dtype.removeprefix("mixed_")))
    assert half.dtype == dtype.removeprefix("mixed_")
    np.testing.assert_allclose(
        tf.cast(half, tf.float32),
        make_block()(x, bias, NO_BIAS),
        atol=0.05 if "bf" in dtype else 0.01,
    )


# --- Dropout and LayerNorm ---


def test_dropout_acts_in_training_only_and_follows_from_the_state_of_its_generator():
    generator = keras.random.SeedGenerator(0)
    layer, x, state = Dropout(0.5, generator), tf.ones([100]), generator.state.numpy()
    np.testing.assert_array_equal(layer(x), x)
    # Nothing is drawn where nothing is dropped.
    assert layer.draw(training=False) is Dropout(0.0, generator).draw(training=True) is None
    np.testing.assert_array_equal(generator.state, state)
    first, second = layer(x, training=True).numpy(), layer(x, training=True).numpy()
    assert 0 in first and (first != second).any()
    generator.state.assign(state)
    np.testing.assert_array_equal(layer(x, training=True), first)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_dropout_refuses_rates_that_are_no_share(rate):
    with pytest.raises(ValueError, match="A dropout rate lies in"):
        Dropout(rate, keras.random.SeedGenerator(0))


def test_residual_norm_is_layer_normalization_where_nothing_is_added():
    layer, theirs = ResidualNorm(epsilon=1e-5), keras.layers.LayerNormalization(epsilon=1e-5)
    x = tf.random.stateless_normal([3, 16], [1, 2])
    np.testing.assert_allclose(layer(x, tf.zeros_like(x)), theirs(x), atol=1e-5)
    assert [w.name for w in layer.weights] == [w.name for w in theirs.weights]


def test_residual_norm_drops_at_its_rate():
    layer, x = ResidualNorm(rate=0.3), tf.random.stateless_normal([3, 16], [1, 2])
    seed = tf.constant([3, 4])
    np.testing.assert_array_equal(
        layer(x, x, seed=seed),
        residual_norm(x, x, None, tf.ones([16]), tf.zeros([16]), layer.epsilon, 0.3, seed),
    )
    assert (layer(x, x, seed=seed).numpy() != layer(x, x).numpy()).any()


# --- Relative positions ---


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


@settings(max_examples=20)
@given(sizes())
def test_any_sizes_follow_the_formula(size):
    buckets = relative_position_buckets(*size)
    distances = range(1 - size[2], size[2])
    # At the edge of a bin float32 may round to either side.
    signed = [reference.signed_bucket(r, *size[:2]) for r in distances]
    assert np.mean(buckets - buckets[size[2] - 1] != signed) <= 0.02


@settings(max_examples=20)
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


def test_near_distances_have_a_bucket_each_and_short_sequences_start_at_zero():
    buckets = relative_position_buckets(bins=32, max_distance=128, max_positions=512)
    assert len(set(buckets[511 - 8 : 511 + 9])) == 17
    short = relative_position_buckets(bins=32, max_distance=128, max_positions=3)
    np.testing.assert_array_equal(short, range(5))


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

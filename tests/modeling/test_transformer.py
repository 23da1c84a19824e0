import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.transformer import TransformerBlock

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


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
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

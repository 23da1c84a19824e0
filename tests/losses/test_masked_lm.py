import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_rows import make_rows

from cocolm_tf.losses import masked_lm_loss

seeds = st.integers(0, 10_000)


def test_equals_the_equation(rows):
    loss = masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)
    assert loss.dtype == tf.float32
    assert loss.shape == []
    expected = reference.masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_uniform_logits_cost_log_of_the_vocabulary_size():
    loss = masked_lm_loss(tf.fill([3, 50], 7.0), tf.constant([0, 20, 49]), tf.ones([3]))
    assert float(loss) == pytest.approx(np.log(50), rel=1e-6)


def test_gradient_equals_finite_differences(rows):
    logits = tf.constant(rows.lm_logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = masked_lm_loss(logits, rows.labels, rows.weights)
    expected = reference.gradient(
        lambda at: reference.masked_lm_loss(at, rows.labels, rows.weights), rows.lm_logits
    )
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_computes_in_float32(rows, dtype):
    logits = tf.cast(rows.lm_logits, dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = masked_lm_loss(logits, rows.labels, rows.weights)
    rounded = tf.cast(logits, tf.float64).numpy()
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(
        reference.masked_lm_loss(rounded, rows.labels, rows.weights), rel=1e-5
    )
    assert tape.gradient(loss, logits).dtype == dtype


def test_makes_no_float32_copy_of_bfloat16_logits():
    graph = masked_lm_graph(tf.bfloat16)
    of_that_size = [out for op in graph.get_operations() for out in op.outputs]
    dtypes = {out.dtype for out in of_that_size if out.shape == [6, 9]}
    assert dtypes == {tf.bfloat16}


def masked_lm_graph(dtype) -> tf.Graph:
    specs = [tf.TensorSpec([6, 9], dtype), tf.TensorSpec([6], tf.int32), tf.TensorSpec([6])]
    return tf.function(masked_lm_loss).get_concrete_function(*specs).graph


def test_jit_compiled_equals_eager(rows):
    arguments = rows.lm_logits, rows.labels, rows.weights
    compiled = tf.function(masked_lm_loss, jit_compile=True)(*arguments)
    assert float(compiled) == pytest.approx(float(masked_lm_loss(*arguments)), rel=1e-6)


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_give_finite_values(magnitude):
    logits = tf.constant([[magnitude, 0.0, 0.0], [0.0, magnitude, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = masked_lm_loss(logits, tf.constant([0, 2]), tf.ones([2]))
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, logits)).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_without_any_weight_is_zero_with_zero_gradients(rows, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def loss_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = masked_lm_loss(logits, rows.labels, tf.zeros(len(rows.labels)))
        return loss, tape.gradient(loss, logits)

    loss, gradient = loss_and_gradient(tf.constant(rows.lm_logits))
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(rows.lm_logits))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_labels_without_weight_may_be_anything(rows, jit_compile):
    loss = tf.function(masked_lm_loss, jit_compile=jit_compile)
    ignored = np.where(rows.weights == 0, -100, rows.labels)
    assert (ignored < 0).any()
    assert float(loss(rows.lm_logits, ignored, rows.weights)) == pytest.approx(
        float(loss(rows.lm_logits, rows.labels, rows.weights)), rel=1e-6
    )


def test_refuses_labels_of_another_length(rows):
    with pytest.raises(ValueError, match="[Ss]hape"):
        masked_lm_loss(rows.lm_logits, rows.labels[:-1], rows.weights[:-1])


@settings(max_examples=25)
@given(seeds)
def test_does_not_depend_on_the_order_of_rows(seed):
    rows = make_rows(seed)
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    shuffled = masked_lm_loss(rows.lm_logits[order], rows.labels[order], rows.weights[order])
    loss = masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)
    assert float(shuffled) == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=25)
@given(seeds, st.integers(1, 5))
def test_rows_without_weight_do_not_count(seed, extra):
    rows = make_rows(seed)
    more = make_rows(seed + 1, n=extra)
    padded = masked_lm_loss(
        np.concatenate([rows.lm_logits, more.lm_logits]),
        np.concatenate([rows.labels, more.labels]),
        np.concatenate([rows.weights, np.zeros(extra, np.float32)]),
    )
    loss = masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)
    assert float(padded) == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=25)
@given(seeds, st.floats(-100, 100))
def test_does_not_depend_on_a_shift_of_the_logits(seed, shift):
    rows = make_rows(seed)
    shifted = masked_lm_loss(rows.lm_logits + np.float32(shift), rows.labels, rows.weights)
    loss = masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)
    assert float(shifted) == pytest.approx(float(loss), abs=1e-4)


@settings(max_examples=25)
@given(seeds, st.floats(0.01, 100))
def test_does_not_depend_on_the_scale_of_the_weights(seed, scale):
    rows = make_rows(seed)
    scaled = masked_lm_loss(rows.lm_logits, rows.labels, rows.weights * np.float32(scale))
    loss = masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)
    assert float(scaled) == pytest.approx(float(loss), rel=1e-5)

import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.losses import copy_loss


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, size=(3, 7)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [4], [1]])
    return logits, rng.random((3, 7)) < 0.8, mask


def test_equals_the_equation(batch):
    loss = copy_loss(*batch)
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(reference.copy_loss(*batch), rel=1e-5)


def test_averages_over_tokens_and_not_over_sequences():
    logits = np.zeros([2, 4], np.float32)
    logits[1, 0] = 5.0
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
    loss = copy_loss(logits, np.ones([2, 4]), mask)
    assert float(loss) == pytest.approx((4 * np.log(2) + np.log1p(np.exp(-5))) / 5, rel=1e-6)


def test_a_positive_logit_says_original():
    confident = tf.fill([1, 2], 20.0)
    assert float(copy_loss(confident, tf.ones([1, 2]), tf.ones([1, 2]))) == pytest.approx(
        0, abs=1e-6
    )
    assert float(copy_loss(confident, tf.zeros([1, 2]), tf.ones([1, 2]))) == pytest.approx(
        20, rel=1e-6
    )


@pytest.mark.parametrize("label_dtype", ["bool", "int32", "float32", "bfloat16"])
@pytest.mark.parametrize("mask_dtype", ["bool", "int32", "float16"])
def test_takes_labels_and_mask_of_any_dtype(batch, label_dtype, mask_dtype):
    logits, is_original, mask = batch
    loss = copy_loss(logits, tf.cast(is_original, label_dtype), tf.cast(mask, mask_dtype))
    assert float(loss) == pytest.approx(reference.copy_loss(*batch), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_float32(batch, dtype):
    logits, is_original, mask = batch
    logits = tf.cast(logits, dtype)
    loss = copy_loss(logits, is_original, mask)
    assert loss.dtype == tf.float32
    expected = reference.copy_loss(tf.cast(logits, tf.float64).numpy(), is_original, mask)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradient_equals_finite_differences(batch):
    logits, is_original, mask = batch
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = copy_loss(variable, is_original, mask)
    gradient = tape.gradient(loss, variable).numpy()
    expected = reference.gradient(lambda at: reference.copy_loss(at, is_original, mask), logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (gradient[~mask] == 0).all()


def test_jit_compiled_equals_eager(batch):
    compiled = tf.function(copy_loss, jit_compile=True)(*batch)
    assert float(compiled) == pytest.approx(float(copy_loss(*batch)), rel=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_extreme_logits_give_their_exact_loss_and_gradient(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def loss_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = copy_loss(logits, tf.constant([[True, True]]), tf.ones([1, 2]))
        return loss, tape.gradient(loss, logits)

    loss, gradient = loss_and_gradient(tf.constant([[1e4, -1e4]]))
    assert float(loss) == pytest.approx(5e3)
    np.testing.assert_allclose(gradient, [[0, -0.5]])


def test_without_any_weight_is_zero_with_zero_gradients(batch):
    logits, is_original, mask = batch
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = copy_loss(logits, is_original, np.zeros_like(mask))
    assert loss == 0
    np.testing.assert_array_equal(tape.gradient(loss, logits), np.zeros([3, 7]))


def test_refuses_a_mask_of_another_shape(batch):
    logits, is_original, mask = batch
    with pytest.raises(ValueError, match="incompatible"):
        copy_loss(logits, is_original, mask[:1])

import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_rows import make_rows

from cocolm_tf.losses import corrective_lm_loss, masked_lm_loss

seeds = st.integers(0, 10_000)


def gradients(rows, jit_compile=False, **options):
    """The loss and its gradients by the LM logits and by the copy logits."""

    def loss_and_gradients(lm_logits, copy_logits):
        with tf.GradientTape() as tape:
            tape.watch([lm_logits, copy_logits])
            loss = corrective_lm_loss(
                lm_logits, copy_logits, rows.input_ids, rows.labels, rows.weights, **options
            )
        slopes = tape.gradient(
            loss, [lm_logits, copy_logits], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return loss, *slopes

    if jit_compile:
        loss_and_gradients = tf.function(loss_and_gradients, jit_compile=True)
    return loss_and_gradients(tf.constant(rows.lm_logits), tf.constant(rows.copy_logits))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("use_copy", [False, True])
def test_equals_the_equation(rows, use_copy, stop_gradient, jit_compile):
    expected = reference.corrective_lm_loss(*rows.arguments(), use_copy=use_copy)
    loss, _, _ = gradients(
        rows, jit_compile=jit_compile, use_copy=use_copy, stop_gradient=stop_gradient
    )
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("copy_logit", [-3.0, 0.0, 2.0])
def test_closed_form_with_uniform_softmax(copy_logit):
    p_copy = 1 / (1 + np.exp(-copy_logit))
    loss = corrective_lm_loss(
        tf.zeros([2, 10]), tf.fill([2], copy_logit), [3, 7], [3, 5], [1.0, 1.0]
    )
    original, replaced = p_copy + (1 - p_copy) / 10, (1 - p_copy) / 10
    assert float(loss) == pytest.approx(-np.log(original * replaced) / 2, rel=1e-5)


def test_without_copy_is_the_masked_lm_loss(rows):
    loss = corrective_lm_loss(*rows.arguments(), use_copy=False)
    assert loss == masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)


@pytest.mark.parametrize("use_copy", [False, True])
def test_lm_gradient_equals_finite_differences(rows, use_copy):
    _, by_lm, _ = gradients(rows, use_copy=use_copy)
    _, *others = rows.arguments()
    expected = reference.gradient(
        lambda at: reference.corrective_lm_loss(at, *others, use_copy=use_copy), rows.lm_logits
    )
    np.testing.assert_allclose(by_lm, expected, atol=1e-6)


def test_copy_gradient_equals_finite_differences(rows):
    _, _, by_copy = gradients(rows, stop_gradient=False)
    expected = reference.gradient(
        lambda at: reference.corrective_lm_loss(
            rows.lm_logits, at, rows.input_ids, rows.labels, rows.weights
        ),
        rows.copy_logits,
    )
    np.testing.assert_allclose(by_copy, expected, atol=1e-6)
    assert np.abs(by_copy).max() > 0.01


def test_stop_gradient_cuts_the_copy_logits_and_nothing_else(rows):
    loss, by_lm, by_copy = gradients(rows, stop_gradient=True)
    free_loss, free_by_lm, _ = gradients(rows, stop_gradient=False)
    np.testing.assert_array_equal(by_copy, np.zeros_like(rows.copy_logits))
    assert loss == free_loss
    np.testing.assert_array_equal(by_lm, free_by_lm)
    assert np.abs(by_lm).max() > 0.01


@pytest.mark.parametrize("jit_compile", [False, True])
def test_saturated_copy_gives_its_exact_loss_and_gradient(jit_compile):
    rows = make_rows(0, n=4, v=5)
    rows.lm_logits = np.zeros([4, 5], np.float32)
    rows.copy_logits = np.float32([1e4, 1e4, -1e4, -1e4])
    rows.labels = np.int32([1, 1, 1, 1])
    rows.input_ids = np.int32([1, 2, 1, 2])
    rows.weights = np.ones(4, np.float32)
    loss, by_lm, by_copy = gradients(rows, jit_compile, stop_gradient=False)
    # Copied for certain and right; copied for certain and wrong; left to the softmax, twice.
    assert float(loss) == pytest.approx((0 + 1e4 + 3 * np.log(5)) / 4, rel=1e-6)
    softmax_slope = (np.full(5, 0.2) - np.eye(5)[1]) / 4
    np.testing.assert_allclose(by_lm[0], np.zeros(5), atol=1e-7)
    np.testing.assert_allclose(by_lm[1:], np.tile(softmax_slope, [3, 1]), atol=1e-6)
    np.testing.assert_allclose(by_copy, [0, 0.25, 0, 0], atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_give_finite_values(rows, magnitude, stop_gradient, jit_compile):
    rows.lm_logits = np.sign(rows.lm_logits) * np.float32(magnitude)
    rows.copy_logits = np.sign(rows.copy_logits) * np.float32(magnitude)
    for value in gradients(rows, jit_compile, stop_gradient=stop_gradient):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_float32(rows, dtype):
    lm_logits, copy_logits = tf.cast(rows.lm_logits, dtype), tf.cast(rows.copy_logits, dtype)
    others = rows.input_ids, rows.labels, rows.weights
    with tf.GradientTape() as tape:
        tape.watch([lm_logits, copy_logits])
        loss = corrective_lm_loss(lm_logits, copy_logits, *others, stop_gradient=False)
    rounded = tf.cast(lm_logits, tf.float64).numpy(), tf.cast(copy_logits, tf.float64).numpy()
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(reference.corrective_lm_loss(*rounded, *others), rel=1e-5)
    for gradient in tape.gradient(loss, [lm_logits, copy_logits]):
        assert gradient.dtype == dtype
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@pytest.mark.parametrize("use_copy", [False, True])
def test_without_any_weight_is_zero_with_zero_gradients(rows, use_copy):
    rows.weights = np.zeros_like(rows.weights)
    for value in gradients(rows, use_copy=use_copy, stop_gradient=False):
        np.testing.assert_array_equal(value, np.zeros(value.shape))


def test_refuses_copy_logits_that_would_broadcast(rows):
    rows.copy_logits = rows.copy_logits[:, np.newaxis]
    with pytest.raises(ValueError, match="incompatible"):
        corrective_lm_loss(*rows.arguments())


@settings(max_examples=25)
@given(seeds)
def test_does_not_depend_on_the_order_of_rows(seed):
    rows = make_rows(seed)
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    shuffled = corrective_lm_loss(*(argument[order] for argument in rows.arguments()))
    assert float(shuffled) == pytest.approx(float(corrective_lm_loss(*rows.arguments())), rel=1e-5)


@settings(max_examples=25)
@given(seeds, st.integers(1, 5))
def test_rows_without_weight_do_not_count(seed, extra):
    rows, more = make_rows(seed), make_rows(seed + 1, n=extra)
    more.weights = np.zeros_like(more.weights)
    pairs = zip(rows.arguments(), more.arguments(), strict=True)
    padded = corrective_lm_loss(*(np.concatenate(pair) for pair in pairs))
    assert float(padded) == pytest.approx(float(corrective_lm_loss(*rows.arguments())), rel=1e-5)


@settings(max_examples=25)
@given(seeds, st.floats(-100, 100))
def test_does_not_depend_on_a_shift_of_the_lm_logits(seed, shift):
    rows = make_rows(seed)
    loss = corrective_lm_loss(*rows.arguments())
    rows.lm_logits = rows.lm_logits + np.float32(shift)
    assert float(corrective_lm_loss(*rows.arguments())) == pytest.approx(float(loss), abs=1e-4)


@settings(max_examples=25)
@given(seeds)
def test_the_lm_head_never_learns_more_from_a_token_it_could_copy(seed):
    rows = make_rows(seed)
    rows.input_ids = rows.labels
    _, by_lm, _ = gradients(rows, use_copy=True)
    _, plain, _ = gradients(rows, use_copy=False)
    assert (np.abs(by_lm) <= np.abs(plain) + 1e-7).all()

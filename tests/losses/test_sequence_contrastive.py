import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.losses import contrastive_cosines, sequence_contrastive_loss

seeds = st.integers(0, 10_000)


def make_views(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, 5, 6)).astype(np.float32))


def gradients(first, second, jit_compile=False, **options):
    """The loss and its gradients by the two views."""

    def loss_and_gradients(first, second):
        with tf.GradientTape() as tape:
            tape.watch([first, second])
            loss = sequence_contrastive_loss(first, second, **options)
        return loss, *tape.gradient(loss, [first, second])

    if jit_compile:
        loss_and_gradients = tf.function(loss_and_gradients, jit_compile=True)
    return loss_and_gradients(tf.convert_to_tensor(first), tf.convert_to_tensor(second))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 20.0])
def test_equals_the_equation(views, temperature, jit_compile):
    loss, _, _ = gradients(*views, jit_compile=jit_compile, temperature=temperature)
    assert loss.dtype == tf.float32
    assert loss.shape == []
    expected = reference.sequence_contrastive_loss(*views, temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_equal_vectors_cannot_be_told_apart():
    same = tf.ones([4, 3])
    assert float(sequence_contrastive_loss(same, same)) == pytest.approx(np.log(7), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_closed_form_with_orthogonal_pairs(temperature):
    loss = sequence_contrastive_loss(tf.eye(5), 3 * tf.eye(5), temperature)
    expected = np.log(np.exp(1 / temperature) + 8) - 1 / temperature
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_single_pair_has_no_negatives():
    loss = sequence_contrastive_loss(tf.constant([[1.0, 2.0]]), tf.constant([[2.0, -3.0]]))
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_gradient_equals_finite_differences(views):
    first, second = views
    _, by_first, by_second = gradients(first, second, temperature=0.5)
    expected = reference.gradient(
        lambda at: reference.sequence_contrastive_loss(at, second, 0.5), first
    )
    np.testing.assert_allclose(by_first, expected, atol=1e-6)
    expected = reference.gradient(
        lambda at: reference.sequence_contrastive_loss(first, at, 0.5), second
    )
    np.testing.assert_allclose(by_second, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_float32(views, dtype):
    first, second = tf.cast(views[0], dtype), tf.cast(views[1], dtype)
    loss, *slopes = gradients(first, second)
    rounded = tf.cast(first, tf.float64).numpy(), tf.cast(second, tf.float64).numpy()
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(reference.sequence_contrastive_loss(*rounded), rel=1e-5)
    assert [slope.dtype for slope in slopes] == [dtype, dtype]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_zero_vectors_give_finite_values(views, dtype, jit_compile):
    first, second = views[0].copy(), views[1].copy()
    first[0] = first[3] = second[3] = 0
    loss, by_first, by_second = gradients(
        tf.cast(first, dtype), tf.cast(second, dtype), jit_compile
    )
    assert np.isfinite(loss)
    assert np.isfinite(by_first).all()
    assert np.isfinite(by_second).all()
    np.testing.assert_array_equal(by_first[0], np.zeros(5))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_all_vectors_zero(jit_compile):
    zeros = tf.zeros([4, 3])
    loss, by_first, by_second = gradients(zeros, zeros, jit_compile)
    assert float(loss) == pytest.approx(np.log(7), rel=1e-6)
    np.testing.assert_array_equal([by_first, by_second], np.zeros([2, 4, 3]))


@pytest.mark.parametrize("loss", [sequence_contrastive_loss, contrastive_cosines])
def test_refuses_views_of_different_shapes(views, loss):
    with pytest.raises(ValueError, match="incompatible"):
        loss(views[0], views[1][:1])


@settings(max_examples=25)
@given(seeds)
def test_is_symmetric_in_the_views(seed):
    first, second = make_views(seed)
    loss = sequence_contrastive_loss(first, second)
    assert float(sequence_contrastive_loss(second, first)) == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=25)
@given(seeds)
def test_does_not_depend_on_the_order_of_pairs(seed):
    first, second = make_views(seed)
    order = np.random.default_rng(seed).permutation(len(first))
    loss = sequence_contrastive_loss(first, second)
    shuffled = sequence_contrastive_loss(first[order], second[order])
    assert float(shuffled) == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=25)
@given(seeds)
def test_does_not_depend_on_the_lengths_of_vectors(seed):
    first, second = make_views(seed)
    scale = 10 ** np.random.default_rng(seed).uniform(-6, 6, size=(2, 5, 1)).astype(np.float32)
    loss = sequence_contrastive_loss(first, second)
    scaled = sequence_contrastive_loss(first * scale[0], second * scale[1])
    assert float(scaled) == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=25)
@given(seeds)
def test_stays_between_its_bounds(seed):
    loss = sequence_contrastive_loss(*make_views(seed))
    # All cosines lie in [-1, 1], so no vector does better or worse than these.
    best, worst = np.log(1 + 8 * np.exp(-2)), np.log(1 + 8 * np.exp(2))
    assert best <= loss <= worst


def test_cosines_equal_those_of_every_pair(views):
    positive, negative = contrastive_cosines(*views)
    expected_positive, expected_negative = reference.contrastive_cosines(*views)
    assert float(positive) == pytest.approx(expected_positive, abs=1e-5)
    assert float(negative) == pytest.approx(expected_negative, abs=1e-5)


@settings(max_examples=25)
@given(seeds)
def test_cosines_equal_those_of_every_pair_of_any_views(seed):
    views = make_views(seed)
    np.testing.assert_allclose(
        contrastive_cosines(*views), reference.contrastive_cosines(*views), atol=1e-5
    )


def test_cosines_at_known_values():
    np.testing.assert_allclose(contrastive_cosines(tf.eye(4), tf.eye(4)), [1, 0], atol=1e-6)
    same = 5 * tf.ones([4, 3])
    np.testing.assert_allclose(contrastive_cosines(same, same), [1, 1], atol=1e-6)
    np.testing.assert_allclose(contrastive_cosines(same, -same), [-1, 0], atol=1e-6)


def test_cosines_of_a_single_pair_have_no_negatives():
    one = tf.constant([[3.0, 4.0]])
    np.testing.assert_allclose(contrastive_cosines(one, one), [1, 0], atol=1e-6)


def test_cosines_jit_compiled_equal_eager(views):
    compiled = tf.function(contrastive_cosines, jit_compile=True)(*views)
    np.testing.assert_allclose(compiled, contrastive_cosines(*views), atol=1e-6)

import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_reference import Rows, make_rows

from cocolm_tf.losses import copy_loss, corrective_lm_loss, masked_lm_loss, weighted_mean

seeds = st.integers(0, 10_000)
each_way = pytest.mark.parametrize("jit_compile", [False, True])


@pytest.fixture
def rows() -> Rows:
    return make_rows(seed=1)


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `copy_loss` takes."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, size=(3, 7)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [4], [1]])
    return logits, rng.random((3, 7)) < 0.8, mask


def loss_and_gradients(loss, *logits, jit_compile=False):
    """A loss of logits, and its gradients by them."""

    def compute(*logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(*logits)
        return value, *tape.gradient(
            value, logits, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    compute = tf.function(compute, jit_compile=True) if jit_compile else compute
    return compute(*map(tf.convert_to_tensor, logits))


def masked(rows: Rows, logits=None, jit_compile=False):
    logits = rows.lm_logits if logits is None else logits
    return loss_and_gradients(
        lambda logits: masked_lm_loss(logits, rows.labels, rows.weights),
        logits,
        jit_compile=jit_compile,
    )


def corrective(rows: Rows, jit_compile=False, dtype="float32", **options):
    """The loss and its gradients by the LM logits and by the copy logits."""
    _, _, *others = rows.arguments()
    return loss_and_gradients(
        lambda lm, copy: corrective_lm_loss(lm, copy, *others, **options),
        tf.cast(rows.lm_logits, dtype),
        tf.cast(rows.copy_logits, dtype),
        jit_compile=jit_compile,
    )


def assert_is_scalar(loss, expected) -> None:
    assert loss.dtype == tf.float32 and loss.shape == []
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# --- The weighted mean ---


def test_the_mean_is_weighted():
    assert float(weighted_mean([2.0, 4.0, 9.0], [3.0, 1.0, 0.0])) == pytest.approx(2.5)
    for dtype in ("bool", "int32", "float16", "bfloat16", "float64"):
        mean = weighted_mean(tf.constant([2.0, 4.0, 9.0]), tf.cast([1, 1, 0], dtype))
        assert mean.dtype == tf.float32 and float(mean) == pytest.approx(3.0)


def test_many_float16_weights_sum_without_overflow():
    weights = tf.ones([70_000], tf.float16)  # float16 ends at 65,504
    assert float(weighted_mean(tf.fill([70_000], 2.0), weights)) == pytest.approx(2.0)


def test_shapes_that_would_broadcast_are_refused(rows, batch):
    logits, is_original, mask = batch
    with pytest.raises(ValueError, match="incompatible"):
        weighted_mean(tf.ones([3]), tf.ones([3, 1]))
    with pytest.raises(ValueError, match="incompatible"):
        copy_loss(logits, is_original, mask[:1])
    with pytest.raises(ValueError, match="[Ss]hape"):
        masked_lm_loss(rows.lm_logits, rows.labels[:-1], rows.weights[:-1])
    rows.copy_logits = rows.copy_logits[:, np.newaxis]
    with pytest.raises(ValueError, match="incompatible"):
        corrective_lm_loss(*rows.arguments())


@each_way
def test_without_any_weight_losses_and_gradients_are_zero(rows, batch, jit_compile):
    rows.weights = np.zeros_like(rows.weights)
    logits, is_original, mask = batch
    found = [
        *loss_and_gradients(lambda values: weighted_mean(values, tf.zeros([2])), [2.0, 4.0]),
        *masked(rows, jit_compile=jit_compile),
        *corrective(rows, jit_compile, stop_gradient=False),
        *corrective(rows, use_copy=False),
        *loss_and_gradients(lambda x: copy_loss(x, is_original, np.zeros_like(mask)), logits),
    ]
    for value in found:
        np.testing.assert_array_equal(value, np.zeros(value.shape))


# --- Masked language modeling ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masked_lm_equals_the_equation_in_float32(rows, dtype):
    logits = tf.cast(rows.lm_logits, dtype)
    rounded = tf.cast(logits, tf.float64).numpy()
    loss, gradient = masked(rows, logits)
    assert_is_scalar(loss, reference.masked_lm_loss(rounded, rows.labels, rows.weights))
    assert gradient.dtype == dtype


def test_uniform_logits_cost_log_of_the_vocabulary_size():
    loss = masked_lm_loss(tf.fill([3, 50], 7.0), tf.constant([0, 20, 49]), tf.ones([3]))
    assert float(loss) == pytest.approx(np.log(50), rel=1e-6)


@each_way
def test_masked_lm_gradient_equals_finite_differences(rows, jit_compile):
    loss, gradient = masked(rows, jit_compile=jit_compile)
    assert_is_scalar(loss, reference.masked_lm_loss(rows.lm_logits, rows.labels, rows.weights))
    expected = reference.gradient(
        lambda at: reference.masked_lm_loss(at, rows.labels, rows.weights), rows.lm_logits
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_makes_no_float32_copy_of_bfloat16_logits():
    specs = [tf.TensorSpec([6, 9], tf.bfloat16), tf.TensorSpec([6], tf.int32), tf.TensorSpec([6])]
    graph = tf.function(masked_lm_loss).get_concrete_function(*specs).graph
    outputs = [out for op in graph.get_operations() for out in op.outputs]
    assert {out.dtype for out in outputs if out.shape == [6, 9]} == {tf.bfloat16}


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_give_finite_values(magnitude):
    logits = tf.constant([[magnitude, 0.0, 0.0], [0.0, magnitude, 0.0]])
    for value in loss_and_gradients(
        lambda logits: masked_lm_loss(logits, tf.constant([0, 2]), tf.ones([2])), logits
    ):
        assert np.isfinite(value).all()


@each_way
def test_labels_without_weight_may_be_anything(rows, jit_compile):
    loss = tf.function(masked_lm_loss, jit_compile=jit_compile)
    ignored = np.where(rows.weights == 0, -100, rows.labels)
    assert (ignored < 0).any()
    assert float(loss(rows.lm_logits, ignored, rows.weights)) == pytest.approx(
        float(loss(rows.lm_logits, rows.labels, rows.weights)), rel=1e-6
    )


# --- The copy loss ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_copy_loss_equals_the_equation_in_float32(batch, dtype):
    logits, is_original, mask = batch
    logits = tf.cast(logits, dtype)
    rounded = tf.cast(logits, tf.float64).numpy()
    loss = copy_loss(logits, is_original, mask)
    assert_is_scalar(loss, reference.copy_loss(rounded, is_original, mask))


def test_copy_loss_averages_over_tokens_and_not_over_sequences():
    logits = np.zeros([2, 4], np.float32)
    logits[1, 0] = 5.0
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
    loss = copy_loss(logits, np.ones([2, 4]), mask)
    assert float(loss) == pytest.approx((4 * np.log(2) + np.log1p(np.exp(-5))) / 5, rel=1e-6)


@pytest.mark.parametrize("label_dtype", ["bool", "int32", "bfloat16"])
@pytest.mark.parametrize("mask_dtype", ["bool", "int32", "float16"])
def test_copy_loss_takes_labels_and_mask_of_any_dtype(batch, label_dtype, mask_dtype):
    logits, is_original, mask = batch
    loss = copy_loss(logits, tf.cast(is_original, label_dtype), tf.cast(mask, mask_dtype))
    assert float(loss) == pytest.approx(reference.copy_loss(*batch), rel=1e-5)


@each_way
def test_copy_gradient_equals_finite_differences(batch, jit_compile):
    logits, is_original, mask = batch
    loss, gradient = loss_and_gradients(
        lambda logits: copy_loss(logits, is_original, mask), logits, jit_compile=jit_compile
    )
    assert_is_scalar(loss, reference.copy_loss(*batch))
    expected = reference.gradient(lambda at: reference.copy_loss(at, is_original, mask), logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (gradient.numpy()[~mask] == 0).all()


@each_way
def test_extreme_copy_logits_give_their_exact_loss_and_gradient(jit_compile):
    """A positive one says "original"."""
    loss, gradient = loss_and_gradients(
        lambda logits: copy_loss(logits, tf.constant([[True, True]]), tf.ones([1, 2])),
        [[1e4, -1e4]],
        jit_compile=jit_compile,
    )
    assert float(loss) == pytest.approx(5e3)
    np.testing.assert_allclose(gradient, [[0, -0.5]])


# --- Corrective language modeling ---


@pytest.mark.parametrize("use_copy", [False, True])
def test_corrective_lm_and_its_gradients_equal_the_equation(rows, use_copy):
    lm, copy, *others = rows.arguments()
    expected = reference.corrective_lm_loss(*rows.arguments(), use_copy=use_copy)
    loss, by_lm, by_copy = corrective(rows, use_copy=use_copy, stop_gradient=False)
    assert_is_scalar(loss, expected)
    assert_is_scalar(corrective(rows, jit_compile=True, use_copy=use_copy)[0], expected)

    def slopes(by: str) -> np.ndarray:
        if by == "lm":
            return reference.gradient(
                lambda at: reference.corrective_lm_loss(at, copy, *others, use_copy=use_copy), lm
            )
        return reference.gradient(
            lambda at: reference.corrective_lm_loss(lm, at, *others, use_copy=use_copy), copy
        )

    np.testing.assert_allclose(by_lm, slopes("lm"), atol=1e-6)
    np.testing.assert_allclose(by_copy, slopes("copy"), atol=1e-6)
    assert bool(np.abs(by_copy).max() > 0.01) == use_copy


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


def test_stop_gradient_cuts_the_copy_logits_and_nothing_else(rows):
    loss, by_lm, by_copy = corrective(rows, stop_gradient=True)
    free_loss, free_by_lm, _ = corrective(rows, stop_gradient=False)
    np.testing.assert_array_equal(by_copy, np.zeros_like(rows.copy_logits))
    assert loss == free_loss
    np.testing.assert_array_equal(by_lm, free_by_lm)
    assert np.abs(by_lm).max() > 0.01


@each_way
def test_saturated_copy_gives_its_exact_loss_and_gradient(jit_compile):
    rows = make_rows(0, n=4, v=5)
    rows.lm_logits = np.zeros([4, 5], np.float32)
    rows.copy_logits = np.float32([1e4, 1e4, -1e4, -1e4])
    rows.labels = np.int32([1, 1, 1, 1])
    rows.input_ids = np.int32([1, 2, 1, 2])
    rows.weights = np.ones(4, np.float32)
    loss, by_lm, by_copy = corrective(rows, jit_compile, stop_gradient=False)
    # Copied for certain and right; copied for certain and wrong; left to the softmax, twice.
    assert float(loss) == pytest.approx((0 + 1e4 + 3 * np.log(5)) / 4, rel=1e-6)
    softmax_slope = (np.full(5, 0.2) - np.eye(5)[1]) / 4
    np.testing.assert_allclose(by_lm[0], np.zeros(5), atol=1e-7)
    np.testing.assert_allclose(by_lm[1:], np.tile(softmax_slope, [3, 1]), atol=1e-6)
    np.testing.assert_allclose(by_copy, [0, 0.25, 0, 0], atol=1e-7)


@each_way
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_corrective_logits_give_finite_values(rows, magnitude, jit_compile):
    rows.lm_logits = np.sign(rows.lm_logits) * np.float32(magnitude)
    rows.copy_logits = np.sign(rows.copy_logits) * np.float32(magnitude)
    for value in corrective(rows, jit_compile, stop_gradient=False):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_corrective_lm_computes_in_float32(rows, dtype):
    _, _, *others = rows.arguments()
    rounded = (tf.cast(x, dtype) for x in (rows.lm_logits, rows.copy_logits))
    rounded = (tf.cast(x, tf.float64).numpy() for x in rounded)
    loss, *slopes = corrective(rows, dtype=dtype, stop_gradient=False)
    assert_is_scalar(loss, reference.corrective_lm_loss(*rounded, *others))
    for slope in slopes:
        assert slope.dtype == dtype and np.isfinite(tf.cast(slope, tf.float32)).all()


# --- What holds for any rows ---


def of_rows(rows: Rows) -> list[float]:
    return [
        float(masked_lm_loss(rows.lm_logits, rows.labels, rows.weights)),
        float(corrective_lm_loss(*rows.arguments())),
    ]


@settings(max_examples=10)
@given(seeds, st.integers(1, 5), st.floats(-100, 100), st.floats(0.01, 100))
def test_neither_order_nor_padding_nor_shift_nor_scale_count(seed, extra, shift, scale):
    rows, more = make_rows(seed), make_rows(seed + 1, n=extra)
    expected = pytest.approx(of_rows(rows), rel=1e-5)
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    assert of_rows(Rows(*(argument[order] for argument in rows.arguments()))) == expected
    more.weights = np.zeros_like(more.weights)
    pairs = zip(rows.arguments(), more.arguments(), strict=True)
    assert of_rows(Rows(*(np.concatenate(pair) for pair in pairs))) == expected
    rows.weights = rows.weights * np.float32(scale)
    assert of_rows(rows) == expected
    rows.lm_logits = rows.lm_logits + np.float32(shift)
    assert of_rows(rows) == pytest.approx(of_rows(make_rows(seed)), abs=1e-4)


@settings(max_examples=10)
@given(seeds)
def test_the_lm_head_never_learns_more_from_a_token_it_could_copy(seed):
    rows = make_rows(seed)
    rows.input_ids = rows.labels
    _, by_lm, _ = corrective(rows, use_copy=True)
    _, plain, _ = corrective(rows, use_copy=False)
    assert (np.abs(by_lm) <= np.abs(plain) + 1e-7).all()

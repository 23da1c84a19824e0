import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.losses import (
    contrastive_cosines,
    cosine_regression_loss,
    in_batch_negatives_loss,
    sequence_contrastive_loss,
)

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


@pytest.mark.parametrize(
    ("temperature", "jit_compile"), [(1.0, True), (1.0, False), (0.05, False), (20.0, False)]
)
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


@pytest.mark.parametrize(("dtype", "jit_compile"), [("float16", True), ("float32", False)])
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


@settings(max_examples=10)
@given(seeds)
def test_views_may_be_swapped_reordered_and_scaled(seed):
    first, second = make_views(seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(first))
    scale = 10 ** rng.uniform(-6, 6, size=(2, 5, 1)).astype(np.float32)
    loss = pytest.approx(float(sequence_contrastive_loss(first, second)), rel=1e-5)
    assert float(sequence_contrastive_loss(second, first)) == loss
    assert float(sequence_contrastive_loss(first[order], second[order])) == loss
    assert float(sequence_contrastive_loss(first * scale[0], second * scale[1])) == loss


@settings(max_examples=10)
@given(seeds)
def test_stays_between_its_bounds(seed):
    loss = sequence_contrastive_loss(*make_views(seed))
    # All cosines lie in [-1, 1], so no vector does better or worse than these.
    best, worst = np.log(1 + 8 * np.exp(-2)), np.log(1 + 8 * np.exp(2))
    assert best <= loss <= worst


@settings(max_examples=10)
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


# --- Embeddings ---

ROWS, WIDTH = 6, 5


def make_batch(seed: int, negatives: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "queries": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "documents": rng.normal(size=(ROWS, 1 + negatives, WIDTH)).astype(np.float32),
        "weights": np.float32([1, 0, 0.5, 2, 1, 0]),
        # Some documents are there twice: as two rows' own, and as a negative of another.
        "document_keys": rng.integers(0, 9, size=(ROWS, 1 + negatives)).astype(np.int64),
        "query_keys": rng.integers(0, 4, size=ROWS).astype(np.int64),
    }


def in_batch(batch: dict[str, np.ndarray], **options):
    """The loss, its gradients by queries and documents, and the reference."""
    options = {name: batch[name] for name in options.pop("give", ())} | options
    vectors = [tf.constant(batch[name]) for name in ("queries", "documents")]
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = in_batch_negatives_loss(*vectors, **options)
    expected = reference.in_batch_negatives_loss(batch["queries"], batch["documents"], **options)
    return loss, tape.gradient(loss, vectors), expected


@settings(max_examples=20)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([0.05, 1.0]),
    st.sets(st.sampled_from(["weights", "document_keys", "query_keys"])),
    st.sampled_from([(), (3,), (5, 2)]),
)
def test_in_batch_negatives_equal_the_equation(seed, negatives, temperature, give, dimensions):
    loss, _, expected = in_batch(
        make_batch(seed, negatives), temperature=temperature, give=give, dimensions=dimensions
    )
    assert loss.dtype == tf.float32 and loss.shape == []
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_in_batch_gradients_equal_finite_differences():
    batch = make_batch(1)
    options = {"temperature": 0.5, "dimensions": (5, 2)}
    give = ("weights", "document_keys", "query_keys")
    _, gradients, _ = in_batch(batch, **options, give=give)
    for name, gradient in zip(("queries", "documents"), gradients, strict=True):
        expected = reference.gradient(
            lambda at, name=name: reference.in_batch_negatives_loss(
                **{n: batch[n] for n in ("queries", "documents")} | {name: at},
                weights=batch["weights"],
                document_keys=batch["document_keys"],
                query_keys=batch["query_keys"],
                **options,
            ),
            batch[name],
        )
        np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_in_batch_negatives_of_orthogonal_vectors(temperature):
    loss = in_batch_negatives_loss(tf.eye(5), 7 * tf.eye(5)[:, tf.newaxis], temperature)
    expected = np.log(np.exp(1 / temperature) + 4) - 1 / temperature
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_documents_that_are_all_the_same_cannot_be_told_apart():
    same = tf.ones([4, 3, 2])
    assert float(in_batch_negatives_loss(same[:, 0], same)) == pytest.approx(np.log(12), rel=1e-6)
    # Unless they are known to be the same.
    keys = tf.zeros([4, 3], tf.int64)
    loss = in_batch_negatives_loss(same[:, 0], same, document_keys=keys)
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_what_is_right_for_the_same_query_is_no_negative():
    documents, queries = tf.eye(3)[:, tf.newaxis], tf.ones([3, 3])
    loss = in_batch_negatives_loss(queries, documents, query_keys=tf.constant([4, 4, 5], tf.int64))
    # Two rows have one other candidate, the third has two.
    assert float(loss) == pytest.approx((2 * np.log(2) + np.log(3)) / 3, rel=1e-6)


def test_rows_of_weight_0_leave_the_batch():
    batch = make_batch(3)
    batch["weights"] = np.float32([1, 1, 1, 1, 0, 0])
    loss, gradients, _ = in_batch(batch, give=("weights",))
    fewer = {name: value[:4] for name, value in batch.items()}
    expected, expected_gradients, _ = in_batch(fewer)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for gradient, of_fewer in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient[:4], of_fewer, atol=1e-6)
        np.testing.assert_array_equal(gradient[4:], np.zeros_like(gradient[4:]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_no_weights_and_zero_vectors_give_finite_values(jit_compile):
    batch = make_batch(4)
    batch["queries"][0] = batch["documents"][2] = 0

    @tf.function(jit_compile=jit_compile)
    def loss_and_gradients(queries, documents, weights):
        with tf.GradientTape() as tape:
            tape.watch([queries, documents])
            loss = in_batch_negatives_loss(queries, documents, weights=weights)
        return loss, *tape.gradient(loss, [queries, documents])

    vectors = tf.constant(batch["queries"], tf.float16), tf.constant(batch["documents"], tf.float16)
    for weights in (tf.zeros([ROWS]), tf.ones([ROWS])):
        loss, *gradients = loss_and_gradients(*vectors, weights)
        assert np.isfinite(loss) and all(np.isfinite(one).all() for one in gradients)
        assert bool(loss > 0) == bool(weights[0])


def test_cosines_of_known_vectors():
    loss = cosine_regression_loss(tf.eye(2), tf.eye(2)[::-1], tf.constant([0.0, 0.6]))
    assert float(loss) == pytest.approx(0.18, rel=1e-6)
    same = tf.ones([3, 4])
    assert float(cosine_regression_loss(same, 2 * same, tf.ones([3]))) == pytest.approx(0, abs=1e-6)
    assert float(cosine_regression_loss(same, -same, tf.ones([3]))) == pytest.approx(4, rel=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([(), (4,), (5, 1)]), st.booleans())
def test_cosine_regression_equals_the_equation(seed, dimensions, weighted):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    cosines = rng.uniform(-1, 1, ROWS)
    weights = np.float32([1, 0, 0.5, 2, 1, 0]) if weighted else None
    loss = cosine_regression_loss(first, second, cosines, weights, dimensions)
    expected = reference.cosine_regression_loss(first, second, cosines, weights, dimensions)
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_cosine_regression_gradients_equal_finite_differences():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    cosines = rng.uniform(-1, 1, ROWS)
    at = tf.constant(first)
    with tf.GradientTape() as tape:
        tape.watch(at)
        loss = cosine_regression_loss(at, second, cosines, dimensions=(5, 3))
    expected = reference.gradient(
        lambda at: reference.cosine_regression_loss(at, second, cosines, dimensions=(5, 3)), first
    )
    np.testing.assert_allclose(tape.gradient(loss, at), expected, atol=1e-6)


@pytest.mark.parametrize("dimensions", [(0,), (6,), (5, -1)])
def test_dimensions_that_vectors_have_not_are_refused(dimensions):
    batch = make_batch(0)
    with pytest.raises(ValueError, match="vectors have 1 to 5 of them"):
        in_batch_negatives_loss(batch["queries"], batch["documents"], dimensions=dimensions)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="incompatible"):
        in_batch_negatives_loss(tf.ones([4, 3]), tf.ones([3, 1, 3]))
    with pytest.raises(ValueError, match="incompatible"):
        cosine_regression_loss(tf.ones([4, 3]), tf.ones([4, 3]), tf.ones([4, 1]))

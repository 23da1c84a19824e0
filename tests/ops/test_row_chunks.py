import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.ops.row_chunks import map_row_chunks

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(4, 30)).astype(np.float32)
BIAS = RNG.normal(size=30).astype(np.float32)


def rows_of(count: int) -> list[np.ndarray]:
    labels = RNG.integers(0, 30, count).astype(np.int32)
    return [RNG.normal(size=(count, 4)).astype(np.float32), labels]


def judge(x, labels, matrix, bias) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    logits = x @ matrix + bias
    errors = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return errors, tf.argmax(logits, axis=-1, output_type=tf.int32), logits[:, 0] ** 2


def gradients(compute, rows, upstream):
    x, matrix, bias = (tf.convert_to_tensor(value) for value in (rows[0], MATRIX, BIAS))
    with tf.GradientTape() as tape:
        tape.watch([x, matrix, bias])
        errors, predictions, squares = compute([x, tf.convert_to_tensor(rows[1])], [matrix, bias])
        total = tf.reduce_sum(errors * upstream) + tf.reduce_sum(squares)
    return [errors, predictions, squares], tape.gradient(total, [x, matrix, bias])


def at_once(rows, shared):
    return judge(*rows, *shared)


@settings(max_examples=10)
@given(count=st.integers(1, 20), chunk_rows=st.integers(1, 25))
def test_results_and_gradients_are_those_of_all_rows_at_once(count, chunk_rows):
    rows, upstream = rows_of(count), RNG.normal(size=count).astype(np.float32)
    expected = gradients(at_once, rows, upstream)
    found = gradients(lambda *args: map_row_chunks(judge, *args, chunk_rows), rows, upstream)
    for one, other in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "jit_compile"), [(7, False), (7, True), (None, False)])
def test_in_graphs_of_known_and_unknown_sizes(count, jit_compile):
    rows, upstream = rows_of(7), np.ones(7, np.float32)

    @tf.function(
        autograph=False,
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec([count, 4]), tf.TensorSpec([count], tf.int32)],
    )
    def compute(x, labels):
        found = gradients(lambda *args: map_row_chunks(judge, *args, 3), [x, labels], upstream)
        return found[0] + found[1]

    expected = gradients(at_once, rows, upstream)
    for one, other in zip(compute(*rows), expected[0] + expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_shared_gradients_are_added_in_float32():
    """In bfloat16, 1 is lost on 256: a sum of 320 ones by ones would stay there."""
    ones = tf.ones([320, 1], tf.bfloat16)
    with tf.GradientTape() as tape:
        weight = tf.ones([1], tf.bfloat16)
        tape.watch(weight)
        (products,) = map_row_chunks(lambda x, w: (x[:, 0] * w[0],), [ones], [weight], 1)
        total = tf.reduce_sum(tf.cast(products, tf.float32))
    assert float(tape.gradient(total, weight)[0]) == 320


def test_only_a_chunk_is_there_at_a_time():
    """No tensor of the graph has all rows' results before they are reduced."""

    @tf.function(autograph=False)
    def compute(x, labels, matrix, bias):
        with tf.GradientTape() as tape:
            tape.watch(matrix)
            errors, *_ = map_row_chunks(judge, [x, labels], [matrix, bias], 5)
        return tape.gradient(errors, matrix)

    def shapes(graph: tf.Graph) -> list[tuple[int, ...]]:
        found = []
        for operation in graph.get_operations():
            found += [tuple(x.shape) for x in operation.outputs if x.shape.rank is not None]
        library = graph._functions
        return found + [s for function in library.values() for s in shapes(function.graph)]

    rows = [tf.constant(value) for value in rows_of(40)]
    graph = compute.get_concrete_function(*rows, tf.constant(MATRIX), tf.constant(BIAS)).graph
    found = shapes(graph)
    assert (5, 30) in found
    assert (40, 30) not in found and (8, 5, 30) not in found

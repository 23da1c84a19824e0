import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cocolm_tf.ops.fusion import fused, is_compiled, row_max, row_sum


def in_graph(function, x, shape=None):
    """What `function` gives where the graph knows `shape`."""
    return tf.function(function, input_signature=[tf.TensorSpec(shape, x.dtype)])(x)


def test_compiles_where_a_graph_knows_its_shapes():
    seen = {}

    @fused
    def double(x):
        return 2 * x

    def run(x):
        seen[x.shape.rank, x.shape.is_fully_defined()] = is_compiled(x)
        return double(x)

    x = tf.ones([2, 3])
    assert not is_compiled(x)
    np.testing.assert_array_equal(double(x), 2 * x)
    for shape in ([2, 3], [None, 3]):
        np.testing.assert_array_equal(in_graph(run, x, shape), 2 * x)
    assert seen == {(2, True): True, (2, False): False}


def test_only_a_known_shape_is_handed_to_xla():
    @fused
    def double(x):
        return 2 * x

    def calls(shape):
        graph = tf.function(double).get_concrete_function(tf.TensorSpec(shape)).graph
        return [node for node in graph.as_graph_def().node if node.attr["_XlaMustCompile"].b]

    assert len(calls([4])) == 1
    assert not calls([None])


def test_keeps_the_name_and_the_documentation():
    @fused
    def double(x):
        """Doubles."""
        return 2 * x

    assert (double.__name__, double.__doc__) == ("double", "Doubles.")


finite = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


@settings(max_examples=15)
@given(arrays.arrays(np.float32, (3, 64), elements=finite))
@pytest.mark.parametrize("shape", [(3, 64), (None, 64)])
def test_largest_of_a_row(shape, x):
    expected = x.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(in_graph(row_max, tf.constant(x), shape), expected)
    np.testing.assert_array_equal(row_max(tf.constant(x)), expected)


@pytest.mark.parametrize("width", [1, 33, 96, 256])
def test_rows_of_any_width(width):
    x = np.random.default_rng(width).normal(size=(2, 3, width)).astype(np.float32)
    tensor = tf.constant(x)
    for shape in (x.shape, (None, None, width)):
        total = in_graph(row_sum, tensor, shape)
        np.testing.assert_allclose(total, x.sum(-1, keepdims=True), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(in_graph(row_max, tensor, shape), x.max(-1, keepdims=True))


def test_largest_among_infinities_and_zeros():
    x = tf.constant([[-np.inf] * 32, [0.0] * 31 + [np.inf], [-0.0, -1.0] * 16], tf.float32)
    np.testing.assert_array_equal(in_graph(row_max, x, x.shape), [[-np.inf], [np.inf], [0.0]])

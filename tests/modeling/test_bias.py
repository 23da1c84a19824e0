import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.ops.elementwise import add_bias


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_adds_and_learns_from_every_row(shape, in_graph):
    rng = np.random.default_rng(0)
    x, target = (tf.constant(rng.normal(size=shape), tf.float32) for _ in range(2))
    bias = tf.constant([1.0, -2.0, 0.5])

    def run(x, bias):
        with tf.GradientTape() as tape:
            tape.watch([x, bias])
            y = add_bias(x, bias)
            total = tf.reduce_sum(y * target)
        return y, *tape.gradient(total, [x, bias])

    y, x_gradient, bias_gradient = (tf.function(run) if in_graph else run)(x, bias)
    np.testing.assert_allclose(y, x + bias, rtol=1e-6)
    np.testing.assert_array_equal(x_gradient, target)
    np.testing.assert_allclose(
        bias_gradient, target.numpy().reshape(-1, 3).sum(0), rtol=1e-5, atol=1e-6
    )


def test_is_not_joined_with_the_product_before_it():
    @tf.function
    def run(x, kernel, bias):
        return add_bias(tf.matmul(x, kernel), bias)

    specs = [tf.TensorSpec(shape) for shape in ([4, 3], [3, 5], [5])]
    graph = run.get_concrete_function(*specs).graph.as_graph_def()
    assert not {"BiasAdd", "Add", "AddV2"} & {node.op for node in graph.node}

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.ops.attention import attention
from cocolm_tf.ops.elementwise import dropout_mask
from cocolm_tf.ops.fusion import compiling_for

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 64, 16
SCALE = WIDTH**-0.5
SEED = tf.constant([3, 4])


def operands(relative_shape, dtype="float32", size=1.0):
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(BATCH, HEADS, length, WIDTH)) * size for length in (QUERIES, KEYS, KEYS)
    )
    excluded = np.zeros((BATCH, 1, 1, KEYS))
    excluded[1, ..., 40:] = -1e4
    relative = rng.normal(size=relative_shape) * (relative_shape != NO_BIAS)
    return [tf.constant(x, dtype) for x in (query, key, value, excluded, relative)]


def formula(query, key, value, excluded, relative, rate=0.0):
    logits = tf.matmul(query, key, transpose_b=True) * SCALE + excluded + relative
    probabilities = tf.nn.softmax(logits)
    if rate:
        probabilities *= dropout_mask(probabilities.shape, rate, SEED)
    return tf.matmul(probabilities, value)


def ours(query, key, value, excluded, relative, rate=0.0):
    return attention(query, key, value, excluded, relative, rate, SEED if rate else None)


NO_BIAS = (1, 1, 1, 1)
RELATIVE_SHAPES = [(1, HEADS, QUERIES, KEYS), (BATCH, HEADS, QUERIES, KEYS), NO_BIAS]


@pytest.mark.parametrize("relative_shape", RELATIVE_SHAPES)
@pytest.mark.parametrize(("rate", "in_graph"), [(0.0, False), (0.3, True)])
def test_values_and_gradients_are_those_of_the_formula(relative_shape, rate, in_graph):
    arguments = operands(relative_shape)
    target = tf.constant(np.random.default_rng(1).normal(size=arguments[0].shape), tf.float32)

    def run(function):
        def both(query, key, value, excluded, relative):
            with tf.GradientTape() as tape:
                tape.watch([query, key, value, relative])
                y = function(query, key, value, excluded, relative, rate)
                total = tf.reduce_sum(y * target)
            return y, *tape.gradient(total, [query, key, value, relative])

        return (tf.function(both) if in_graph else both)(*arguments)

    for actual, expected in zip(run(ours), run(formula), strict=True):
        if expected.shape == NO_BIAS:
            expected = tf.zeros_like(expected)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_padding_gets_neither_weight_nor_gradient():
    arguments = operands(RELATIVE_SHAPES[0])
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        total = tf.reduce_sum(tf.function(ours)(*arguments) ** 2)
    key_slope, value_slope = tape.gradient(total, arguments[1:3])
    assert not np.any(key_slope[1, :, 40:]) and not np.any(value_slope[1, :, 40:])
    assert np.all(value_slope[0])
    _, _, value, excluded, relative = arguments
    ones = [*arguments[:2], tf.ones_like(value), excluded, relative]
    np.testing.assert_allclose(ours(*ones), 1, atol=1e-5)


@pytest.mark.parametrize("in_graph", [False, True])
def test_large_logits_do_not_overflow(in_graph):
    query = tf.constant([[[[1e5] + [0.0] * 15]]])
    key = tf.concat([tf.eye(1, 16), -tf.eye(1, 16), tf.zeros([30, 16])], 0)[tf.newaxis, tf.newaxis]
    value = tf.reshape(tf.range(32.0), [1, 1, 32, 1])
    arguments = query, key, value, tf.zeros([1, 1, 1, 32]), tf.zeros(NO_BIAS)
    np.testing.assert_array_equal((tf.function(ours) if in_graph else ours)(*arguments), [[[[0]]]])


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_number_that_is_none_shows(in_graph):
    query, key, value, excluded, relative = operands(NO_BIAS)
    query = tf.tensor_scatter_nd_update(query, [[0, 0, 0, 0]], [np.nan])
    run = tf.function(ours) if in_graph else ours
    attended = run(query, key, value, excluded, relative).numpy()
    assert np.isnan(attended[0, 0, 0]).all()
    assert np.isfinite(attended[0, 0, 1:]).all() and np.isfinite(attended[1]).all()


@pytest.mark.parametrize(("dtype", "in_graph"), [("bfloat16", True), ("float16", False)])
def test_half_precision_rounds_products_and_probabilities_alone(dtype, in_graph):
    half = operands(RELATIVE_SHAPES[0], dtype)
    actual = (tf.function(ours) if in_graph else ours)(*half)
    assert actual.dtype == dtype
    expected = formula(*(tf.cast(x, tf.float32) for x in half))
    np.testing.assert_allclose(tf.cast(actual, tf.float32), expected, atol=0.03)


def test_the_program_for_a_gpu_computes_the_same():
    """Its one-pass sums and barriers compile anywhere: here they run on a CPU."""
    arguments = operands(RELATIVE_SHAPES[0])

    def both(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = ours(*arguments, rate=0.3)
            total = tf.reduce_sum(y**2)
        return y, *tape.gradient(total, [*arguments[:3], arguments[4]])

    with compiling_for("GPU"):
        for_gpu = tf.function(both, jit_compile=True)(*arguments)
    for actual, expected in zip(for_gpu, tf.function(both)(*arguments), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("relative_shape", "rate"), [((1, HEADS, KEYS, KEYS), 0.1), (NO_BIAS, 0.0)]
)
def test_cudnn_is_called_where_it_fits(relative_shape, rate):
    x = tf.ones([BATCH, HEADS, KEYS, WIDTH], tf.bfloat16)
    excluded, relative = tf.zeros([BATCH, 1, 1, KEYS], x.dtype), tf.zeros(relative_shape, x.dtype)

    @tf.function(jit_compile=True, autograph=False)
    def step(x, excluded, relative):
        with tf.GradientTape() as tape:
            tape.watch([x, relative])
            y = attention(x, x, x, excluded, relative, rate, SEED, kernel="cudnn", name="block")
        return tape.gradient(y, [x, relative])

    with compiling_for("GPU"):
        program = step.experimental_get_compiler_ir(x, excluded, relative)(stage="hlo")
    name = "__cudnn$fmha" + "ScaleBias" * (relative_shape != NO_BIAS) + "Softmax"
    name += "Dropout" * (rate > 0)
    calls = [line for line in program.splitlines() if "custom_call_target=" in line]
    targets = [re.search(r'custom_call_target="([^"]+)"', call)[1] for call in calls]
    assert targets == [name, name + "Backward"]
    configs = [json.loads(call.split("backend_config=")[1]) for call in calls]
    for config in configs:
        config = config["cudnn_fmha_backend_config"]
        assert (config["fmha_scale"], config["dropout_rate"]) == (SCALE, rate)
        assert config["seed"] == configs[0]["cudnn_fmha_backend_config"]["seed"]


def test_cudnn_leaves_other_devices_and_shapes_alone():
    arguments = [tf.cast(x, tf.bfloat16) for x in operands(NO_BIAS)]
    compiled = tf.function(lambda *x: attention(*x, kernel="cudnn"), jit_compile=True)
    np.testing.assert_array_equal(compiled(*arguments), tf.function(ours)(*arguments))
    with compiling_for("GPU"):  # fewer queries than keys
        program = compiled.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert "cudnn" not in program

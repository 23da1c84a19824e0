"""What fused operations are made of: compilation by XLA, sums over rows and columns, barriers.

XLA fuses elementwise operations at the price of a compilation for every shape. So a function is
compiled (`fused`) only where a graph knows its shapes, as in pretraining; elsewhere, as when
serving texts of any length, it runs as it stands.

`row_sum`, `row_max`, `row_softmax` and `barrier` are for use within `fused` functions.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

DEVICE_KINDS = ("CPU", "GPU", "TPU")

# Elements that a CPU adds at once, and the widest row that is worth folding into such parts.
_LANES, _WIDEST_FOLD = 32, 1024

# The sides of an accelerator's matrix products should be multiples of this.
_TILE = 16

# What a function with `tf.custom_gradient` returns besides its results.
Gradient = Callable[..., Any]

# A stack: the kind of device that `compiling_for` compiles for.
_kinds_compiled_for: list[str] = []


def device_kind() -> str:
    """The kind of device, of `DEVICE_KINDS`, that functions traced now are compiled for."""
    if _kinds_compiled_for:
        return _kinds_compiled_for[-1]
    if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
        return "TPU"
    return "GPU" if tf.config.get_visible_devices("GPU") else "CPU"


@contextlib.contextmanager
def compiling_for(kind: str) -> Iterator[None]:
    """Compiles functions traced inside for a kind of device that need not be in this machine."""
    _kinds_compiled_for.append(kind)
    try:
        yield
    finally:
        _kinds_compiled_for.pop()


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of tensors by XLA where shapes are static; see the module's docstring."""
    # The function captures no variables. Its other arguments are Python numbers that rarely change.
    # One for each kind of device, as traced functions depend on it.
    compiled = {
        kind: tf.function(function, jit_compile=True, autograph=False) for kind in DEVICE_KINDS
    }

    @functools.wraps(function)
    def choose(*args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, tf.Tensor)]
        return (compiled[device_kind()] if is_compiled(*tensors) else function)(*args)

    return choose


def is_compiled(*tensors: tf.Tensor) -> bool:
    """Whether a `fused` function of these tensors is compiled."""
    return not tf.executing_eagerly() and all(x.shape.is_fully_defined() for x in tensors)


def shape_of(x: tf.Tensor) -> tf.Tensor | tf.TensorShape:
    """The shape, as constants where they are known."""
    return x.shape if x.shape.is_fully_defined() else tf.shape(x)


def row_sum(x: tf.Tensor) -> tf.Tensor:
    """Sums the last axis of floating `x` and keeps it with size 1."""
    # Compiled for a CPU, a sum over the last axis adds one element after the other, each waiting
    # for the one before. `_fold` adds many at a time until few are left.
    return tf.reduce_sum(_fold(x, tf.add), axis=-1, keepdims=True)


def row_max(x: tf.Tensor) -> tf.Tensor:
    """The maximum over the last axis of float32 `x`, kept with size 1; undefined for NaN."""
    if not _compiled_for_cpu(x):
        return tf.reduce_max(x, axis=-1, keepdims=True)
    # Compiled as a comparison and a selection; `tf.maximum` spends twice as much, on NaN.
    folded = _fold(x, lambda left, right: tf.where(left > right, left, right))
    # For the same reason the rest is compared as integers, which order numbers as floats do once
    # the bits of the negative ones are turned around.
    return tf.bitcast(
        _reorder(tf.reduce_max(_reorder(tf.bitcast(folded, tf.int32)), axis=-1, keepdims=True)),
        tf.float32,
    )


def row_softmax(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Softmax over the last axis of float32 `x`, and its log normalizer, kept with size 1."""
    if is_compiled(x) and device_kind() == "GPU":
        normalizers = _one_pass_logsumexp(x)
        return tf.exp(x - normalizers), normalizers
    largest = row_max(x)
    exponentials = tf.exp(x - largest)
    total = row_sum(exponentials)
    return exponentials * (1 / total), largest + tf.math.log(total)


def barrier(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Keeps XLA from moving computation across this point, on accelerators."""
    # What is kept for the backward pass is then kept in its own precision: without the barrier XLA
    # keeps the wider tensor that it was rounded from. And what is recomputed there is not stored.
    if not is_compiled(*tensors) or device_kind() == "CPU":
        return tensors
    return tuple(xla.optimization_barrier(*tensors))


def pad_to_tiles(x: tf.Tensor) -> tf.Tensor:
    """On accelerators, pads the last axis with zeros to a multiple of 16."""
    # An odd length costs more, in kernels without vectorized reads, than the padding does.
    if device_kind() == "CPU":
        return x
    return tf.pad(x, [[0, 0]] * (x.shape.rank - 1) + [[0, -x.shape[-1] % _TILE]])


def column_sum(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Sums all axes of `x` [..., H] but the last, as a bias's gradient does: [H] of `dtype`."""
    # On a CPU a matrix product is the fastest such sum, so this is not for `fused` functions.
    # Products of float16 sum in float16 at the end, which scaled gradients soon exceed.
    if device_kind() != "CPU" or x.dtype == tf.float16:
        axes = list(range(x.shape.rank - 1))
        return tf.cast(tf.reduce_sum(tf.cast(x, tf.float32), axes), dtype)
    width = x.shape[-1] or tf.shape(x)[-1]
    rows = x if x.shape.rank == 2 else tf.reshape(x, [-1, width])
    ones = tf.ones([1, shape_of(rows)[0]], x.dtype)
    return tf.cast(tf.reshape(tf.matmul(ones, rows), [width]), dtype)


def sums_of_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The sum of the squares of each of N tensors, [N] float32."""
    if device_kind() == "CPU":
        return 2 * tf.stack([tf.nn.l2_loss(tf.cast(x, tf.float32)) for x in tensors])
    return _sums_of_squares(*tensors)


@fused
def _sums_of_squares(*tensors: tf.Tensor) -> tf.Tensor:
    # Summed at once, a matrix of 768 x 768 takes a GPU 10 us, whose rows it sums in 3.
    squares = [tf.square(tf.cast(x, tf.float32)) for x in tensors]
    rows = barrier(*(tf.reduce_sum(x, -1) if x.shape.rank > 1 else x for x in squares))
    return tf.stack([tf.reduce_sum(row) for row in rows])


def _fold(x: tf.Tensor, join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    width = x.shape[-1]
    if not _compiled_for_cpu(x) or width % _LANES or width > _WIDEST_FOLD:
        return x
    parts = [x[..., start : start + _LANES] for start in range(0, width, _LANES)]
    return functools.reduce(join, parts)


def _one_pass_logsumexp(x: tf.Tensor) -> tf.Tensor:
    """Finds maximum and sum in one pass: a row is read once, not twice."""
    scalar = tf.TensorSpec([], tf.float32)
    combine = tf.function(_combine_exponentials, autograph=False)
    # Computed, as TensorFlow would store a constant as large as `x`.
    ones = tf.cast(tf.equal(x, x), tf.float32)
    largest, total = xla.variadic_reduce(
        (x, ones),
        (tf.constant(x.dtype.min), tf.constant(0.0)),
        dimensions_to_reduce=[x.shape.rank - 1],
        reducer=combine.get_concrete_function(scalar, scalar, scalar, scalar),
    )
    return tf.expand_dims(largest + tf.math.log(total), -1)


def _combine_exponentials(
    largest: tf.Tensor, total: tf.Tensor, other_largest: tf.Tensor, other_total: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Combines two parts of a row: the maximum, and the sum of exponentials relative to it."""
    # One of the two is already relative to the larger maximum.
    smaller = tf.exp(-tf.abs(largest - other_largest))
    total, other_total = (
        tf.where(largest < other_largest, total * smaller, total),
        tf.where(largest < other_largest, other_total, other_total * smaller),
    )
    return tf.maximum(largest, other_largest), total + other_total


def _compiled_for_cpu(x: tf.Tensor) -> bool:
    return is_compiled(x) and device_kind() == "CPU"


def _reorder(bits: tf.Tensor) -> tf.Tensor:
    is_negative = tf.bitwise.right_shift(bits, 31)  # all ones, or all zeros
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.bitwise_and(is_negative, 0x7FFFFFFF))

"""Elementwise mathematics compiled into few passes over memory."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Elements that a processor adds side by side.
_LANES = 32


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets XLA make one loop of a function of tensors, where that pays.

    TensorFlow runs each operation as a pass over memory, and on a CPU these passes, not the
    matrix products, are most of a Transformer's time. XLA joins elementwise operations, at the
    price of a compilation for every shape: so it is asked for only where a graph knows its shapes,
    as in pretraining. Elsewhere, as when serving texts of any length, the function runs as it
    stands.

    Args:
        function: takes tensors, and Python numbers that rarely change; captures no variables.

    Returns:
        The same function.

    Example:
    ```python
    @fused
    def scaled_sum(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return 2.0 * x + y
    ```
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def choose(*args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, tf.Tensor)]
        return (compiled if is_compiled(*tensors) else function)(*args)

    return choose


def is_compiled(*tensors: tf.Tensor) -> bool:
    """Whether a `fused` function of these tensors is compiled.

    Example:
    ```python
    is_compiled(tf.ones([3]))  # False: this is no graph
    ```
    """
    return not tf.executing_eagerly() and all(x.shape.is_fully_defined() for x in tensors)


def row_sum(x: tf.Tensor) -> tf.Tensor:
    """Adds up the last axis, and keeps it with size 1.

    For `fused` functions: a compiled sum over the last axis adds one element after the other, each
    waiting for the one before. Here many are added at a time until few are left.

    Args:
        x: floating tensor of rank 1 or more.

    Returns:
        A tensor like `x`, whose last axis has size 1.

    Example:
    ```python
    row_sum(tf.ones([2, 3]))  # [[3.0], [3.0]]
    ```
    """
    return tf.reduce_sum(_fold(x, tf.add), axis=-1, keepdims=True)


def row_max(x: tf.Tensor) -> tf.Tensor:
    """Finds the largest of the last axis, and keeps it with size 1: see `row_sum`.

    Args:
        x: float32 tensor of rank 1 or more. Where it holds NaN, the result is anything.

    Returns:
        A tensor like `x`, whose last axis has size 1.

    Example:
    ```python
    row_max(tf.constant([[1.0, 3.0, 2.0]]))  # [[3.0]]
    ```
    """
    # Compiled as a comparison and a selection; `tf.maximum` spends twice as much, on NaN.
    folded = _fold(x, lambda left, right: tf.where(left > right, left, right))
    if not is_compiled(x):
        return tf.reduce_max(folded, axis=-1, keepdims=True)
    # For the same reason the rest is compared as integers, which order numbers as floats do once
    # the bits of the negative ones are turned around.
    return tf.bitcast(
        _reorder(tf.reduce_max(_reorder(tf.bitcast(folded, tf.int32)), axis=-1, keepdims=True)),
        tf.float32,
    )


def column_sum(x: tf.Tensor) -> tf.Tensor:
    """Adds up all axes but the last, as the gradient of a bias does.

    Not for `fused` functions: a matrix product is the fastest such sum, compiled or not.

    Args:
        x: [..., H].

    Returns:
        [H], of the type of `x`.

    Example:
    ```python
    column_sum(tf.ones([2, 3]))  # [2.0, 2.0, 2.0]
    ```
    """
    rows = tf.reshape(x, [-1, x.shape[-1]])
    return tf.matmul(tf.ones([1, tf.shape(rows)[0]], x.dtype), rows)[0]


def _fold(x: tf.Tensor, join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    width = x.shape[-1]
    if not is_compiled(x) or width % _LANES:
        return x
    parts = [x[..., start : start + _LANES] for start in range(0, width, _LANES)]
    return functools.reduce(join, parts)


def _reorder(bits: tf.Tensor) -> tf.Tensor:
    is_negative = tf.bitwise.right_shift(bits, 31)  # all ones, or all zeros
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.bitwise_and(is_negative, 0x7FFFFFFF))

"""Exact GELU in one memory pass each way."""

import math
from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.fusion import fused


@tf.custom_gradient
def exact_gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """GELU by the error function, x * Phi(x), not by its tanh approximation.

    Written out, it is five passes over the widest activation of the model and many more for the
    gradient, of which it keeps several results. Fused, each direction is one, and the gradient
    needs the input alone. Computed in float32 whatever the type of `x`.

    Args:
        x: floating tensor of any shape.

    Returns:
        A tensor like `x`.

    Example:
    ```python
    exact_gelu(tf.constant([-1.0, 0.0, 1.0]))  # [-0.1587, 0.0, 0.8413]
    ```
    """
    return _gelu(x), lambda upstream: _gelu_gradient(x, upstream)


@fused
def _gelu(x: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32)
    return tf.cast(wide * _normal_cdf(wide), x.dtype)


@fused
def _gelu_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32)
    density = tf.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    slope = _normal_cdf(wide) + wide * density
    return tf.cast(slope * tf.cast(upstream, tf.float32), x.dtype)


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))

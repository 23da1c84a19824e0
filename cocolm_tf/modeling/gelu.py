"""Exact GELU in one memory pass each way."""

import math
from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.fusion import barrier, column_sum, fused


def exact_gelu(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """GELU by the error function: z * Phi(z) with z = `x` [..., H] + `bias` [H]."""
    # Written out, it is five passes over the widest activation of the model and many more for the
    # gradient, which keeps several results. Fused, each direction is one pass, and the gradient
    # needs the input alone. Computed in float32 whatever the type of `x`.

    @tf.custom_gradient
    def compute(
        x: tf.Tensor, bias: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            slope = _gelu_gradient(x, bias, upstream)
            return slope, column_sum(slope, bias.dtype)

        return _gelu(x, bias), gradient

    return compute(x, bias)


@fused
def _gelu(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) + tf.cast(bias, tf.float32)
    return tf.cast(wide * _normal_cdf(wide), x.dtype)


@fused
def _gelu_gradient(x: tf.Tensor, bias: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) + tf.cast(bias, tf.float32)
    density = tf.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    slope = (_normal_cdf(wide) + wide * density) * tf.cast(upstream, tf.float32)
    (slope,) = barrier(tf.cast(slope, x.dtype))
    return slope


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))

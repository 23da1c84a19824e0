"""Exact GELU in one memory pass each way."""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.fusion import barrier, column_sum, fused

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; the highest power first.
_ERF_P = 0.3275911
_ERF_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


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
            # Exponentials of the forward pass would be kept for this one, in float32.
            slope = _gelu_gradient(*barrier(x, bias, upstream))
            return slope, column_sum(slope, bias.dtype)

        return _gelu(x, bias), gradient

    return compute(x, bias)


@fused
def _gelu(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) + tf.cast(bias, tf.float32)
    return tf.cast(wide * _normal_cdf(wide, x.dtype), x.dtype)


@fused
def _gelu_gradient(x: tf.Tensor, bias: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) + tf.cast(bias, tf.float32)
    density = _exponential(wide) * (1 / math.sqrt(2 * math.pi))
    slope = (_normal_cdf(wide, x.dtype) + wide * density) * tf.cast(upstream, tf.float32)
    (slope,) = barrier(tf.cast(slope, x.dtype))
    return slope


def _normal_cdf(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The normal distribution's function at float32 `x`, for results of `dtype`."""
    if dtype == tf.float32:
        return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))
    # The error function costs a GPU more time than its kernel's traffic. Abramowitz and Stegun's
    # 7.1.26 takes the exponential that the density needs anyway, which XLA computes once; its error
    # of 1.5e-7 is far below what a half-precision result rounds.
    t = 1 / (1 + _ERF_P * math.sqrt(0.5) * tf.abs(x))
    terms = functools.reduce(lambda sum_, term: sum_ * t + term, _ERF_TERMS)
    tail = 0.5 * _exponential(x) * t * terms
    return tf.where(x < 0, tail, 1 - tail)


def _exponential(x: tf.Tensor) -> tf.Tensor:
    return tf.exp(-0.5 * x * x)

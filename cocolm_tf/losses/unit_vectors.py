"""Vectors whose inner products are cosines."""

import tensorflow as tf

# A squared length below this is rounding of a zero vector.
_ZERO_LENGTH = 1e-24


def unit_vectors(vectors: tf.Tensor) -> tf.Tensor:
    """Scales [..., H] float32 to length 1; a zero vector stays one, and has no gradient."""
    squared_length = tf.reduce_sum(vectors * vectors, axis=-1, keepdims=True)
    is_zero = squared_length < _ZERO_LENGTH
    # The inner `where` keeps the infinite slope of rsqrt at 0 out of the gradient, which the
    # outer one alone would multiply by 0 into NaN.
    inverse_length = tf.math.rsqrt(tf.where(is_zero, 1.0, squared_length))
    return vectors * tf.where(is_zero, 0.0, inverse_length)

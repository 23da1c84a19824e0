"""The weighted mean that every token-level loss is."""

import tensorflow as tf


def weighted_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Averages `values` with `weights`; no weight at all gives 0 with zero gradients.

    Args:
        values: float tensor of any shape.
        weights: float, integer or bool tensor of the same shape, not negative.

    Returns:
        float32 scalar, `sum(values * weights) / sum(weights)`.

    Raises:
        ValueError: If the two shapes differ, which broadcasting would otherwise hide.

    Example:
    ```python
    weighted_mean(tf.constant([2.0, 4.0, 9.0]), tf.constant([True, True, False]))  # 3.0
    ```
    """
    values = tf.cast(values, tf.float32)
    weights = tf.cast(weights, tf.float32)
    values.shape.assert_is_compatible_with(weights.shape)
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), tf.reduce_sum(weights))

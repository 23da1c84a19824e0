"""Attention probabilities in one memory pass each way."""

from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.fusion import fused, row_max, row_sum


def attention_probabilities(
    products: tf.Tensor, scale: float, excluded: tf.Tensor, relative: tf.Tensor
) -> tf.Tensor:
    """The softmax over keys of `scale * products + excluded + relative`.

    Computed in float32 whatever the type of `products`: sums of exponentials need more than a
    half-precision mantissa.

    Args:
        products: [B, heads, Q, S], of queries and keys.
        scale: float, one over the square root of the heads' width.
        excluded: [B, 1, 1, S], very negative at padding. It gets no gradient.
        relative: [B or 1, heads, Q, S], the bias by relative position; or [1, 1, 1, 1], which
            gets no gradient.

    Returns:
        A tensor like `products`.

    Example:
    ```python
    products, bias = tf.zeros([2, 4, 8, 8]), tf.zeros([1, 1, 1, 1])
    attention_probabilities(products, 0.125, tf.zeros([2, 1, 1, 8]), bias)  # 1/8 each
    ```
    """

    @tf.custom_gradient
    def compute(
        products: tf.Tensor, relative: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        probabilities = _softmax(products, excluded, relative, scale)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            slope = _softmax_gradient(probabilities, upstream, scale)
            return slope, _relative_gradient(slope, relative, scale)

        return probabilities, gradient

    return compute(products, relative)


@fused
def _softmax(
    products: tf.Tensor, excluded: tf.Tensor, relative: tf.Tensor, scale: float
) -> tf.Tensor:
    logits = tf.cast(products, tf.float32) * scale
    logits += tf.cast(excluded, tf.float32) + tf.cast(relative, tf.float32)
    exponentials = tf.exp(logits - row_max(logits))
    return tf.cast(exponentials * (1 / row_sum(exponentials)), products.dtype)


@fused
def _softmax_gradient(probabilities: tf.Tensor, upstream: tf.Tensor, scale: float) -> tf.Tensor:
    """The gradient of the products, which is `scale` times that of the logits."""
    dtype = probabilities.dtype
    probabilities, upstream = tf.cast(probabilities, tf.float32), tf.cast(upstream, tf.float32)
    mean = row_sum(probabilities * upstream)
    return tf.cast(probabilities * (upstream - mean) * scale, dtype)


def _relative_gradient(slope: tf.Tensor, relative: tf.Tensor, scale: float) -> tf.Tensor:
    if relative.shape.num_elements() == 1:
        return tf.zeros_like(relative)
    if relative.shape[0] == 1:
        return tf.cast(_batch_sum(slope, 1 / scale), relative.dtype)
    return slope / tf.cast(scale, slope.dtype)


@fused
def _batch_sum(x: tf.Tensor, factor: float) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(x, tf.float32), axis=0, keepdims=True) * factor

"""The bias of a matrix product, added in an operation of its own."""

from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.fusion import column_sum, fused


@tf.custom_gradient
def add_bias(
    x: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """Adds `bias` [H] to `x` [..., H], with its gradient."""
    # TensorFlow joins a product and the sum after it into one operation, which in bfloat16 takes a
    # CPU three times as long as the product alone. It cannot join what is compiled.
    return _add(x, bias), lambda upstream: (upstream, column_sum(upstream, bias.dtype))


@fused
def _add(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    return x + bias

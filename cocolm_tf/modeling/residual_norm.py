"""The end of every sublayer: dropout, the residual sum and LayerNorm, in one memory pass."""

from collections.abc import Callable

import keras
import tensorflow as tf

from cocolm_tf.fusion import barrier, column_sum, fused, row_sum
from cocolm_tf.modeling.dropout import dropout_mask


class ResidualNorm(keras.layers.LayerNormalization):
    """LayerNorm of `x + dropout(update + bias)` over the last axis, with Keras's weights."""

    # `x` and `update` are [..., H], `bias` [H] or None, of the layer that the update comes from.
    # The integer `seed` [2] decides what is dropped; None drops nothing.

    def __init__(self, rate: float = 0.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def build(self, x_shape: tuple[int | None, ...], *_: object, **__: object) -> None:
        super().build(x_shape)

    def call(
        self,
        x: tf.Tensor,
        update: tf.Tensor,
        bias: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        return residual_norm(
            x,
            update,
            bias,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            self.epsilon,
            self.rate,
            seed,
        )

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], *_: object, **__: object
    ) -> tuple[int | None, ...]:
        """The shape of `x`, for the functional graph."""
        return x_shape


def residual_norm(
    x: tf.Tensor,
    update: tf.Tensor,
    bias: tf.Tensor | None,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    rate: float,
    seed: tf.Tensor | None,
) -> tf.Tensor:
    """Computes `ResidualNorm` with scale `gamma` [H] and offset `beta` [H], in float32."""
    rate = rate if seed is not None else 0.0
    seed = tf.zeros([2], tf.int32) if seed is None else tf.cast(seed, tf.int32)

    bias = tf.zeros_like(beta) if bias is None else bias

    @tf.custom_gradient
    def compute(
        x: tf.Tensor, update: tf.Tensor, bias: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
        output, normal, inverse_deviation = _forward(
            x, update, bias, gamma, beta, seed, epsilon, rate
        )

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            total, dropped, scaled = _backward(
                normal, inverse_deviation, gamma, seed, upstream, rate
            )
            bias_slope = column_sum(dropped, bias.dtype)
            return total, dropped, bias_slope, scaled, column_sum(upstream, beta.dtype)

        return output, gradient

    return compute(x, update, bias, gamma, beta)


@fused
def _forward(
    x: tf.Tensor,
    update: tf.Tensor,
    bias: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    seed: tf.Tensor,
    epsilon: float,
    rate: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    width = x.shape[-1]
    update = tf.cast(update, tf.float32) + tf.cast(bias, tf.float32)
    total = tf.cast(x, tf.float32) + _dropped(update, rate, seed)
    # Both sums in one pass. Of a row whose mean is far larger than its deviation, the difference
    # loses digits; what comes here was normalized one sublayer before.
    mean, square = row_sum(total) / width, row_sum(total * total) / width
    variance = tf.maximum(square - mean * mean, 0.0)
    inverse_deviation = tf.math.rsqrt(variance + epsilon)
    normal = (total - mean) * inverse_deviation
    output = normal * tf.cast(gamma, tf.float32) + tf.cast(beta, tf.float32)
    (kept_normal,) = barrier(tf.cast(normal, x.dtype))
    return tf.cast(output, x.dtype), kept_normal, inverse_deviation


@fused
def _backward(
    normal: tf.Tensor,
    inverse_deviation: tf.Tensor,
    gamma: tf.Tensor,
    seed: tf.Tensor,
    upstream: tf.Tensor,
    rate: float,
) -> tuple[tf.Tensor, ...]:
    """The gradients of x, update and gamma."""
    dtype, width = normal.dtype, normal.shape[-1]
    normal, upstream = tf.cast(normal, tf.float32), tf.cast(upstream, tf.float32)
    slope = upstream * tf.cast(gamma, tf.float32)
    mean, projection = row_sum(slope) / width, row_sum(slope * normal) / width
    total = (slope - mean - normal * projection) * inverse_deviation
    (slope_of_x,) = barrier(tf.cast(total, dtype))
    slope_of_update = _dropped(tf.cast(slope_of_x, tf.float32), rate, seed)
    (slope_of_update,) = barrier(tf.cast(slope_of_update, dtype))
    rows = list(range(normal.shape.rank - 1))
    slope_of_gamma = tf.cast(tf.reduce_sum(upstream * normal, rows), gamma.dtype)
    return slope_of_x, slope_of_update, slope_of_gamma


def _dropped(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    if not rate:
        return x
    return x * dropout_mask(x.shape if x.shape.is_fully_defined() else tf.shape(x), rate, seed)

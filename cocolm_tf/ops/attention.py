"""Attention that reads and writes the tensors of all token pairs as few times as possible.

Those tensors, [B, heads, Q, S], are what a Transformer's step reads and writes most of. Forward,
the products are written once, and read once for the dropped-out probabilities, which the product
with the values reads. Backward, the probabilities are computed again from the products and one
number per row, and the mean that the gradient of a softmax needs is that of the small results
(Dao et al. 2022, FlashAttention, section 3): so the gradient of the logits is a loop without sums.

cuDNN's fused attention, an option on NVIDIA GPUs, never writes these tensors at all.
"""

import zlib

import tensorflow as tf

from cocolm_tf.ops.cudnn_attention import cudnn_attention, fits_cudnn
from cocolm_tf.ops.elementwise import dropped
from cocolm_tf.ops.fusion import Gradient, barrier, fused, row_softmax, row_sum

ATTENTION_KERNELS = ("xla", "cudnn")


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    excluded: tf.Tensor,
    relative: tf.Tensor,
    rate: float = 0.0,
    seed: tf.Tensor | None = None,
    kernel: str = "xla",
    name: str = "",
    recompute: bool = False,
) -> tf.Tensor:
    """Scaled dot-product attention, [B, heads, Q, D], with logit biases and dropout."""
    # `query` [B, heads, Q, D]; `key` and `value` [B, heads, S, D]. `excluded` [B, 1, 1, S] is very
    # negative at padding, and gets no gradient. `relative` is the bias by relative position, [B or
    # 1, heads, Q, S]; or [1, 1, 1, 1], which gets no gradient. `rate` is of dropout on the
    # probabilities, which the integer `seed` [2] decides; None drops nothing.
    # `kernel` is one of `ATTENTION_KERNELS`. cuDNN's acts in steps compiled for NVIDIA GPUs, where
    # Q is S, and takes padding to stand at the end. It has random numbers of its own, which `seed`
    # does not decide: layers of different `name` drop differently. With `recompute`, the gradient
    # computes products and probabilities again, instead of keeping two tensors [B, heads, Q, S].
    # Probabilities are float32 whatever the type of `query`: sums of exponentials need more than a
    # half-precision mantissa.
    scale = query.shape[-1] ** -0.5
    rate = rate if seed is not None else 0.0
    if kernel == "cudnn" and fits_cudnn(query, key):
        number = zlib.crc32(f"{name} {query.shape}".encode()) & 0x7FFFFFFF
        return cudnn_attention(query, key, value, excluded, relative, rate, number)
    seed = tf.zeros([2], tf.int32) if seed is None else tf.cast(seed, tf.int32)

    @tf.custom_gradient
    def compute(
        query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, relative: tf.Tensor
    ) -> tuple[tf.Tensor, Gradient]:
        def forward(
            query: tf.Tensor, key: tf.Tensor, seed: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            products = tf.matmul(query, key, transpose_b=True)
            return products, *_probabilities(products, excluded, relative, seed, scale, rate)

        saved = forward(query, key, seed)
        attended = tf.matmul(saved[1], value)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # The mask is computed again in either case, as a stored one would be written and read.
            again = _wait_for(upstream, query, key, seed)
            products, dropped, normalizers = forward(*again) if recompute else saved
            slope = _logits_gradient(
                products,
                normalizers,
                excluded,
                relative,
                tf.matmul(upstream, value, transpose_b=True),
                _row_products(upstream, attended),
                again[-1],
                scale,
                rate,
            )
            return (
                tf.matmul(slope, key),
                tf.matmul(slope, query, transpose_a=True),
                tf.matmul(dropped, upstream, transpose_a=True),
                _relative_gradient(slope, relative, scale),
            )

        return attended, gradient

    return compute(query, key, value, relative)


def _wait_for(upstream: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Makes what is computed of tensors wait for a gradient, so that it is not kept."""
    with tf.control_dependencies([upstream]):
        return barrier(*(tf.identity(x) for x in tensors))


@fused
def _probabilities(
    products: tf.Tensor,
    excluded: tf.Tensor,
    relative: tf.Tensor,
    seed: tf.Tensor,
    scale: float,
    rate: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The softmax over keys after dropout, and its log normalizer."""
    probabilities, normalizers = row_softmax(_logits(products, excluded, relative, scale))
    return tf.cast(dropped(probabilities, rate, seed), products.dtype), normalizers


@fused
def _logits_gradient(
    products: tf.Tensor,
    normalizers: tf.Tensor,
    excluded: tf.Tensor,
    relative: tf.Tensor,
    upstream: tf.Tensor,
    means: tf.Tensor,
    seed: tf.Tensor,
    scale: float,
    rate: float,
) -> tf.Tensor:
    """The gradient of the products, which is `scale` times that of the logits."""
    probabilities = tf.exp(_logits(products, excluded, relative, scale) - normalizers)
    upstream = dropped(tf.cast(upstream, tf.float32), rate, seed)
    (slope,) = barrier(tf.cast(probabilities * (upstream - means) * scale, products.dtype))
    return slope


@fused
def _row_products(upstream: tf.Tensor, attended: tf.Tensor) -> tf.Tensor:
    """The probability-weighted mean of each query's gradients over the keys."""
    return row_sum(tf.cast(upstream, tf.float32) * tf.cast(attended, tf.float32))


def _logits(
    products: tf.Tensor, excluded: tf.Tensor, relative: tf.Tensor, scale: float
) -> tf.Tensor:
    biases = tf.cast(excluded, tf.float32) + tf.cast(relative, tf.float32)
    return tf.cast(products, tf.float32) * scale + biases


def _relative_gradient(slope: tf.Tensor, relative: tf.Tensor, scale: float) -> tf.Tensor:
    if relative.shape.num_elements() == 1:
        return tf.zeros_like(relative)
    if relative.shape[0] == 1:
        return tf.cast(_batch_sum(slope, 1 / scale), relative.dtype)
    return slope / tf.cast(scale, slope.dtype)


@fused
def _batch_sum(x: tf.Tensor, factor: float) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(x, tf.float32), axis=0, keepdims=True) * factor

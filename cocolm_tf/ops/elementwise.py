"""Elementwise operations: dropout, bias, exact GELU, and the end of a sublayer.

Random numbers made beforehand, one per element, are a large part of a pretraining step on a CPU,
and dropout masks kept for the backward pass a large part of its memory. Here each decision is
computed from the seed and the element's index, in either direction.
"""

import functools
import math

import tensorflow as tf

from cocolm_tf.ops.fusion import Gradient, barrier, column_sum, fused, row_sum, shape_of

Shape = tf.Tensor | tf.TensorShape | list[int]

# The longest axis whose indices are worth a constant of the program.
_SHORT_AXIS = 256

_GOLDEN_RATIO = 0x9E3779B9
# The factors of Wellons' 32-bit hash function lowbias32, as improved by TheIronBorn.
_FIRST_FACTOR, _SECOND_FACTOR = 0x21F0AAAD, 0x735A2D97

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; the highest power first.
_ERF_P = 0.3275911
_ERF_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


# --- Random bits and dropout ---


def random_bits(shape: Shape, seed: tf.Tensor, start: tf.Tensor | int = 0) -> tf.Tensor:
    """32 random bits for each element, uint32: a hash of the seed and the element's index."""
    # A dozen integer operations that a `fused` function computes along with what needs them, where
    # a stream of random numbers would be written to memory and read again. Good enough for dropout
    # and for sampling, not for cryptography. Any two seeds, integers [2], give independent bits;
    # `start` is the index of the first element, for a part of a larger tensor.
    low, high = tf.unstack(tf.cast(seed, tf.uint32))
    # Two keys, each of which depends on all of the seed. The one that enters between the rounds
    # keeps the bits of one seed from being those of another, moved along.
    first = _hash(low + _hash(high))
    second = _hash(high, first)
    golden_ratio = tf.constant(_GOLDEN_RATIO, tf.uint32)
    origin = tf.cast(start, tf.uint32) * golden_ratio + first
    return _hash(_progression(shape, origin, golden_ratio), second)


def _hash(x: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
    fifteen = tf.constant(15, tf.uint32)
    x = _xor_shifted(x, tf.constant(16, tf.uint32)) * tf.constant(_FIRST_FACTOR, tf.uint32)
    if key is not None:
        x = tf.bitwise.bitwise_xor(x, key)
    x = _xor_shifted(x, fifteen) * tf.constant(_SECOND_FACTOR, tf.uint32)
    return _xor_shifted(x, fifteen)


def _xor_shifted(x: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, bits))


def _progression(shape: Shape, origin: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """The numbers origin + step * index, modulo 2^32; indices count along the last axis first."""
    sizes = _in_short_axes(shape)
    # The origin comes first, as it is not constant: a sum of constants alone would become one, as
    # large as the tensor and read from memory by the loop that is to do without.
    numbers = origin
    for axis in reversed(range(len(sizes))):
        along = tf.cast(tf.range(sizes[axis]), tf.uint32) * step
        numbers += tf.reshape(along, [-1] + [1] * (len(sizes) - 1 - axis))
        step *= tf.cast(sizes[axis], tf.uint32)
    return tf.reshape(numbers, shape)


def _in_short_axes(shape: Shape) -> list[tf.Tensor | int]:
    """Cuts long axes but the last in two: each axis's index is a constant of the program."""
    if isinstance(shape, tf.Tensor):
        return tf.unstack(shape, num=shape.shape[0])
    sizes = []
    for size in list(shape)[:-1]:
        part = math.gcd(size, _SHORT_AXIS) if size > _SHORT_AXIS else 1
        sizes += [size // part, part] if part > 1 else [size]
    return [*sizes, *list(shape)[-1:]]


def dropout_mask(shape: Shape, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """The float32 factors of dropout: 0, or the inverse of the share that is kept."""
    bits = random_bits(shape, seed)
    return tf.cast(bits >= tf.constant(round(rate * 2**32), tf.uint32), tf.float32) / (1 - rate)


def dropped(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Float32 `x` with some elements dropped, within a `fused` function and its gradient."""
    return x * dropout_mask(shape_of(x), rate, seed) if rate else x


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Drops elements of `x` as a pure function of the integer `seed` [2]; None drops none."""
    if seed is None:
        return x

    @tf.custom_gradient
    def drop(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        return _dropout(x, rate, seed), lambda upstream: _dropout(upstream, rate, seed)

    return drop(x)


@fused
def _dropout(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    return tf.cast(dropped(tf.cast(x, tf.float32), rate, seed), x.dtype)


# --- Bias and GELU ---


@tf.custom_gradient
def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Adds the bias [H] of a matrix product to it, `x` [..., H]."""
    # TensorFlow joins a product and the sum after it into one operation, which in bfloat16 takes a
    # CPU three times as long as the product alone. It cannot join what is compiled.
    return _add(x, bias), lambda upstream: (upstream, column_sum(upstream, bias.dtype))


@fused
def _add(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    return x + bias


def exact_gelu(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """GELU by the error function: z * Phi(z) with z = `x` [..., H] + `bias` [H]."""
    # Written out, it is five passes over the widest activation of the model and many more for the
    # gradient, which keeps several results. Fused, each direction is one pass, and the gradient
    # needs the input alone.

    @tf.custom_gradient
    def compute(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
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


# --- The end of a sublayer ---


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
    """LayerNorm of `x + dropout(update + bias)`, with scale `gamma` and offset `beta`."""
    # `x` and `update` are [..., H], the others [H]. `bias` is that of the layer which the update
    # comes from. The integer `seed` [2] decides what is dropped; None drops nothing.
    rate = rate if seed is not None else 0.0
    seed = tf.zeros([2], tf.int32) if seed is None else tf.cast(seed, tf.int32)
    bias = tf.zeros_like(beta) if bias is None else bias

    @tf.custom_gradient
    def compute(
        x: tf.Tensor, update: tf.Tensor, bias: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, Gradient]:
        output, normal, inverse_deviation = _residual_norm(
            x, update, bias, gamma, beta, seed, epsilon, rate
        )

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            of_x, of_update, of_gamma = _residual_norm_gradient(
                normal, inverse_deviation, gamma, seed, upstream, rate
            )
            of_bias, of_beta = column_sum(of_update, bias.dtype), column_sum(upstream, beta.dtype)
            return of_x, of_update, of_bias, of_gamma, of_beta

        return output, gradient

    return compute(x, update, bias, gamma, beta)


@fused
def _residual_norm(
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
    total = tf.cast(x, tf.float32) + dropped(update, rate, seed)
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
def _residual_norm_gradient(
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
    (of_x,) = barrier(tf.cast(total, dtype))
    (of_update,) = barrier(tf.cast(dropped(tf.cast(of_x, tf.float32), rate, seed), dtype))
    rows = list(range(normal.shape.rank - 1))
    return of_x, of_update, tf.cast(tf.reduce_sum(upstream * normal, rows), gamma.dtype)

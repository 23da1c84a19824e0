"""Random bits as a function of a seed and an index, cheap enough to compute where they are used."""

import math

import tensorflow as tf

# The longest axis whose indices are worth a constant of the program.
_SHORT_AXIS = 256

_GOLDEN_RATIO = 0x9E3779B9
# The factors of Wellons' 32-bit hash function lowbias32, as improved by TheIronBorn.
_FIRST_FACTOR, _SECOND_FACTOR = 0x21F0AAAD, 0x735A2D97


def random_bits(
    shape: tf.Tensor | tf.TensorShape | list[int], seed: tf.Tensor, start: tf.Tensor | int = 0
) -> tf.Tensor:
    """32 random bits for each element, uint32: a hash of the seed and the element's index."""
    # A dozen integer operations that a `fused` function computes along with what needs them, where
    # a stream of random numbers would be written to memory and read again. Good enough for dropout
    # and for sampling, not for cryptography. Any two seeds, integers [2], give independent bits;
    # `start` is the index of the first element, for a part of a larger tensor.
    low, high = tf.unstack(tf.cast(seed, tf.uint32))
    # Two keys, each of which depends on all of the seed. The one that enters between the rounds
    # keeps the bits of one seed from being those of another, moved along.
    first = _hash(low + _hash(high, 0), 0)
    second = _hash(high, first)
    golden_ratio = tf.constant(_GOLDEN_RATIO, tf.uint32)
    origin = tf.cast(start, tf.uint32) * golden_ratio + first
    return _hash(_progression(shape, origin, golden_ratio), second)


def _hash(x: tf.Tensor, key: tf.Tensor | int) -> tf.Tensor:
    x = _xor_shifted(x, 16) * tf.constant(_FIRST_FACTOR, tf.uint32)
    x = tf.bitwise.bitwise_xor(x, tf.cast(key, tf.uint32))
    x = _xor_shifted(x, 15) * tf.constant(_SECOND_FACTOR, tf.uint32)
    return _xor_shifted(x, 15)


def _xor_shifted(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(bits, tf.uint32)))


def _progression(
    shape: tf.Tensor | tf.TensorShape | list[int], origin: tf.Tensor, step: tf.Tensor
) -> tf.Tensor:
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


def _in_short_axes(shape: tf.Tensor | tf.TensorShape | list[int]) -> list[tf.Tensor | int]:
    """Cuts long axes but the last in two: each axis's index is a constant of the program."""
    if isinstance(shape, tf.Tensor):
        return tf.unstack(shape, num=shape.shape[0])
    sizes = []
    for size in list(shape)[:-1]:
        part = math.gcd(size, _SHORT_AXIS) if size > _SHORT_AXIS else 1
        sizes += [size // part, part] if part > 1 else [size]
    return [*sizes, *list(shape)[-1:]]

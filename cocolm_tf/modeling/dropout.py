"""Dropout whose masks are computed where they are needed, and never stored.

Random numbers made beforehand, one per element, are a large part of a pretraining step on a CPU,
and masks kept for the backward pass a large part of its memory. Here each decision is computed from
the seed and the element's index, in either direction.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from cocolm_tf.fusion import fused
from cocolm_tf.modeling.random_bits import random_bits


class Dropout(keras.layers.Layer):
    """Dropout by seeds from a `keras.random.SeedGenerator`, which layers may share."""

    # The seed follows from the state of `seed_generator` alone: a training step that sets this
    # state makes every mask a function of what it set.

    def __init__(
        self, rate: float, seed_generator: keras.random.SeedGenerator, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"A dropout rate lies in [0, 1), not {rate}.")
        self.rate = rate
        self.seed_generator = seed_generator

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return dropout(x, self.rate, self.draw(training))

    def draw(self, training: bool) -> tf.Tensor | None:
        """The next seed, [2], or None where nothing will be dropped."""
        # Drawing apart from applying lets a rematerialized block drop the same elements twice.
        return self.seed_generator.next() if training and self.rate else None


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Drops elements of `x` as a pure function of the integer `seed` [2]; None drops none."""
    if seed is None:
        return x

    @tf.custom_gradient
    def drop(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return _drop(x, rate, seed), lambda upstream: _drop(upstream, rate, seed)

    return drop(x)


def dropout_mask(shape: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """The float32 factors of dropout: 0, or the inverse of the share that is kept."""
    bits = random_bits(shape, seed)
    return tf.cast(bits >= tf.constant(round(rate * 2**32), tf.uint32), tf.float32) / (1 - rate)


@fused
def _drop(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    shape = x.shape if x.shape.is_fully_defined() else tf.shape(x)
    return tf.cast(tf.cast(x, tf.float32) * dropout_mask(shape, rate, seed), x.dtype)

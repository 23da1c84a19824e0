"""Dropout that draws sixteen random bits a decision."""

import keras
import tensorflow as tf

_BITS = 16


class Dropout(keras.layers.Layer):
    """Zeroes a share of its input while training, and scales the rest to keep the mean.

    Random numbers are a large part of a pretraining step on a CPU. Sixteen bits a decision halve
    them; `rate` is met to within 1/131072, and the scale is that of the rate really used, so that
    the expectation stays exact.

    The random numbers follow from the state of `seed_generator` alone. A training step that sets
    this state makes every mask a function of what it set.

    Args:
        rate: float. The share to zero, in [0, 1).
        seed_generator: `keras.random.SeedGenerator`. May be shared with other layers.

    Example:
    ```python
    layer = Dropout(0.1, keras.random.SeedGenerator(0))
    layer(tf.ones([2, 3]), training=True)
    ```
    """

    def __init__(
        self, rate: float, seed_generator: keras.random.SeedGenerator, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"A dropout rate lies in [0, 1), not {rate}.")
        self.rate = rate
        self.seed_generator = seed_generator

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies dropout to `x` of any shape; the identity unless `training`."""
        return dropout(x, self.rate, self.draw(training))

    def draw(self, training: bool) -> tf.Tensor | None:
        """The next seed, [2], or None where nothing will be dropped.

        Drawing apart from applying lets a rematerialized block drop the same elements twice.
        """
        return self.seed_generator.next() if training and self.rate else None


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Drops elements of `x` as a pure function of `seed`.

    Args:
        x: floating tensor of any shape.
        rate: float. The share to zero, in [0, 1).
        seed: integer tensor [2], or None to return `x` as it is.

    Returns:
        A tensor like `x`.

    Example:
    ```python
    dropout(tf.ones([4]), 0.5, tf.constant([1, 2]))
    ```
    """
    if seed is None:
        return x
    threshold = round(rate * 2**_BITS)
    size = tf.size(x)
    words = tf.random.stateless_uniform(
        [(size + 1) // 2], tf.cast(seed, tf.int32), minval=None, maxval=None, dtype=tf.int32
    )
    # Two decisions a word. The bits are read as signed numbers, whence the shifted threshold.
    bits = tf.reshape(tf.bitcast(words, tf.int16), [-1])[:size]
    keep = tf.reshape(bits, tf.shape(x)) >= threshold - 2 ** (_BITS - 1)
    # A product, as its gradient is one pass where that of a selection is three.
    return x * (tf.cast(keep, x.dtype) * (2**_BITS / (2**_BITS - threshold)))

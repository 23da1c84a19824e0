"""Corruption of the main model's input: sampling replacements, and writing them in."""

import tensorflow as tf

from cocolm_tf.fusion import fused
from cocolm_tf.modeling.random_bits import random_bits


def replace_tokens(
    token_ids: tf.Tensor,
    positions: tf.Tensor,
    replacements: tf.Tensor | int,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Writes `replacements` at `positions` [B, M]: `token_ids` [B, S] but for those."""
    # Replacements are [B * M] int32, or a scalar for every position. Positions of weight 0 are left
    # alone; the others are distinct within a sequence.
    if weights is not None:
        kept = tf.reshape(tf.gather(token_ids, positions, batch_dims=1), [-1])
        replacements = tf.where(tf.reshape(weights, [-1]) > 0, replacements, kept)
    rows = tf.repeat(tf.range(tf.shape(positions)[0]), tf.shape(positions)[1])
    indices = tf.stack([rows, tf.reshape(positions, [-1])], axis=1)
    updates = tf.broadcast_to(replacements, tf.shape(rows))
    return tf.tensor_scatter_nd_update(token_ids, indices, updates)


def sample_tokens(
    logits: tf.Tensor,
    seed: tf.Tensor,
    first_row: tf.Tensor | int = 0,
    temperature: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """Samples a token for each row of logits [N, V], from their softmax (Eq. 1): [N] int32."""
    # By the Gumbel maximum, which needs no normalization and no second copy of the probabilities.
    # No gradient flows through the draw. It is a function of the integer `seed` [2] and of the
    # row's number, which counts from `first_row` where the rows are some of many.
    perturbed = _add_gumbel_noise(
        tf.stop_gradient(logits),
        tf.cast(seed, tf.int32),
        tf.cast(first_row, tf.int32),
        tf.cast(temperature, tf.float32),
    )
    return tf.argmax(perturbed, axis=-1, output_type=tf.int32)


@fused
def _add_gumbel_noise(
    logits: tf.Tensor, seed: tf.Tensor, first_row: tf.Tensor, temperature: tf.Tensor
) -> tf.Tensor:
    start = tf.cast(first_row, tf.uint32) * tf.cast(tf.shape(logits)[1], tf.uint32)
    shape = logits.shape if logits.shape.is_fully_defined() else tf.shape(logits)
    # As many bits as float32 has, centered in their interval: never 0, never 1.
    bits = tf.bitwise.right_shift(random_bits(shape, seed, start), tf.constant(9, tf.uint32))
    uniform = (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23
    # The noise is scaled up instead of the logits down: the maximum is in the same place.
    return tf.cast(logits, tf.float32) - temperature * tf.math.log(-tf.math.log(uniform))


def random_tokens(shape: tf.Tensor, vocabulary_size: int, seed: tf.Tensor) -> tf.Tensor:
    """Samples tokens uniformly, int32: the "random replacements" of the paper's Table 3."""
    return tf.random.stateless_uniform(
        shape, tf.cast(seed, tf.int32), maxval=vocabulary_size, dtype=tf.int32
    )

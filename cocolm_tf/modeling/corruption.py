"""Corruption of the main model's input: which token replaces a masked one."""

import tensorflow as tf

from cocolm_tf.fusion import fused
from cocolm_tf.modeling.random_bits import random_bits


def place(
    token_ids: tf.Tensor,
    positions: tf.Tensor,
    replacements: tf.Tensor | int,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Writes tokens into sequences.

    Args:
        token_ids: [B, S] int32.
        positions: [B, M] int32; those that are used are distinct within a sequence.
        replacements: [B * M] int32, or a scalar for every position.
        weights: [B, M], 0 at the positions that are not used; None for all of them.

    Returns:
        [B, S] int32: `token_ids` but for the used positions.

    Example:
    ```python
    place(tf.constant([[5, 6, 7]]), tf.constant([[1]]), tf.constant([9]))  # [[5, 9, 7]]
    ```
    """
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
    """Draws one token per row from the softmax of its logits (paper, Eq. 1).

    By the Gumbel maximum, which needs no normalization and no second copy of the probabilities.
    No gradient flows through the draw.

    Args:
        logits: [N, V] floating.
        seed: integer tensor [2]; the draw is a function of it and of the row's number.
        first_row: integer. The number of the first row, where these are some of many.
        temperature: float scalar. What the logits are divided by.

    Returns:
        [N] int32.

    Example:
    ```python
    sample_tokens(tf.zeros([4, 100]), seed=tf.constant([1, 2]))
    ```
    """
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
    # As many bits as float32 holds, in the middle of their interval: never 0, never 1.
    bits = tf.bitwise.right_shift(random_bits(shape, seed, start), tf.constant(9, tf.uint32))
    uniform = (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23
    # The noise is scaled up instead of the logits down: the maximum is in the same place.
    return tf.cast(logits, tf.float32) - temperature * tf.math.log(-tf.math.log(uniform))


def random_tokens(shape: tf.Tensor, vocabulary_size: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws tokens uniformly: the "random replacements" of the paper's Table 3.

    Args:
        shape: of the result.
        vocabulary_size: int.
        seed: integer tensor [2]; the draw is a function of it.

    Returns:
        int32 tensor of the given shape.

    Example:
    ```python
    random_tokens([4], vocabulary_size=100, seed=tf.constant([1, 2]))
    ```
    """
    return tf.random.stateless_uniform(
        shape, tf.cast(seed, tf.int32), maxval=vocabulary_size, dtype=tf.int32
    )

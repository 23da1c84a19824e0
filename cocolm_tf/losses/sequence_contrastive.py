"""Sequence contrastive learning: two views of one text together, all others apart."""

import tensorflow as tf

from cocolm_tf.losses.replicas import gather_over_replicas, sum_over_replicas
from cocolm_tf.losses.unit_vectors import unit_vectors


def sequence_contrastive_loss(
    first: tf.Tensor, second: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """Cross entropy of finding each sequence's other view in the batch (paper, equation 3).

    Each of the 2B vectors is compared, by cosine over temperature, with the 2B - 1 others, of
    which only its own other view is right. In a replica context the batch is the global one: the
    vectors are gathered from all replicas, with gradients, and each replica returns the same
    value. Its share of the objective is then `loss / num_replicas`: summed over replicas, those
    losses, and their gradients, are the ones that a single device gets from the whole batch.

    Args:
        first: `[B, H]` float16, bfloat16 or float32, the vectors of the first views. A zero
            vector has cosine 0 with every other, and no gradient.
        second: `[B, H]`, the vectors of the second views, in the same order.
        temperature: Divides the cosines; the paper's is 1.

    Returns:
        float32 scalar, the mean over the 2B vectors in nats.

    Raises:
        ValueError: If the two shapes differ.

    Example:
    ```python
    same = tf.ones([4, 16])
    sequence_contrastive_loss(same, same)  # log(2 * 4 - 1): every other vector looks right
    ```
    """
    first, second = gather_over_replicas(_unit_vectors(first, second))
    return _contrastive_cross_entropy(first, second, temperature)


def contrastive_cosines(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean cosine of the positive and of the negative pairs: alignment and uniformity.

    The curves of the paper's figures 7a and 7b, over the global batch as in
    `sequence_contrastive_loss`.

    Args:
        first: `[B, H]` float16, bfloat16 or float32, the vectors of the first views.
        second: `[B, H]`, the vectors of the second views, in the same order.

    Returns:
        Two float32 scalars between -1 and 1: the mean over the positive pairs, and the mean over
        the negative pairs, which is 0 if the global batch is a single sequence.

    Raises:
        ValueError: If the two shapes differ.

    Example:
    ```python
    contrastive_cosines(tf.eye(4), tf.eye(4))  # (1.0, 0.0)
    ```
    """
    first, second = _unit_vectors(first, second)
    pairs, positives, squares, total = sum_over_replicas(
        [
            tf.cast(tf.shape(first)[0], tf.float32),
            tf.reduce_sum(first * second),
            tf.reduce_sum(first * first + second * second),
            tf.reduce_sum(first + second, axis=0),
        ]
    )
    # The square of the vectors' sum holds the cosine of every ordered pair, so no [2B, 2B]
    # matrix is needed: take away each vector with itself, and each positive pair both ways.
    negatives = tf.reduce_sum(total * total) - squares - 2 * positives
    return (
        tf.math.divide_no_nan(positives, pairs),
        tf.math.divide_no_nan(negatives, 2 * pairs * (2 * pairs - 2)),
    )


def _contrastive_cross_entropy(
    first: tf.Tensor, second: tf.Tensor, temperature: float
) -> tf.Tensor:
    vectors = tf.concat([first, second], axis=0)
    similarities = tf.matmul(vectors, vectors, transpose_b=True) / temperature
    # A vector is no candidate for itself.
    itself = tf.fill([tf.shape(vectors)[0]], tf.float32.min)
    candidates = tf.reduce_logsumexp(tf.linalg.set_diag(similarities, itself), axis=1)
    positives = tf.reduce_sum(first * second, axis=1) / temperature
    return tf.reduce_mean(candidates) - tf.reduce_mean(positives)


def _unit_vectors(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    first.shape.assert_is_compatible_with(second.shape)
    return unit_vectors(first), unit_vectors(second)

"""Masked language modeling: the auxiliary model's loss, and that of the MLM baseline."""

import tensorflow as tf

from cocolm_tf.losses.weighted import weighted_mean


def masked_lm_loss(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Cross entropy of the vocabulary softmax at the masked positions (paper, section 3.1).

    Args:
        logits: `[N, V]` float16, bfloat16 or float32, one row per masked position.
        labels: `[N]` int32, the original tokens.
        weights: `[N]` float or bool, 0 for the rows that pad the batch to N.

    Returns:
        float32 scalar, the weighted mean in nats.

    Raises:
        ValueError: If the shapes do not match.

    Example:
    ```python
    masked_lm_loss(tf.zeros([2, 8]), tf.constant([3, 5]), tf.constant([1.0, 0.0]))  # log(8)
    ```
    """
    return weighted_mean(label_cross_entropy(logits, labels, weights), weights)


def label_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Gives `-log softmax(logits)[label]` of each row.

    Args:
        logits: `[N, V]` float16, bfloat16 or float32.
        labels: `[N]` int32. Where the weight is 0 it may be any number, such as -1.
        weights: `[N]` float or bool.

    Returns:
        `[N]` float32, in nats. It is not yet weighted.

    Raises:
        ValueError: If the shapes of `logits` and `labels` do not match.

    Example:
    ```python
    label_cross_entropy(tf.zeros([2, 8]), tf.constant([3, -1]), tf.constant([1.0, 0.0]))
    ```
    """
    # The kernel fails (CPU) or gives NaN (GPU) for a label outside the vocabulary, and a weight
    # of 0 does not cancel a NaN.
    labels = tf.where(tf.cast(weights, tf.bool), tf.cast(labels, tf.int32), 0)
    # The cast is the only copy of the logits made here. Left to itself the kernel would sum
    # bfloat16 in bfloat16. It never builds the one-hot labels, and computes the gradient in the
    # same pass, so nothing else of the logits' size is kept for the backward pass.
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=tf.cast(logits, tf.float32)
    )

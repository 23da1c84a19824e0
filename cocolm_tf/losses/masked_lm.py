"""Masked language modeling: the auxiliary model's loss, and that of the MLM baseline."""

from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.fusion import fused, row_max, row_sum
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
    """`-log softmax(logits)[label]` of each row: [N] float32."""
    logits, labels = tf.convert_to_tensor(logits), tf.cast(labels, tf.int32)
    labels.shape.assert_is_compatible_with(logits.shape[:1])
    # Looking up a label outside the vocabulary fails (CPU) or gives 0 (GPU).
    labels = tf.where(tf.cast(weights, tf.bool), labels, 0)

    @tf.custom_gradient
    def compute(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        normalizers = log_normalizers(logits)
        chosen = tf.cast(tf.gather(logits, labels, batch_dims=1), tf.float32)
        # From the logits again: nothing of their size is kept for the backward pass.
        return normalizers - chosen, lambda upstream: _cross_entropy_gradient(
            logits, normalizers, labels, upstream
        )

    return compute(logits)


@fused
def log_normalizers(logits: tf.Tensor) -> tf.Tensor:
    """The logarithm of each row's sum of exponentials, which `log softmax` subtracts."""
    logits = tf.cast(logits, tf.float32)
    largest = row_max(logits)
    return tf.squeeze(largest + tf.math.log(row_sum(tf.exp(logits - largest))), -1)


@fused
def _cross_entropy_gradient(
    logits: tf.Tensor, normalizers: tf.Tensor, labels: tf.Tensor, upstream: tf.Tensor
) -> tf.Tensor:
    probabilities = tf.exp(tf.cast(logits, tf.float32) - normalizers[:, tf.newaxis])
    is_label = tf.equal(tf.range(tf.shape(logits)[1]), labels[:, tf.newaxis])
    slope = probabilities - tf.cast(is_label, tf.float32)
    return tf.cast(slope * upstream[:, tf.newaxis], logits.dtype)

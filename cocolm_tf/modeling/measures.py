"""What is worth watching beside the losses: the accuracies of the paper's figure 8.

Each function returns pairs of a mean and the weight it was taken over, so that means of batches
and replicas combine into the mean of all.
"""

import tensorflow as tf

from cocolm_tf.losses.masked_lm import log_normalizers

Measures = dict[str, tuple[tf.Tensor, tf.Tensor]]


def best_guesses(logits: tf.Tensor) -> tf.Tensor:
    """The likeliest token of each row.

    Args:
        logits: [N, V].

    Returns:
        [N] int32.

    Example:
    ```python
    best_guesses(tf.eye(3))  # [0, 1, 2]
    ```
    """
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def masked_lm_measures(guesses: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> Measures:
    """How often a masked language model's best guess is right.

    Args:
        guesses: [N] int32.
        labels: [N] int32.
        weights: [N] float32.

    Returns:
        `mlm_accuracy`.

    Example:
    ```python
    masked_lm_measures(tf.range(3), tf.constant([0, 1, 0]), tf.ones([3]))  # 2/3, of weight 3
    ```
    """
    return {"mlm_accuracy": share(tf.equal(guesses, labels), weights)}


def copy_measures(copy_logits: tf.Tensor, is_original: tf.Tensor, is_real: tf.Tensor) -> Measures:
    """How well the copy head tells original tokens from replaced ones.

    Args:
        copy_logits: [B, S].
        is_original: [B, S] bool.
        is_real: [B, S], non-zero at real tokens.

    Returns:
        `copy_accuracy_replaced`, `copy_accuracy_original` and `replacement_rate`, the share of
        the real tokens that are not the original ones.

    Example:
    ```python
    copy_measures(tf.constant([[2.0, -2.0]]), tf.constant([[True, True]]), tf.ones([1, 2]))
    ```
    """
    real = tf.cast(is_real, tf.float32)
    original = real * tf.cast(is_original, tf.float32)
    says_original = copy_logits > 0
    return {
        "copy_accuracy_replaced": share(~says_original, real - original),
        "copy_accuracy_original": share(says_original, original),
        "replacement_rate": share(~is_original, real),
    }


def corrected_guesses(
    lm_logits: tf.Tensor, copy_logits: tf.Tensor, input_ids: tf.Tensor
) -> tf.Tensor:
    """The likeliest token of each row under copy mechanism and LM head together.

    Args:
        lm_logits: [N, V].
        copy_logits: [N].
        input_ids: [N] int32. The tokens that the main model read.

    Returns:
        [N] int32.

    Example:
    ```python
    corrected_guesses(tf.eye(3), tf.constant([9.0, -9.0, -9.0]), tf.constant([2, 2, 1]))  # 2, 1, 2
    ```
    """
    copies = _copies(lm_logits, copy_logits, input_ids)
    return tf.where(copies, input_ids, best_guesses(lm_logits))


def corrective_lm_measures(
    guesses: tf.Tensor, input_ids: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> Measures:
    """How often the corrective language model's best guess is the original token.

    Args:
        guesses: [N] int32.
        input_ids: [N] int32. The tokens that the main model read.
        labels: [N] int32. The original tokens.
        weights: [N] float32.

    Returns:
        `lm_accuracy_replaced` and `lm_accuracy_original`: over the positions where the input
        differs from the original, and over those where it does not.

    Example:
    ```python
    corrective_lm_measures(tf.range(3), tf.range(3), tf.constant([0, 1, 0]), tf.ones([3]))
    ```
    """
    right, original = tf.equal(guesses, labels), tf.cast(tf.equal(input_ids, labels), tf.float32)
    return {
        "lm_accuracy_replaced": share(right, weights * (1 - original)),
        "lm_accuracy_original": share(right, weights * original),
    }


def _copies(lm_logits: tf.Tensor, copy_logits: tf.Tensor, input_ids: tf.Tensor) -> tf.Tensor:
    """Whether the input token is likelier, copied or predicted, than the LM head's best."""
    normalizers = log_normalizers(lm_logits)
    best = tf.exp(tf.cast(tf.reduce_max(lm_logits, axis=-1), tf.float32) - normalizers)
    same = tf.gather(lm_logits, input_ids, batch_dims=1)
    same = tf.exp(tf.cast(same, tf.float32) - normalizers)
    copy = tf.sigmoid(tf.cast(copy_logits, tf.float32))
    return copy + (1 - copy) * same >= (1 - copy) * best


def share(events: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """How much of the weight events have, and all weight, as `Measures` hold them."""
    weight = tf.reduce_sum(weights)
    hits = tf.reduce_sum(tf.cast(events, tf.float32) * weights)
    return tf.math.divide_no_nan(hits, weight), weight

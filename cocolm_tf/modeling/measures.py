"""Metrics beside the losses: the accuracies of the paper's figure 8.

Each function returns pairs of a mean and the weight it was taken over, so that means of batches
and replicas combine into the mean of all. N positions, B sequences of S tokens, V tokens of the
vocabulary; tokens are int32.
"""

import tensorflow as tf

from cocolm_tf.losses.language_modeling import log_normalizers

Measures = dict[str, tuple[tf.Tensor, tf.Tensor]]


def top_tokens(logits: tf.Tensor) -> tf.Tensor:
    """The top-1 token of each row of logits [N, V]: [N] int32."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def detection_measures(
    name: str, logits: tf.Tensor, is_original: tf.Tensor, is_real: tf.Tensor
) -> Measures:
    """Accuracies on replaced and original tokens, and the share of the replaced; all [B, S]."""
    real = tf.cast(is_real, tf.float32)
    original = real * tf.cast(is_original, tf.float32)
    says_original = logits > 0
    return {
        f"{name}_accuracy_replaced": share(~says_original, real - original),
        f"{name}_accuracy_original": share(says_original, original),
        f"{name}_replacement_rate": share(~is_original, real),
    }


def top_corrected_tokens(
    lm_logits: tf.Tensor, copy_logits: tf.Tensor, input_ids: tf.Tensor
) -> tf.Tensor:
    """The top-1 token [N] of copy mechanism and LM head together, given the input tokens [N]."""
    # Whether the input token is likelier, copied or predicted, than the LM head's best.
    normalizers = log_normalizers(lm_logits)
    best = tf.exp(tf.cast(tf.reduce_max(lm_logits, axis=-1), tf.float32) - normalizers)
    same = tf.gather(lm_logits, input_ids, batch_dims=1)
    same = tf.exp(tf.cast(same, tf.float32) - normalizers)
    copy = tf.sigmoid(tf.cast(copy_logits, tf.float32))
    copies = copy + (1 - copy) * same >= (1 - copy) * best
    return tf.where(copies, input_ids, top_tokens(lm_logits))


def corrective_lm_measures(
    predictions: tf.Tensor, input_ids: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> Measures:
    """`lm_accuracy_replaced` and `lm_accuracy_original`: top-1 accuracies; all [N]."""
    # Over the positions where the input differs from the label, and over those where it does not.
    right = tf.equal(predictions, labels)
    original = tf.cast(tf.equal(input_ids, labels), tf.float32)
    return {
        "lm_accuracy_replaced": share(right, weights * (1 - original)),
        "lm_accuracy_original": share(right, weights * original),
    }


def share(events: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The share of the weight that events have, and all weight, as `Measures` hold them."""
    weight = tf.reduce_sum(weights)
    hits = tf.reduce_sum(tf.cast(events, tf.float32) * weights)
    return tf.math.divide_no_nan(hits, weight), weight

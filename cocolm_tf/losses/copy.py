"""The copy mechanism's binary loss, which is also ELECTRA's replaced token detection."""

import tensorflow as tf

from cocolm_tf.losses.weighted import weighted_mean


def copy_loss(copy_logits: tf.Tensor, is_original: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Binary cross entropy of "this token is the original one" (paper, equation 2).

    Args:
        copy_logits: `[B, S]` float16, bfloat16 or float32; a positive one says "original".
        is_original: `[B, S]` bool or 0/1 numbers, true where the corrupted sequence has the
            original token, also where that token was sampled.
        mask: `[B, S]` float or bool, true at the real tokens, false at the padding.

    Returns:
        float32 scalar, the mean over the real tokens in nats.

    Raises:
        ValueError: If the shapes do not match.

    Example:
    ```python
    copy_loss(tf.zeros([1, 2]), tf.constant([[True, False]]), tf.ones([1, 2]))  # log(2)
    ```
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(is_original, tf.float32), logits=tf.cast(copy_logits, tf.float32)
    )
    return weighted_mean(losses, mask)

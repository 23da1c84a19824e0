"""How wide a batch is."""

import tensorflow as tf

# Widths are multiples of it: each new shape costs a moment, and accelerators like round numbers.
WIDTH_STEP = 8


def batch_width(longest: tf.Tensor, limit: tf.Tensor | int) -> tf.Tensor:
    """Rounds a width up.

    Args:
        longest: int32 scalar, the length of a batch's longest row.
        limit: The width that no batch may exceed.

    Returns:
        int32 scalar.

    Example:
    ```python
    batch_width(tf.constant(13), 128)  # 16
    ```
    """
    return tf.minimum(-(-longest // WIDTH_STEP) * WIDTH_STEP, limit)


def trimmed(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Cuts off padding that all rows of a batch have in common.

    Args:
        features: `token_ids` [B, S] and `padding_mask` [B, S].

    Returns:
        The same, as wide as `batch_width` says.

    Example:
    ```python
    trimmed(tokenizer.pack([[5], [5, 6]], sequence_length=512))["token_ids"]  # [2, 8]
    ```
    """
    real = tf.cast(features["padding_mask"], tf.int32)
    width = batch_width(tf.reduce_max(tf.reduce_sum(real, axis=1)), tf.shape(real)[1])
    return {name: feature[:, :width] for name, feature in features.items()}

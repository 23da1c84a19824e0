"""Token ids to the rows that an encoder takes, without padding."""

import tensorflow as tf

from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, START_TOKEN_ID

NUM_SPECIAL_TOKENS = 2


def packed(ids: tf.RaggedTensor) -> tf.RaggedTensor:
    """Puts `<s>` before and `</s>` behind each row.

    Args:
        ids: [B, (N)] int32.

    Returns:
        [B, (N + 2)] int32.

    Example:
    ```python
    packed(tf.ragged.constant([[7, 8], []]))  # [[0, 7, 8, 2], [0, 2]]
    ```
    """
    start, end = (tf.fill([ids.nrows(), 1], id) for id in (START_TOKEN_ID, END_TOKEN_ID))
    return tf.concat([start, ids, end], axis=1)


def truncated(ids: tf.RaggedTensor, limit: int) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Cuts rows at their ends.

    Args:
        ids: [B, (N)].
        limit: int. The longest that a row may be.

    Returns:
        The rows, and [B] bool: whether they have been cut.

    Example:
    ```python
    truncated(tf.ragged.constant([[7, 8, 9], [7]]), 2)  # [[7, 8], [7]], [True, False]
    ```
    """
    return ids[:, :limit], ids.row_lengths() > limit

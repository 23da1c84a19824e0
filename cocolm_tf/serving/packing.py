"""Token ids to the rows that an encoder takes: cut to its length, without padding."""

import tensorflow as tf

from cocolm_tf.tokenization.segment_packing import pack_segments


def pack_rows(
    first: tf.RaggedTensor,
    second: tf.RaggedTensor | None = None,
    is_pair: tf.Tensor | None = None,
    *,
    limit: int,
) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Lays out rows as `pack_segments` does, and says which were too long.

    Args:
        first: [B, (N)] int32, without special tokens.
        second: the second texts of pairs; None for single texts.
        is_pair: [B] bool, whether each row has a second text; None for all.
        limit: int. The longest row.

    Returns:
        [B, (N)] int32, and [B] bool: whether the row has been cut.

    Example:
    ```python
    pack_rows(tf.ragged.constant([[7, 8], []]), limit=512)  # [[0, 7, 8, 2], [0, 2]], both False
    ```
    """
    features = pack_segments(first, sequence_length=limit)
    whole = first.row_lengths() + 2
    if second is not None:
        pairs = pack_segments(first, second, sequence_length=limit)
        is_pair = tf.fill(tf.shape(whole), True) if is_pair is None else is_pair
        features = {
            name: tf.where(is_pair[:, tf.newaxis], pairs[name], features[name]) for name in pairs
        }
        whole = tf.where(is_pair, whole + second.row_lengths() + 2, whole)
    lengths = tf.reduce_sum(tf.cast(features["padding_mask"], tf.int64), axis=1)
    return tf.RaggedTensor.from_tensor(features["token_ids"], lengths), whole > limit

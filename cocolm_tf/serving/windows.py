"""Texts longer than the model, read in windows that overlap."""

from typing import NamedTuple

import tensorflow as tf


class Windows(NamedTuple):
    """Which tokens are read together.

    Attributes:
        tokens: [W, (N)] int64, the numbers of the tokens in each window, counted through all
            texts.
        first_wanted: [W] int64, the first token of a window whose result is wanted, counted from
            the window's beginning.
        num_wanted: [W] int64, how many are wanted. Together they are every token once, in order.
    """

    tokens: tf.RaggedTensor
    first_wanted: tf.Tensor
    num_wanted: tf.Tensor


def overlapping_windows(lengths: tf.Tensor, room: int, overlap: int) -> Windows:
    """Cuts texts into windows, and takes each token from the one where it has the most context.

    Windows begin `room - overlap` tokens after each other, but the last one of a text is as full
    as the others and ends where the text does. The results of what two windows share are taken
    half from either.

    Args:
        lengths: [B] int64, of the texts.
        room: int. The length of a window.
        overlap: int. What two windows share, less than `room`.

    Returns:
        The windows: one of a text that fits into it, an empty text's too.

    Example:
    ```python
    overlapping_windows(tf.constant([3, 10], tf.int64), room=6, overlap=2)  # windows 3, 6 and 6
    ```
    """
    counts = 1 + tf.maximum(-(-(lengths - room) // (room - overlap)), 0)
    texts = tf.repeat(tf.range(tf.size(counts)), counts)
    number = tf.ragged.range(counts).flat_values
    length = tf.gather(lengths, texts)
    start = tf.minimum(number * (room - overlap), tf.maximum(length - room, 0))
    end = tf.minimum(start + room, length)

    is_first, is_last = number == 0, number == tf.gather(counts, texts) - 1
    previous_end = tf.roll(end, 1, axis=0)
    next_start = tf.roll(start, -1, axis=0)
    from_token = tf.where(is_first, tf.zeros_like(start), (previous_end + start) // 2)
    to_token = tf.where(is_last, length, (end + next_start) // 2)
    offset = tf.gather(tf.cumsum(lengths, exclusive=True), texts)
    return Windows(
        tokens=tf.ragged.range(offset + start, offset + end),
        first_wanted=from_token - start,
        num_wanted=to_token - from_token,
    )

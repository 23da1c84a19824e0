"""Token ids to the fixed-size rows that a model takes: special tokens, windows, padding."""

from typing import Any, NamedTuple

import tensorflow as tf

from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, PAD_TOKEN_ID, START_TOKEN_ID

Ids = Any  # what `to_ragged` takes: TensorFlow has no name for it


def pack_segments(
    first: Ids, second: Ids | None = None, *, sequence_length: int
) -> dict[str, tf.Tensor]:
    """Lays out ids as `<s> A </s>`, or `<s> A </s> </s> B </s>`: `token_ids` and `padding_mask`."""
    # Texts are `[B, (N)]` ragged, `[B, N]` or lists of lists of ids without special tokens, giving
    # `[B, S]` int32 and bool with S = `sequence_length`; or `[N]` for one text, giving `[S]`. Too
    # long texts are cut at their ends: of a pair the longer one, until both are equally long, then
    # both in turn. ValueError if S leaves no room for a token of each text.
    first, is_batched = to_ragged(first)
    second = second if second is None else to_ragged(second)[0]
    packed = pack_ragged(first, second, sequence_length=sequence_length)
    token_ids = packed.to_tensor(PAD_TOKEN_ID, shape=[None, sequence_length])
    padding_mask = tf.sequence_mask(packed.row_lengths(), sequence_length)
    features = {"token_ids": token_ids, "padding_mask": padding_mask}
    return features if is_batched else {name: x[0] for name, x in features.items()}


def pack_ragged(
    first: tf.RaggedTensor,
    second: tf.RaggedTensor | None = None,
    is_pair: tf.Tensor | None = None,
    *,
    sequence_length: int,
) -> tf.RaggedTensor:
    """Lays out rows as `pack_segments` does, without padding: [B, (N)] int32."""
    # `is_pair`, [B] bool, says which rows have a second text; None for all, if there is `second`.
    num_texts, num_special_tokens = (1, 2) if second is None else (2, 4)
    budget = sequence_length - num_special_tokens
    if budget < num_texts:
        raise ValueError(
            f"sequence_length is {sequence_length}; {num_texts} text(s) with their special tokens "
            f"need {num_special_tokens + num_texts} at least."
        )
    start, end = (tf.fill([first.nrows(), 1], id) for id in (START_TOKEN_ID, END_TOKEN_ID))
    if second is None:
        return tf.concat([start, first[:, :budget], end], axis=1)
    # Each text may take half of the room, and what the other leaves of its half.
    half = budget // 2
    limits = tf.maximum(budget - second.row_lengths(), budget - half)
    second_limits = tf.maximum(budget - first.row_lengths(), half)
    ends = tf.ones_like(first.row_lengths())
    if is_pair is not None:
        ends = tf.cast(is_pair, tf.int64)
        limits = tf.where(is_pair, limits, sequence_length - 2)
        second_limits = tf.where(is_pair, second_limits, 0)
    between = tf.fill([tf.reduce_sum(ends)], END_TOKEN_ID)
    between = tf.RaggedTensor.from_row_lengths(between, ends, validate=False)
    first, second = _truncated(first, limits), _truncated(second, second_limits)
    return tf.concat([start, first, end, between, second, between], axis=1)


class OverlappingWindows(NamedTuple):
    """Which tokens are read together; together, the wanted ones are every token once, in order."""

    tokens: tf.RaggedTensor  # [W, (N)] int64, token numbers, counted through all texts
    # [W] int64, the first token that is wanted of a window, from its beginning
    first_wanted: tf.Tensor
    num_wanted: tf.Tensor  # [W] int64, the number of wanted tokens


def overlapping_windows(lengths: tf.Tensor, room: int, overlap: int) -> OverlappingWindows:
    """Cuts texts of `lengths` [B] int64 into windows, one at least, of at most `room` tokens."""
    # Windows begin `room - overlap` tokens after each other, but the last one of a text is as full
    # as the others and ends where the text does. Each token is wanted of the window where it has
    # the most context: what two windows share, half of either.
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
    return OverlappingWindows(
        tokens=tf.ragged.range(offset + start, offset + end),
        first_wanted=from_token - start,
        num_wanted=to_token - from_token,
    )


def to_ragged(ids: Ids) -> tuple[tf.RaggedTensor, bool]:
    """The ids of a text or of a batch as [B, (N)] int32; and whether they came as a batch."""
    if isinstance(ids, list | tuple):
        ids = tf.ragged.constant(ids, dtype=tf.int32)
    if not isinstance(ids, tf.RaggedTensor):
        ids = tf.convert_to_tensor(ids)
    ids = tf.cast(ids, tf.int32)
    rank = ids.shape.rank
    if rank not in (1, 2):
        raise ValueError(f"token ids are those of a text or of a batch, not of shape {ids.shape}.")
    if not isinstance(ids, tf.RaggedTensor):
        ids = tf.RaggedTensor.from_tensor(ids if rank == 2 else ids[tf.newaxis])
    return ids.with_row_splits_dtype(tf.int64), rank == 2


def _truncated(ids: tf.RaggedTensor, limits: tf.Tensor) -> tf.RaggedTensor:
    """Keeps the first `limits[i]` ids of row i."""
    columns = tf.ragged.range(ids.row_lengths())
    return tf.ragged.boolean_mask(ids, columns < limits[:, tf.newaxis])

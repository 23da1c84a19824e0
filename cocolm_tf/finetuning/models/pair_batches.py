"""Pairs of texts to batches of few shapes, in which short texts do not pay for long ones."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import Tokens, bucket_boundaries
from cocolm_tf.finetuning.models.raw_text import WIDTH_STEP
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID


def pair_batches(
    columns: Sequence[Tokens],
    cosines: np.ndarray | None,
    batch_size: int,
    seed: int,
    buckets: int = 8,
    weights: np.ndarray | None = None,
) -> tuple[tf.data.Dataset, int]:
    """Makes endless batches of pairs, shuffled anew in every epoch.

    Every row is there once an epoch, among rows whose second texts are of like lengths. All
    batches have as many rows, of which those that the last of a group lacks have weight 0; those
    of a group have one width for the first texts and one for all others. The order follows from
    the seed.

    Args:
        columns: The first texts, the second texts, and hard negatives.
        cosines: [N], how similar the first two are to be; None where they belong together.
        batch_size: int, B.
        seed: int.
        buckets: int. How many groups to make at most; 0 for one as wide as rows may be.
        weights: [N], of the rows; None for 1 each.

    Returns:
        Batches of `(x, cosines [B] or None, weights [B])`, where `x` is `{"queries": features of
        [B, S], "documents": features of [B, 1 + K, T]}`, and how many of them an epoch has.

    Example:
    ```python
    batches, steps = pair_batches([queries, documents], None, batch_size=32, seed=0)
    embedder.fit(batches, steps_per_epoch=steps, epochs=3)
    ```
    """
    rows = len(columns[0])
    first_lengths = columns[0].lengths
    other_lengths = np.max([tokens.lengths for tokens in columns[1:]], axis=0)
    boundaries = bucket_boundaries(other_lengths, batch_size, max(1, buckets))
    group = np.searchsorted(boundaries, other_lengths, side="right")
    counts = np.bincount(group, minlength=len(boundaries) + 1)
    limit, whole = columns[0].limit, buckets == 0
    widths = tf.constant(
        [
            [
                _width(lengths[group == one], limit, whole)
                for lengths in (first_lengths, other_lengths)
            ]
            for one in range(len(counts))
        ]
    )
    steps = -(-counts // batch_size)
    # Which of the rows, once they are sorted by their groups, stands where: -1 where none does.
    starts, slots = np.cumsum(counts) - counts, []
    for start, count, step in zip(starts, counts, steps, strict=True):
        slots += [*range(start, start + count)] + [-1] * (step * batch_size - count)
    slots = tf.constant(np.reshape(slots, [-1, batch_size]), tf.int32)
    group_of_batch = tf.constant(np.repeat(np.arange(len(counts)), steps), tf.int32)
    group = tf.constant(group, tf.int32)
    ragged = [
        tf.RaggedTensor.from_row_lengths(tf.constant(tokens.token_ids, tf.int32), tokens.lengths)
        for tokens in columns
    ]
    labels = None if cosines is None else tf.constant(cosines, tf.float32)
    weights = tf.constant(np.ones(rows) if weights is None else weights, tf.float32)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        place = tf.stack([tf.constant(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(rows), place)
        order = tf.gather(order, tf.argsort(tf.gather(group, order), stable=True))
        numbers = tf.where(slots < 0, -1, tf.gather(order, tf.maximum(slots, 0)))
        batches = tf.random.experimental.stateless_shuffle(tf.range(len(slots)), place)
        return tf.data.Dataset.from_tensor_slices(
            (tf.gather(numbers, batches), tf.gather(group_of_batch, batches))
        )

    def batch(numbers: tf.Tensor, group: tf.Tensor) -> tuple:
        present = tf.cast(numbers >= 0, tf.float32)
        numbers = tf.maximum(numbers, 0)

        def padded(tokens: tf.RaggedTensor, side: int) -> tf.Tensor:
            chosen = tf.gather(tokens, numbers)
            padded = chosen.to_tensor(PAD_TOKEN_ID, shape=[batch_size, widths[group, side]])
            return tf.ensure_shape(padded, [batch_size, limit if whole else None])

        x = {
            "queries": _features(padded(ragged[0], 0)),
            "documents": _features(tf.stack([padded(one, 1) for one in ragged[1:]], axis=1)),
        }
        y = None if labels is None else tf.gather(labels, numbers)
        return x, y, present * tf.gather(weights, numbers)

    batches = tf.data.Dataset.counter().flat_map(epoch).map(batch, num_parallel_calls=2)
    return batches.prefetch(4), int(steps.sum())


def _features(token_ids: tf.Tensor) -> dict[str, tf.Tensor]:
    # Keras adds up the batches of several replicas to see their shapes: booleans have no sum.
    return {"token_ids": token_ids, "padding_mask": tf.cast(token_ids != PAD_TOKEN_ID, tf.int32)}


def _width(lengths: np.ndarray, limit: int, whole: bool) -> int:
    if whole:
        return limit
    return min(-(-int(lengths.max(initial=1)) // WIDTH_STEP) * WIDTH_STEP, limit)

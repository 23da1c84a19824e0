"""Augmentation of MCL's batches for its self-supervision courses: mask, swap and insert tokens.

Pure functions of the batch and a seed, as those of `augmentation`, and of static shapes throughout.
M is ceil(S * `fraction`); weights are 0 for unused ones of M positions.
"""

import dataclasses
import math

import tensorflow as tf

from cocolm_tf.data.augmentation import SpecialTokens, mask_positions


@dataclasses.dataclass(frozen=True)
class MCLAugmentation:
    """Turns a batch of sequences into the batch that `MCLPretrainer` takes.

    Called with `token_ids` [B, S] int32, padded at the end, S static, and an integer `seed` [2], it
    returns `token_ids`, `padding_mask` [B, S] bool, and the results of `mask_positions`,
    `swap_tokens` and `insert_masks`, with as many positions in each as the largest fraction needs.

    Args:
        special: The special tokens.
        mask_fraction: The share of the ordinary tokens to mask; 0 leaves out the course.
        swap_fraction: The share to swap; 0 likewise.
        insert_fraction: The number of masks to insert, relative to the ordinary tokens; 0 likewise.
        fixed_points: Whether some tokens may stay in place when swapped; see `swap_tokens`.

    Example:
    ```python
    augmentation = MCLAugmentation(SpecialTokens(mask=10))
    augmentation(tf.constant([[0, 7, 8, 9, 2]]), seed=tf.constant([1, 2]))
    ```
    """

    special: SpecialTokens
    mask_fraction: float = 0.15
    swap_fraction: float = 0.15
    insert_fraction: float = 0.15
    fixed_points: bool = False

    def __call__(self, token_ids: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        special, seeds = self.special, tf.unstack(tf.random.split(tf.cast(seed, tf.int32), 3))
        batch = {}
        if self.mask_fraction:
            batch |= mask_positions(token_ids, self.mask_fraction, special, seeds[0])
        if self.swap_fraction:
            batch |= swap_tokens(
                token_ids, self.swap_fraction, special, seeds[1], self.fixed_points
            )
        if self.insert_fraction:
            batch |= insert_masks(token_ids, self.insert_fraction, special, seeds[2])
        fractions = self.mask_fraction, self.swap_fraction, self.insert_fraction
        slots = _slots(token_ids, max(fractions))
        for name, value in batch.items():
            if name.endswith(("_positions", "_weights", "_tokens")):
                # Padding points at the first token, and has weight 0.
                batch[name] = tf.pad(value, [[0, 0], [0, slots - value.shape[1]]])
        return {"token_ids": token_ids, "padding_mask": token_ids != special.pad, **batch}


def swap_tokens(
    token_ids: tf.Tensor,
    fraction: float,
    special: SpecialTokens,
    seed: tf.Tensor,
    fixed_points: bool = False,
) -> dict[str, tf.Tensor]:
    """Chooses positions as `mask_positions` does, and permutes the tokens there."""
    # Returns `swapped_positions` [B, M] int32, `swapped_weights` [B, M] float32, and
    # `swapped_tokens` [B, M] int32, the tokens that come to stand there; the original ones where
    # the weight is 0.
    # With `fixed_points` any permutation will do, in which some tokens may stay in place. Without,
    # each token moves, along one cycle in random order; among equal tokens, or where only one is
    # chosen, a position may still get the token that it had.
    choice, first, second = tf.unstack(tf.random.split(tf.cast(seed, tf.int32), 3))
    masked = mask_positions(token_ids, fraction, special, choice)
    positions, weights = masked["masked_positions"], masked["masked_weights"]
    used = weights > 0

    def shuffled(seed: tf.Tensor) -> tf.Tensor:
        """The slots in random order, used ones before the others."""
        priority = tf.random.stateless_uniform(tf.shape(used), seed)
        return tf.argsort(tf.where(used, priority, 2.0), axis=1)

    targets, slots = shuffled(first), tf.range(used.shape[1])
    if fixed_points:
        sources = shuffled(second)
    else:
        count = tf.reduce_sum(tf.cast(used, tf.int32), axis=1, keepdims=True)
        before = tf.where(slots < count, (slots - 1) % tf.maximum(count, 1), slots)
        sources = tf.gather(targets, before, batch_dims=1)
    standing = tf.gather(token_ids, positions, batch_dims=1)
    arriving = tf.gather(standing, sources, batch_dims=1)
    arriving = tf.gather(arriving, tf.argsort(targets, axis=1), batch_dims=1)
    return {
        "swapped_positions": positions,
        "swapped_weights": weights,
        "swapped_tokens": tf.where(used, arriving, standing),
    }


def insert_masks(
    token_ids: tf.Tensor, fraction: float, special: SpecialTokens, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Inserts `[MASK]` between tokens: n * `fraction` into a sequence of n ordinary tokens."""
    # Returns `inserted_token_ids` [B, S] int32, `inserted_padding_mask` [B, S] bool,
    # `inserted_positions` [B, M] int32, distinct within a sequence, where `[MASK]` was inserted,
    # and `inserted_weights` [B, M] float32.
    # Their number is rounded up or down at random, and their places are anywhere after the first
    # token and before the last. The length stays: without enough padding, the tokens before the
    # last one drop out.
    seeds = tf.unstack(tf.random.split(tf.cast(seed, tf.int32), 2))
    slots, length = _slots(token_ids, fraction), token_ids.shape[1]
    real = _count(token_ids != special.pad)
    ordinary = tf.cast(_count(~special.contains(token_ids)), tf.float32)
    rounding = tf.random.stateless_uniform(tf.shape(real), seeds[0])
    count = tf.cast(tf.floor(ordinary * fraction + rounding), tf.int32)
    # Behind the first token and before the last, all must find a place.
    count = tf.minimum(tf.minimum(count, slots), tf.maximum(real - 2, 0))
    total = tf.minimum(real + count, length)

    columns = tf.range(length)
    priority = tf.random.stateless_uniform(tf.shape(token_ids), seeds[1])
    priority = tf.where((columns > 0) & (columns < total - 1), priority, -1.0)
    order = tf.argsort(priority, axis=1, direction="DESCENDING")
    is_inserted = tf.argsort(order, axis=1) < count

    sources = tf.cumsum(tf.cast(~is_inserted, tf.int32), axis=1) - 1
    sources = tf.where(columns == total - 1, real - 1, sources)
    tokens = tf.gather(token_ids, tf.maximum(sources, 0), batch_dims=1)
    tokens = tf.where(is_inserted, special.mask, tokens)
    positions = tf.sort(
        tf.where(tf.range(slots) < count, order[:, :slots], order[:, :slots] + length), axis=1
    )
    return {
        "inserted_token_ids": tf.where(columns < total, tokens, special.pad),
        "inserted_padding_mask": columns < total,
        "inserted_positions": positions % length,
        "inserted_weights": tf.cast(positions < length, tf.float32),
    }


def _slots(token_ids: tf.Tensor, fraction: float) -> int:
    return math.ceil(token_ids.shape[1] * fraction)


def _count(events: tf.Tensor) -> tf.Tensor:
    """The number of true events in each row, [B, 1]."""
    return tf.reduce_sum(tf.cast(events, tf.int32), axis=1, keepdims=True)

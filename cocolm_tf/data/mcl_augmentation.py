"""What MCL's three self-supervision courses make of a batch: masked, swapped, inserted tokens.

Functions of the batch and a seed, as those of `views`, and of static shapes throughout.
"""

import dataclasses
import math

import tensorflow as tf

from cocolm_tf.data.special_tokens import SpecialTokens
from cocolm_tf.data.views import mask_views


@dataclasses.dataclass(frozen=True)
class CourseViews:
    """Makes a batch of sequences into the batch that `MCLPretrainer` takes.

    Args:
        special: The special tokens.
        mask_fraction: See `mask_views`; 0 for a course that is not taken, whose views are left out.
        swap_fraction: See `swap_views`; 0 likewise.
        insert_fraction: See `insert_views`; 0 likewise.
        fixed_points: See `swap_views`.

    Example:
    ```python
    views = CourseViews(SpecialTokens(mask=10))
    views(tf.constant([[0, 7, 8, 9, 2]]), seed=tf.constant([1, 2]))
    ```
    """

    special: SpecialTokens
    mask_fraction: float = 0.15
    swap_fraction: float = 0.15
    insert_fraction: float = 0.15
    fixed_points: bool = False

    def __call__(self, token_ids: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Makes the views of a batch.

        Args:
            token_ids: [B, S] int32, padded at the end; S is static.
            seed: Integer tensor [2].

        Returns:
            `token_ids`, `padding_mask` [B, S] bool, and what `mask_views`, `swap_views` and
            `insert_views` return, all of the same number of slots: the largest of theirs.
        """
        special, seeds = self.special, tf.unstack(tf.random.split(tf.cast(seed, tf.int32), 3))
        views = {}
        if self.mask_fraction:
            views |= mask_views(token_ids, self.mask_fraction, special, seeds[0])
        if self.swap_fraction:
            views |= swap_views(token_ids, self.swap_fraction, special, seeds[1], self.fixed_points)
        if self.insert_fraction:
            views |= insert_views(token_ids, self.insert_fraction, special, seeds[2])
        fractions = self.mask_fraction, self.swap_fraction, self.insert_fraction
        slots = _slots(token_ids, max(fractions))
        for name, value in views.items():
            if name.endswith(("_positions", "_weights", "_tokens")):
                # What fills up stands for the first token, and is not used.
                views[name] = tf.pad(value, [[0, 0], [0, slots - value.shape[1]]])
        return {"token_ids": token_ids, "padding_mask": token_ids != special.pad, **views}


def swap_views(
    token_ids: tf.Tensor,
    fraction: float,
    special: SpecialTokens,
    seed: tf.Tensor,
    fixed_points: bool = False,
) -> dict[str, tf.Tensor]:
    """Chooses positions as `mask_views` does, and reorders the tokens that stand there.

    Args:
        token_ids: [B, S] int32; S is static.
        fraction: float. The share of the ordinary tokens to choose.
        special: the tokens that are never chosen.
        seed: integer tensor [2].
        fixed_points: bool. Whether any order will do, in which some tokens may stay in place. If
            not, each goes where another stood: along a cycle in random order. Where there are
            equal ones, or one alone is chosen, a position may see its own token come either way.

    Returns:
        `swapped_positions` [B, M] int32 and `swapped_weights` [B, M] float32, as `mask_views`
        has them, and `swapped_tokens` [B, M] int32, what comes to stand there; where the weight
        is 0, what stood there.

    Example:
    ```python
    swap_views(tf.constant([[0, 7, 8, 9, 2]]), 0.7, SpecialTokens(mask=10), tf.constant([1, 2]))
    ```
    """
    choice, first, second = tf.unstack(tf.random.split(tf.cast(seed, tf.int32), 3))
    views = mask_views(token_ids, fraction, special, choice)
    positions, weights = views["masked_positions"], views["masked_weights"]
    used = weights > 0

    def shuffled(seed: tf.Tensor) -> tf.Tensor:
        """The slots in random order, those that are used before the others."""
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


def insert_views(
    token_ids: tf.Tensor, fraction: float, special: SpecialTokens, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Inserts `[MASK]` between the tokens of each sequence.

    Of a sequence with n ordinary tokens, n * `fraction` are inserted, rounded up or down at
    random, anywhere behind its first token and before its last. The length stays: if there is not
    enough padding for them, the tokens in front of the last one fall off.

    Args:
        token_ids: [B, S] int32, padded at the end; S is static.
        fraction: float. The share of the ordinary tokens that is inserted.
        special: the special tokens.
        seed: integer tensor [2].

    Returns:
        `inserted_token_ids` [B, S] int32, `inserted_padding_mask` [B, S] bool,
        `inserted_positions` [B, M] int32, distinct within a sequence, where `[MASK]` was inserted,
        and `inserted_weights` [B, M] float32, 0 for those not used, with M = ceil(S * `fraction`).

    Example:
    ```python
    ids = tf.constant([[0, 7, 8, 2, 1, 1]])
    insert_views(ids, 0.5, SpecialTokens(mask=10), tf.constant([1, 2]))
    ```
    """
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
    """How many of a row hold, [B, 1]."""
    return tf.reduce_sum(tf.cast(events, tf.int32), axis=1, keepdims=True)

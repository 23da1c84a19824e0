"""The two views of a batch that pretraining learns from: what to mask, and a crop.

Both are functions of the batch and a seed, so that where a run stands decides what it sees.
"""

import math

import tensorflow as tf

from cocolm_tf.data.special_tokens import SpecialTokens


def pretraining_views(
    token_ids: tf.Tensor,
    mask_fraction: float,
    crop_fraction: float,
    special: SpecialTokens,
    seed: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Makes a batch of sequences into the batch that `CocoLMPretrainer` takes.

    Args:
        token_ids: [B, S] int32, padded at the end; S is static.
        mask_fraction: float. See `mask_views`.
        crop_fraction: float. See `crop_views`.
        special: the special tokens.
        seed: integer tensor [2].

    Returns:
        `token_ids`, `padding_mask` [B, S] bool, and what `mask_views` and `crop_views` return.

    Example:
    ```python
    ids = tf.constant([[0, 7, 8, 9, 2]])
    pretraining_views(ids, 0.15, 0.9, SpecialTokens(mask=10), tf.constant([1, 2]))
    ```
    """
    mask_seed, crop_seed = tf.unstack(tf.random.split(tf.cast(seed, tf.int32), 2))
    return {
        "token_ids": token_ids,
        "padding_mask": token_ids != special.pad,
        **mask_views(token_ids, mask_fraction, special, mask_seed),
        **crop_views(token_ids, crop_fraction, special, crop_seed),
    }


def mask_views(
    token_ids: tf.Tensor, fraction: float, special: SpecialTokens, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Chooses the positions to mask (paper, section 3.1): a share of the ordinary tokens.

    Of a sequence with n ordinary tokens, n * `fraction` are chosen, rounded up or down at random
    so that the share is met on average whatever the length.

    Args:
        token_ids: [B, S] int32; S is static.
        fraction: float. The share to mask.
        special: the tokens that are never masked.
        seed: integer tensor [2].

    Returns:
        `masked_positions` [B, M] int32, distinct within a sequence, and `masked_weights` [B, M]
        float32, 0 for those not used, with M = ceil(S * `fraction`).

    Example:
    ```python
    mask_views(tf.constant([[0, 7, 8, 9, 2]]), 0.5, SpecialTokens(mask=10), tf.constant([1, 2]))
    ```
    """
    batch, length = token_ids.shape[0] or tf.shape(token_ids)[0], token_ids.shape[1]
    slots = math.ceil(length * fraction)
    seeds = tf.random.split(tf.cast(seed, tf.int32), 2)
    is_ordinary = ~special.contains(token_ids)
    priority = tf.random.stateless_uniform(tf.shape(token_ids), seeds[0])
    # Special tokens come last, in slots that are not used.
    positions = tf.math.top_k(tf.where(is_ordinary, priority, -1.0), slots).indices
    ordinary = tf.reduce_sum(tf.cast(is_ordinary, tf.float32), axis=1, keepdims=True)
    rounding = tf.random.stateless_uniform([batch, 1], seeds[1])
    chosen = tf.minimum(tf.floor(ordinary * fraction + rounding), ordinary)
    weights = tf.cast(tf.range(slots, dtype=tf.float32) < chosen, tf.float32)
    # In reading order, so that what is gathered from one sequence lies together.
    order = tf.argsort(positions, axis=1)
    return {
        "masked_positions": tf.gather(positions, order, batch_dims=1),
        "masked_weights": tf.gather(weights, order, batch_dims=1),
    }


def crop_views(
    token_ids: tf.Tensor, fraction: float, special: SpecialTokens, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Crops each sequence to a random contiguous span of its tokens (paper, section 3.3).

    The first token stays in front; of the n others, round(n * `fraction`) in a row are kept.

    Args:
        token_ids: [B, S] int32, padded at the end; S is static.
        fraction: float. The share to keep, in (0, 1].
        special: which token is padding.
        seed: integer tensor [2].

    Returns:
        `crop_token_ids` [B, C] int32 and `crop_padding_mask` [B, C] bool, with
        C = 1 + round((S - 1) * `fraction`).

    Example:
    ```python
    crop_views(tf.constant([[0, 7, 8, 9, 2]]), 0.5, SpecialTokens(mask=10), tf.constant([1, 2]))
    ```
    """
    batch, length = tf.shape(token_ids)[0], token_ids.shape[1]
    others = tf.reduce_sum(tf.cast(token_ids != special.pad, tf.int32), axis=1) - 1
    # Rounded as Python does it below: half to even.
    kept = tf.cast(tf.round(tf.cast(others, tf.float64) * fraction), tf.int32)
    starts = tf.random.stateless_uniform([batch], tf.cast(seed, tf.int32))
    starts = 1 + tf.cast(tf.floor(starts * tf.cast(others - kept + 1, tf.float32)), tf.int32)
    offsets = tf.range(round((length - 1) * fraction))
    inside = offsets[tf.newaxis, :] < kept[:, tf.newaxis]
    indices = tf.minimum(starts[:, tf.newaxis] + offsets, length - 1)
    span = tf.where(inside, tf.gather(token_ids, indices, batch_dims=1), special.pad)
    crop = tf.concat([token_ids[:, :1], span], axis=1)
    return {"crop_token_ids": crop, "crop_padding_mask": crop != special.pad}

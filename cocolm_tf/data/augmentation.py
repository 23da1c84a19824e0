"""Augmentation of COCO-LM's batches: which tokens to mask, and a crop of each sequence.

Pure functions of the batch and a seed, so that a resumed run sees what an uninterrupted one does.
B sequences of S tokens are [B, S] int32, padded at the end, S static; seeds are integers [2].
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, PAD_TOKEN_ID, START_TOKEN_ID

MASKINGS = ("token", "word", "span")
# Longer words, as texts without spaces are, count as several: they would never be masked.
LONGEST_WORD = 16
_WORD_MARK = "▁"
# How often the rest of a sequence's share is filled with units that still fit: less than a tenth
# of a token is left after that.
_FILL_ROUNDS = 4
# The shortest random length, ELECTRA's.
_SHORTEST = 5


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a vocabulary; all but the mask are the same in each.

    Args:
        mask: `<mask>`, the last id.
        start: `<s>`, the first token of every sequence.
        pad: `<pad>`, after a sequence shorter than its batch.
        end: `</s>`, after every document.

    Example:
    ```python
    SpecialTokens(mask=32767).contains(tf.constant([0, 7]))  # [True, False]
    ```
    """

    mask: int
    start: int = START_TOKEN_ID
    pad: int = PAD_TOKEN_ID
    end: int = END_TOKEN_ID

    def contains(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Whether each id is special: a bool tensor of the same shape."""
        ids = tf.constant([self.start, self.pad, self.end, self.mask], token_ids.dtype)
        return tf.reduce_any(token_ids[..., tf.newaxis] == ids, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Augmentation:
    """Turns a batch of sequences into the batch that `CocoLMPretrainer` takes.

    Called with `token_ids` [B, S] int32, padded at the end, S static, and an integer `seed` [2], it
    returns `token_ids`, `padding_mask` [B, S] bool, and the results of `mask_positions` and
    `crop_sequences`.

    Args:
        special: The special tokens.
        mask_fraction: The share of the ordinary tokens to mask.
        crop_fraction: The share of each sequence that its crop keeps.
        masking: What is masked as a whole: `"token"`, `"word"` or `"span"`.
        span_words: The mean number of words of a span.
        word_starts: [V] bool, which tokens begin a word (see `word_starts`); None for all of them.
        short_fraction: The share of the sequences that are cut to random lengths, see `shorten`.

    Example:
    ```python
    augmentation = Augmentation(SpecialTokens(mask=10))
    augmentation(tf.constant([[0, 7, 8, 9, 2]]), seed=tf.constant([1, 2]))
    ```
    """

    special: SpecialTokens
    mask_fraction: float = 0.15
    crop_fraction: float = 0.9
    masking: str = "token"
    span_words: float = 3.0
    word_starts: np.ndarray | None = None
    short_fraction: float = 0.0

    def __call__(self, token_ids: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        seed = tf.cast(seed, tf.int32)
        mask_seed, crop_seed = tf.unstack(tf.random.split(seed, 2))
        if self.short_fraction:
            short_seed = tf.random.experimental.stateless_fold_in(seed, 0)
            token_ids = shorten(token_ids, self.short_fraction, self.special, short_seed)
        starts = None
        if self.masking != "token":
            starts = self._unit_starts(token_ids, mask_seed)
        return {
            "token_ids": token_ids,
            "padding_mask": token_ids != self.special.pad,
            **mask_positions(token_ids, self.mask_fraction, self.special, mask_seed, starts),
            **crop_sequences(token_ids, self.crop_fraction, self.special, crop_seed),
        }

    def _unit_starts(self, token_ids: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Where words begin; with spans, only those words that begin one."""
        starts = tf.ones_like(token_ids, tf.bool)
        if self.word_starts is not None:
            starts = tf.gather(tf.constant(self.word_starts, tf.bool), token_ids)
        number, begin = _runs(starts | _behind_special(~self.special.contains(token_ids)))
        place = tf.range(token_ids.shape[1]) - tf.gather(begin, number, batch_dims=1)
        starts |= place % LONGEST_WORD == 0
        if self.masking == "span":
            seed = tf.random.experimental.stateless_fold_in(seed, 0)
            begins = tf.random.stateless_uniform(tf.shape(token_ids), seed) * self.span_words < 1
            starts &= begins
        return starts


def word_starts(vocabulary: Sequence[str]) -> np.ndarray:
    """Which tokens begin a word, [V] bool: those with SentencePiece's mark, and punctuation."""
    # The tokenizer drops the lone mark of a word that is punctuation; so a sign within a word
    # begins a new one.
    return np.array(
        [
            token.startswith(_WORD_MARK) or not any(sign.isalnum() for sign in token)
            for token in vocabulary
        ]
    )


def shorten(
    token_ids: tf.Tensor, fraction: float, special: SpecialTokens, seed: tf.Tensor
) -> tf.Tensor:
    """Cuts a random share of the sequences to random lengths, as in ELECTRA: [B, S] int32."""
    # Lengths are uniform from 5 to the sequence's own; the last token left is `special.end`.
    size = tf.reduce_sum(tf.cast(token_ids != special.pad, tf.int32), 1, keepdims=True)
    whether, how = tf.unstack(
        tf.random.stateless_uniform([2, *tf.unstack(tf.shape(size))], tf.cast(seed, tf.int32))
    )
    choices = tf.cast(tf.maximum(size - _SHORTEST, 0) + 1, tf.float32)
    kept = size - tf.cast(tf.floor(how * choices), tf.int32)
    kept = tf.where(whether < fraction, kept, size)
    place = tf.range(tf.shape(token_ids)[1])
    cut = tf.where(place == kept - 1, special.end, special.pad)
    return tf.where((place < kept - 1) | (kept == size), token_ids, cut)


def mask_positions(
    token_ids: tf.Tensor,
    fraction: float,
    special: SpecialTokens,
    seed: tf.Tensor,
    starts: tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
    """Chooses the positions to mask (paper, section 3.1), a `fraction` of the ordinary tokens."""
    # Returns `masked_positions` [B, M] int32, distinct within a sequence, and `masked_weights` [B,
    # M] float32, 0 for unused ones, with M = ceil(S * `fraction`).
    # Of n ordinary tokens n * `fraction` are chosen, rounded up or down at random, so that the
    # share is met on average whatever the length. `starts` [B, S] bool marks the tokens that begin
    # a unit (a word or a span), as does the first one after a special token; None where every token
    # is one. Whole units are chosen in random order as long as they fit, then smaller ones: a few
    # tokens fewer where all units are large.
    batch, length = token_ids.shape[0] or tf.shape(token_ids)[0], token_ids.shape[1]
    slots = math.ceil(length * fraction)
    seeds = tf.random.split(tf.cast(seed, tf.int32), 2)
    is_ordinary = ~special.contains(token_ids)
    priority = tf.random.stateless_uniform(tf.shape(token_ids), seeds[0])
    ordinary = tf.reduce_sum(tf.cast(is_ordinary, tf.float32), axis=1, keepdims=True)
    rounding = tf.random.stateless_uniform([batch, 1], seeds[1])
    share = tf.minimum(tf.floor(ordinary * fraction + rounding), ordinary)
    if starts is None:
        # Special tokens come last, in slots that are not used.
        positions = tf.math.top_k(tf.where(is_ordinary, priority, -1.0), slots).indices
        weights = tf.cast(tf.range(slots, dtype=tf.float32) < share, tf.float32)
    else:
        chosen = _whole_units(starts, is_ordinary, priority, tf.cast(share, tf.int32))
        weights, positions = tf.math.top_k(tf.cast(chosen, tf.float32), slots)
    # In reading order, so that what is gathered from one sequence lies together.
    order = tf.argsort(positions, axis=1)
    return {
        "masked_positions": tf.gather(positions, order, batch_dims=1),
        "masked_weights": tf.gather(weights, order, batch_dims=1),
    }


def _whole_units(
    starts: tf.Tensor, is_ordinary: tf.Tensor, priority: tf.Tensor, share: tf.Tensor
) -> tf.Tensor:
    """Chooses units of at most `share` [B, 1] tokens together; their tokens, [B, S] bool."""
    unit, _ = _runs((starts | _behind_special(is_ordinary)) & is_ordinary)
    sizes = _by_run(tf.math.unsorted_segment_sum, tf.cast(is_ordinary, tf.int32), unit)
    order = tf.argsort(priority, axis=1)
    sizes = tf.gather(sizes, order, batch_dims=1)
    taken = tf.zeros_like(starts)
    for _ in range(_FILL_ROUNDS):
        fits = ~taken & (sizes <= share)
        fits &= tf.cumsum(tf.where(fits, sizes, 0), axis=1) <= share
        share -= tf.reduce_sum(tf.where(fits, sizes, 0), axis=1, keepdims=True)
        taken |= fits
    taken = tf.gather(taken, tf.argsort(order, axis=1), batch_dims=1)
    return tf.gather(taken, unit, batch_dims=1) & is_ordinary


def _behind_special(is_ordinary: tf.Tensor) -> tf.Tensor:
    return tf.pad(~is_ordinary[:, :-1], [[0, 0], [1, 0]], constant_values=True)


def _runs(starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The number of each token's run, from 0 in each row, [B, S]; and where each run begins."""
    number = tf.maximum(tf.cumsum(tf.cast(starts, tf.int32), axis=1) - 1, 0)
    place = tf.zeros_like(number) + tf.range(starts.shape[1])
    return number, _by_run(tf.math.unsorted_segment_min, place, number)


def _by_run(reduce: Callable[..., tf.Tensor], values: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Reduces values [B, S] over runs, by their numbers: [B, S]."""
    rows, length = tf.shape(values)[0], values.shape[1]
    flat = tf.reshape(number + length * tf.range(rows)[:, tf.newaxis], [-1])
    return tf.reshape(reduce(tf.reshape(values, [-1]), flat, rows * length), [rows, length])


def crop_sequences(
    token_ids: tf.Tensor, fraction: float, special: SpecialTokens, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Crops each sequence to a random contiguous span of its tokens (paper, section 3.3)."""
    # The first token stays in front; of the n others, round(n * `fraction`) consecutive ones are
    # kept. Returns `crop_token_ids` [B, C] int32 and `crop_padding_mask` [B, C] bool, with C = 1 +
    # round((S - 1) * `fraction`).
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

"""Texts or words to rows of tokens, and which of the tokens have a label.

What has a label is a unit: a word, or, in languages that do not separate words, a single token. A
unit's label is that of its first token, as in BERT. A text that is too long for one row is read in
windows that overlap, and a unit's token has its label in the one window where it has the most
context.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import Tokens
from cocolm_tf.tokenization.graph import TokenizerGraph
from cocolm_tf.tokenization.normalization import as_string_tensor, valid_utf8
from cocolm_tf.tokenization.offsets import TokenOffsets, begins_word
from cocolm_tf.tokenization.segment_packing import overlapping_windows, pack_ragged

UNITS = ("word", "token")
# The unit of a token that has no label.
NO_UNIT = -1

_TOKENIZED_AT_ONCE = 256
# More than any text has characters: orders the characters of all texts by one number.
_LONGEST = 1 << 32


class Units(NamedTuple):
    """The units of a batch's texts."""

    # [T] int32, for the tokens of all texts, one after the other: the number of the unit that each
    # is the first token of, or `NO_UNIT`.
    of_tokens: tf.Tensor
    starts: tf.Tensor  # [U] int32, the units' first characters in their texts
    ends: tf.Tensor  # [U] int32, the characters after their last
    texts: tf.Tensor  # [U] int64, the number of their text


def string_tensor(texts: Sequence[str] | Sequence[Sequence[str]]) -> tf.Tensor | tf.RaggedTensor:
    """Texts as a [B] string tensor, or words as a [B, (N)] one, of valid UTF-8."""
    if not texts or isinstance(texts[0], str):
        return as_string_tensor(texts)
    flat = valid_utf8(as_string_tensor([word for row in texts for word in row]))
    return tf.RaggedTensor.from_row_lengths(flat, np.array([len(row) for row in texts], np.int64))


def tokens_and_units(
    graph: TokenizerGraph, x: tf.Tensor | tf.RaggedTensor, unit: str
) -> tuple[TokenOffsets, Units]:
    """The tokens of what `string_tensor` returns, and its units; `unit` is that of texts."""
    if isinstance(x, tf.RaggedTensor):
        tokens = graph.tokenize_with_offsets(tf.strings.reduce_join(x, axis=1, separator=" "))
        return tokens, units_of_words(tokens, x)
    tokens = graph.tokenize_with_offsets(x)
    return tokens, units_of_texts(tokens, unit)


def units_of_texts(tokens: TokenOffsets, unit: str) -> Units:
    """The units of raw texts: the tokenizer's words, or its tokens that have characters."""
    texts = tokens.ids.value_rowids()
    is_first = begins_word(tokens)
    starts, ends = tokens.starts.flat_values, tokens.ends.flat_values
    if unit == "word":
        word_of = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
        num_words = tf.reduce_sum(tf.cast(is_first, tf.int32))
        starts = tf.gather(tf.math.unsorted_segment_min(starts, word_of, num_words), word_of)
        ends = tf.gather(tf.math.unsorted_segment_max(ends, word_of, num_words), word_of)
    else:
        is_first = tf.ones_like(is_first)
    # A lone "▁" has no characters, and a word may be one.
    is_first &= starts < ends
    numbers = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
    found = (tf.boolean_mask(part, is_first) for part in (starts, ends, texts))
    return Units(tf.where(is_first, numbers, NO_UNIT), *found)


def units_of_words(tokens: TokenOffsets, words: tf.RaggedTensor) -> Units:
    """The units of words [B, (N)], whose tokens are those of the words joined by spaces."""
    texts = words.value_rowids()
    lengths = tf.strings.length(words.flat_values, unit="UTF8_CHAR")
    starts = tf.cumsum(lengths + 1, exclusive=True)
    padded = tf.concat([starts, [0]], 0)
    starts -= tf.gather(tf.gather(padded, words.row_starts()), texts)
    ordered = texts * _LONGEST + tf.cast(starts, tf.int64)
    places = tokens.ids.value_rowids() * _LONGEST + tf.cast(tokens.starts.flat_values, tf.int64)
    word_of = tf.searchsorted(ordered, places, side="right") - 1
    is_first = word_of != tf.concat([[NO_UNIT], word_of[:-1]], 0)[: tf.size(word_of)]
    return Units(tf.where(is_first, word_of, NO_UNIT), starts, starts + lengths, texts)


def lay_out_rows(
    ids: tf.RaggedTensor, units: tf.Tensor, *, sequence_length: int, overlap: int
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Cuts texts' tokens [B, (N)] into rows `<s> window </s>`, and into rows of their units."""
    # Both are [W, (N)] int32. A text has one row at least. `units` are `Units.of_tokens`; in the
    # rows no unit occurs twice. `overlap` is what two windows of a text share, in tokens.
    windows = overlapping_windows(ids.row_lengths(), sequence_length - 2, overlap)
    read = tf.ragged.map_flat_values(tf.gather, ids.flat_values, windows.tokens)
    place = tf.ragged.range(read.row_lengths())
    first = windows.first_wanted[:, tf.newaxis]
    is_wanted = (place >= first) & (place < first + windows.num_wanted[:, tf.newaxis])
    wanted = tf.gather(units, windows.tokens.flat_values)
    wanted = read.with_flat_values(tf.where(is_wanted.flat_values, wanted, NO_UNIT))
    no_unit = tf.fill([read.nrows(), 1], NO_UNIT)
    return (
        pack_ragged(read, sequence_length=sequence_length),
        tf.concat([no_unit, wanted, no_unit], axis=1),
    )


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """The rows of texts on the host, without padding."""

    tokens: Tokens  # `truncated` is 0, as texts are read whole
    units: np.ndarray  # of all token ids, the units counted through all texts, or `NO_UNIT`
    # [U] int32, the units' first characters in their texts, or in their words joined by spaces
    starts: np.ndarray
    ends: np.ndarray  # [U] int32, the characters after their last
    counts: np.ndarray  # [B], the number of units of each text

    @property
    def first_units(self) -> np.ndarray:
        """The number of each text's first unit and, last, of all units, [B + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def labels_of_tokens(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The units' labels [U] and weights for all tokens; both are 0 where a token has none."""
        has_unit = self.units != NO_UNIT
        padded = np.append(labels, 0).astype(np.int32)
        return padded[np.where(has_unit, self.units, len(labels))], has_unit.astype(np.float32)


def token_rows(
    preprocessor: keras_hub.models.Preprocessor, texts: Sequence[str] | Sequence[Sequence[str]]
) -> TokenRows:
    """Lays out texts, strings or lists of words, in rows."""
    graph, length = preprocessor.tokenizer.graph_module(), preprocessor.sequence_length
    parts: dict[str, list[np.ndarray]] = {}
    num_units = 0
    for first in range(0, max(1, len(texts)), _TOKENIZED_AT_ONCE):
        part = texts[first : first + _TOKENIZED_AT_ONCE]
        tokens, units = tokens_and_units(graph, string_tensor(part), preprocessor.unit)
        rows, units_of_rows = lay_out_rows(
            tokens.ids, units.of_tokens, sequence_length=length, overlap=preprocessor.overlap
        )
        numbers = units_of_rows.flat_values.numpy()
        found = {
            "token_ids": rows.flat_values.numpy(),
            "lengths": rows.row_lengths().numpy(),
            "units": np.where(numbers == NO_UNIT, NO_UNIT, numbers + num_units),
            "starts": units.starts.numpy(),
            "ends": units.ends.numpy(),
            "counts": np.bincount(units.texts.numpy(), minlength=len(part)),
        }
        num_units += len(found["starts"])
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    tokens = Tokens(arrays.pop("token_ids"), arrays.pop("lengths"), length, 0)
    return TokenRows(tokens, **arrays)

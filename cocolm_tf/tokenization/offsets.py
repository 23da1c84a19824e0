"""Character offsets of token ids: which part of the original text each id stands for.

Two things happen to a text on its way to ids. `normalization.normalize` maps some characters and
moves spaces about, but keeps every other character and their order: so the n-th character of its
result that is no space comes from the n-th such character of the text. SentencePiece normalizes
each word once more by its own rules, and reports where its pieces begin and end.
"""

from typing import NamedTuple

import tensorflow as tf

from cocolm_tf.tokenization.normalization import OTHER_SPACE, QUOTE_PAIRS, lower, valid_utf8
from cocolm_tf.tokenization.segmenter import WORD_START, Segmenter

_SPACE = ord(" ")


class TokenOffsets(NamedTuple):
    """Token ids and their places in the text they were made from.

    A place is in characters, as Python indexes strings: of bytes that are no valid UTF-8, those
    of `text.decode(errors="replace")`.

    In order, the ids cover every character of the text but white space and what SentencePiece
    takes for it or leaves out, such as control characters. Two ids overlap only where one
    character is written as several, "½" as "1⁄2", or in bytes, and each has a part of it. A lone
    "▁", which marks the beginning of a word whose first characters the vocabulary lacks, covers
    nothing: its start is its end.

    Attributes:
        ids: `[B, (N)]` int32, as `tokenize` gives them.
        starts: `[B, (N)]` int32, the first character.
        ends: `[B, (N)]` int32, the one after the last character.
        words: `[B, (N)]` int32, the number of the word that the id belongs to, from 0 on. Words
            are those of the prepared text: punctuation around a word is a word of its own.
    """

    ids: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor
    words: tf.RaggedTensor


def begins_word(tokens: TokenOffsets) -> tf.Tensor:
    """[T] bool, of the tokens of all texts: whether each is the first of a word."""
    words, rows = tokens.words.flat_values, tokens.words.value_rowids()
    is_new = (words[1:] != words[:-1]) | (rows[1:] != rows[:-1])
    return tf.concat([tf.ones_like(words[:1], tf.bool), is_new], 0)


def whole_words_within(
    tokens: TokenOffsets, limit: int, is_cut: tf.Tensor
) -> tuple[TokenOffsets, tf.Tensor]:
    """The words that are whole within the first `limit` tokens; and [B], whether there are more."""
    # Of texts that are cut, [B], the last word may not be whole.
    lengths, rows = tokens.ids.row_lengths(), tokens.ids.value_rowids()
    limits = tf.where(is_cut, tf.minimum(lengths - 1, limit), limit)
    position = tf.ragged.range(lengths).flat_values
    is_end = begins_word(tokens) & (position <= tf.gather(limits, rows))
    last_end = tf.math.unsorted_segment_max(tf.where(is_end, position, 0), rows, tokens.ids.nrows())
    is_truncated = is_cut | (lengths > limit)
    kept = tf.where(is_truncated, last_end, lengths)
    is_kept = position < tf.gather(kept, rows)
    ids = tf.ragged.boolean_mask(tokens.ids, tokens.ids.with_flat_values(is_kept))
    places = (
        ids.with_flat_values(tf.boolean_mask(part.flat_values, is_kept)) for part in tokens[1:]
    )
    return TokenOffsets(ids, *places), is_truncated


def character_offsets(texts: tf.Tensor, lowercase: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the non-space characters of `normalize(texts)` come from: [C] int32 starts and ends."""
    # For all texts, [B] string, one after the other.
    texts = valid_utf8(texts)
    characters = tf.strings.unicode_decode(texts, "UTF-8")
    origins = tf.ragged.range(tf.cast(characters.row_lengths(), tf.int32)).flat_values
    if lowercase:
        distinct, index = tf.unique(characters.flat_values)
        lowered = lower(tf.strings.unicode_encode(distinct[:, tf.newaxis], "UTF-8"))
        origins = tf.repeat(origins, tf.gather(tf.strings.length(lowered, unit="UTF8_CHAR"), index))
        texts = lower(texts)
        characters = tf.strings.unicode_decode(texts, "UTF-8")
    # The first steps of `normalize`, with as many characters as before: the second of two quotes
    # that become one is made a space.
    texts = tf.strings.regex_replace(texts, QUOTE_PAIRS, '" ')
    texts = tf.strings.regex_replace(texts, f"[{OTHER_SPACE}]", " ")
    prepared = tf.strings.unicode_decode(texts, "UTF-8").flat_values
    before = characters.flat_values
    is_second_quote = (prepared == _SPACE) & ((before == ord("`")) | (before == ord("'")))
    is_first_quote = tf.concat([is_second_quote[1:], [False]], 0)
    ends = origins + tf.where(is_first_quote[: tf.size(origins)], 2, 1)
    is_visible = prepared != _SPACE
    return tf.boolean_mask(origins, is_visible), tf.boolean_mask(ends, is_visible)


def segment_with_offsets(
    segmenter: Segmenter, words: tf.Tensor
) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
    """The pieces of words [W], [W, (P)] string; their first and last characters, [sum of P]."""
    # Words are valid UTF-8 without spaces; the last character is the one after, as in a slice. Time
    # and memory are linear in their bytes, however long one of them is.
    pieces, starts, ends = segmenter.tokenize_with_offsets(words)
    rows = pieces.value_rowids()
    num_bytes = tf.cast(tf.strings.length(words), starts.dtype)
    first_bytes = tf.cumsum(num_bytes, exclusive=True)
    # Of all words one after the other: how many characters begin before each byte, and which.
    joined = tf.strings.reduce_join(words)
    is_first_byte = (tf.io.decode_raw(joined, tf.uint8) & 0xC0) != 0x80
    num_before = tf.concat([[0], tf.cumsum(tf.cast(is_first_byte, tf.int32))], 0)
    characters = tf.strings.unicode_decode(joined, "UTF-8")

    word_starts = tf.gather(tf.gather(num_before, first_bytes), rows)
    word_ends = tf.gather(tf.gather(num_before, first_bytes + num_bytes), rows)
    first_bytes = tf.gather(first_bytes, rows)
    starts = tf.gather(num_before, first_bytes + starts.flat_values)
    ends = tf.gather(num_before, first_bytes + ends.flat_values)
    cut = _cut_characters(segmenter, words, pieces, characters, starts, ends)
    blank = _leading_blanks(segmenter, pieces, characters, starts, ends)
    starts, ends = starts + blank, tf.minimum(ends + cut, word_ends)
    if segmenter.byte_pieces:
        ends = _ends_of_bytes(segmenter, pieces.flat_values, ends)
    starts = tf.where(segmenter.content(pieces.flat_values) == "", ends, starts)
    return pieces, starts - word_starts, ends - word_starts


def to_text_offsets(
    characters: tuple[tf.Tensor, tf.Tensor],
    first_characters: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Maps characters within prepared words, [N] each, to characters of the texts, [N] int32."""
    # `characters` are the results of `character_offsets`; `first_characters` says which of those
    # each piece's word begins with; `starts` and `ends` are within that word.
    text_starts, text_ends = characters
    last = tf.size(text_starts) - 1
    after = tf.gather(text_ends, tf.maximum(first_characters + ends - 1, 0))
    before = tf.gather(text_starts, tf.minimum(first_characters + starts, last))
    # What covers nothing is where the characters before it in its word end.
    covers = starts < ends
    ends = tf.where(ends > 0, after, before)
    return tf.where(covers, before, ends), ends


class Characters:
    """Texts by their characters."""

    def __init__(self, texts: tf.Tensor) -> None:
        self._characters = tf.strings.unicode_split(texts, "UTF-8")

    def between(
        self, rows: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor, is_wanted: tf.Tensor
    ) -> tf.Tensor:
        """The characters from `starts` to `ends` of the texts `rows`; "" where not wanted."""
        offset = tf.cast(tf.gather(self._characters.row_starts(), rows), tf.int32)
        ends = tf.where(is_wanted, ends, starts)
        taken = tf.ragged.range(offset + starts, offset + ends)
        characters = tf.ragged.map_flat_values(tf.gather, self._characters.flat_values, taken)
        return tf.strings.reduce_join(characters, axis=1)


def _cut_characters(
    segmenter: Segmenter,
    words: tf.Tensor,
    pieces: tf.RaggedTensor,
    characters: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> tf.Tensor:
    """How many characters a piece has only a part of: [sum of P] int32, 0 or 1."""
    # SentencePiece's offsets give a character that it writes as several, or in bytes, to the last
    # piece with a part of it. Up to there, a word's pieces spell more than the text that they are
    # reported to cover.
    rows = pieces.value_rowids()
    contents = segmenter.content(pieces.flat_values)
    written = tf.strings.reduce_join(pieces.with_flat_values(contents), axis=-1)
    is_byte = segmenter.is_byte(pieces.flat_values)
    changed = tf.where(tf.gather(written != words, rows) | is_byte)[:, 0]
    covered = tf.ragged.range(tf.gather(starts, changed), tf.gather(ends, changed))
    covered = tf.ragged.map_flat_values(tf.gather, characters, covered)
    length = tf.strings.length(tf.gather(contents, changed))
    excess = length - tf.strings.length(_spelled(segmenter, covered))
    excess = tf.scatter_nd(changed[:, tf.newaxis], excess, tf.shape(ends, tf.int64))
    total = tf.concat([[0], tf.cumsum(excess)], 0)
    total_before_word = tf.gather(total, tf.gather(pieces.row_starts(), rows))
    return tf.cast(total[1:] > total_before_word, tf.int32)


def _ends_of_bytes(segmenter: Segmenter, pieces: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """Moves the end of every byte of a character to that of its last one, [sum of P] int32."""
    is_continued = tf.concat([segmenter.is_continuation(pieces)[1:], [False]], 0)
    is_continued = is_continued[: tf.size(ends)]
    last = tf.cumsum(tf.cast(~is_continued, tf.int32), exclusive=True)
    return tf.gather(tf.boolean_mask(ends, ~is_continued), last)


def _leading_blanks(
    segmenter: Segmenter,
    pieces: tf.RaggedTensor,
    characters: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> tf.Tensor:
    """The number of characters before a piece's own, [sum of P] int32."""
    # A "▁" inside a word comes from characters that are spaces to SentencePiece alone.
    first = tf.gather(pieces.row_starts(), pieces.value_rowids())
    is_first = tf.range(tf.size(starts, tf.int64)) == first
    is_marked = tf.strings.regex_full_match(pieces.flat_values, f"{WORD_START}(?s:.*)")
    marked = tf.where(is_marked & ~is_first)[:, 0]
    starts, marked_ends = tf.gather(starts, marked), tf.gather(ends, marked)
    covered = tf.ragged.range(starts, marked_ends)
    distinct, index = tf.unique(tf.gather(characters, covered.flat_values))
    is_blank = tf.gather(_spelled(segmenter, distinct[:, tf.newaxis]) == "", index)
    own = tf.where(is_blank, tf.gather(marked_ends, covered.value_rowids()), covered.flat_values)
    first_own = tf.math.unsorted_segment_min(own, covered.value_rowids(), tf.size(marked))
    leading = tf.minimum(first_own, marked_ends) - starts
    return tf.scatter_nd(marked[:, tf.newaxis], leading, tf.shape(ends, tf.int64))


def _spelled(segmenter: Segmenter, characters: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    """What the pieces of texts spell, without spaces: texts as SentencePiece normalizes them."""
    pieces = segmenter.tokenize(tf.strings.unicode_encode(characters, "UTF-8"))
    contents = segmenter.content(pieces.flat_values)
    return tf.strings.reduce_join(pieces.with_flat_values(contents), axis=-1)

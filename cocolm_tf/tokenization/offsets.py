"""Which characters of a text its token ids stand for, through all that prepares it.

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


def character_offsets(texts: tf.Tensor, lowercase: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds where the characters of `normalize(texts)` that are no spaces come from.

    Args:
        texts: `[B]` string.
        lowercase: As for `normalize`.

    Returns:
        `[C]` int32 each, for all texts one after the other: the first of the text's characters
        that the prepared one comes from, and the one after the last.

    Example:
    ```python
    character_offsets(tf.constant(["``No'' "]), False)  # [0, 2, 3, 4], [2, 3, 4, 6]
    ```
    """
    texts = valid_utf8(texts)
    characters = tf.strings.unicode_decode(texts, "UTF-8")
    origins = tf.ragged.range(tf.cast(characters.row_lengths(), tf.int32)).flat_values
    if lowercase:
        distinct, index = tf.unique(characters.flat_values)
        lowered = lower(tf.strings.unicode_encode(distinct[:, tf.newaxis], "UTF-8"))
        origins = tf.repeat(origins, tf.gather(tf.strings.length(lowered, unit="UTF8_CHAR"), index))
        texts = lower(texts)
        characters = tf.strings.unicode_decode(texts, "UTF-8")
    # What `normalize` does at first, with as many characters as before: the second of two quotes
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
    """Cuts words into pieces, and says which characters of its word each piece stands for.

    Args:
        segmenter: SentencePiece.
        words: `[W]` string, without spaces.

    Returns:
        The pieces, `[W, (P)]` string; and for all of them one after the other, `[sum of P]` int32
        each, the first character and the one after the last.

    Example:
    ```python
    pieces, starts, ends = segment_with_offsets(segmenter, tf.constant(["cats", "x½"]))
    ```
    """
    pieces, starts, ends = segmenter.tokenize_with_offsets(words)
    words_of_pieces = tf.gather(words, pieces.value_rowids())
    starts, ends = starts.flat_values, ends.flat_values  # in bytes
    length = tf.strings.length(words_of_pieces, unit="UTF8_CHAR")
    cut = _cut_characters(segmenter, words, pieces, ends)
    blank = _leading_blanks(segmenter, words_of_pieces, pieces, starts, ends)
    starts = _num_characters(words_of_pieces, starts) + blank
    ends = tf.minimum(_num_characters(words_of_pieces, ends) + cut, length)
    if segmenter.byte_pieces:
        ends = _ends_of_bytes(segmenter, pieces.flat_values, ends)
    return pieces, tf.where(segmenter.content(pieces.flat_values) == "", ends, starts), ends


def to_text_offsets(
    characters: tuple[tf.Tensor, tf.Tensor],
    first_characters: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Goes from places in prepared words to places in the texts.

    Args:
        characters: `[C]` each, what `character_offsets` says of the words' characters.
        first_characters: `[N]`, which of the C characters each piece's word begins with.
        starts: `[N]`, each piece's first character in its word.
        ends: `[N]`, the one after the last.

    Returns:
        The same places in the texts, `[N]` int32 each.
    """
    text_starts, text_ends = characters
    last = tf.size(text_starts) - 1
    after = tf.gather(text_ends, tf.maximum(first_characters + ends - 1, 0))
    before = tf.gather(text_starts, tf.minimum(first_characters + starts, last))
    # What covers nothing is where the characters before it in its word end.
    covers = starts < ends
    ends = tf.where(ends > 0, after, before)
    return tf.where(covers, before, ends), ends


def _cut_characters(
    segmenter: Segmenter, words: tf.Tensor, pieces: tf.RaggedTensor, ends: tf.Tensor
) -> tf.Tensor:
    """Counts the character that a piece has only a part of: `[sum of P]` int32, 0 or 1.

    SentencePiece's offsets give a character that it writes as several, or in bytes, to the last
    piece with a part of it. The other pieces show by saying more than the text that they and those
    before them are said to cover; of bytes, the last one of a character does.
    """
    rows = pieces.value_rowids()
    contents = segmenter.content(pieces.flat_values)
    written = tf.strings.reduce_join(pieces.with_flat_values(contents), axis=-1)
    is_byte = segmenter.is_byte(pieces.flat_values)
    changed = tf.where(tf.gather(written != words, rows) | is_byte)[:, 0]
    lengths = tf.concat([[0], tf.cumsum(tf.strings.length(contents))], 0)
    lengths_until = lengths[1:] - tf.gather(lengths, tf.gather(pieces.row_starts(), rows))
    rows = tf.gather(rows, changed)
    said = _prefix(tf.gather(written, rows), tf.gather(lengths_until, changed))
    covered = _prefix(tf.gather(words, rows), tf.gather(ends, changed))
    is_cut = said != _written(segmenter, covered)
    return tf.scatter_nd(
        changed[:, tf.newaxis], tf.cast(is_cut, tf.int32), tf.shape(ends, tf.int64)
    )


def _ends_of_bytes(segmenter: Segmenter, pieces: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """Has all bytes of a character end where its last one does: `[sum of P]` int32."""
    is_continued = tf.concat([segmenter.is_continuation(pieces)[1:], [False]], 0)
    is_continued = is_continued[: tf.size(ends)]
    last = tf.cumsum(tf.cast(~is_continued, tf.int32), exclusive=True)
    return tf.gather(tf.boolean_mask(ends, ~is_continued), last)


def _leading_blanks(
    segmenter: Segmenter,
    words_of_pieces: tf.Tensor,
    pieces: tf.RaggedTensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> tf.Tensor:
    """Counts the characters before a piece's own: `[sum of P]` int32.

    A "▁" inside a word comes from characters that are spaces to SentencePiece alone.
    """
    first = tf.gather(pieces.row_starts(), pieces.value_rowids())
    is_first = tf.range(tf.size(starts, tf.int64)) == first
    is_marked = tf.strings.regex_full_match(pieces.flat_values, f"{WORD_START}(?s:.*)")
    marked = tf.where(is_marked & ~is_first)[:, 0]
    starts = tf.gather(starts, marked)
    covered = tf.strings.substr(
        tf.gather(words_of_pieces, marked), starts, tf.gather(ends, marked) - starts
    )
    characters = tf.strings.unicode_split(covered, "UTF-8")
    is_blank = tf.cast(_written(segmenter, characters.flat_values) == "", tf.int32)
    is_leading = tf.math.cumprod(characters.with_flat_values(is_blank).to_tensor(0), axis=1)
    return tf.scatter_nd(
        marked[:, tf.newaxis], tf.reduce_sum(is_leading, 1), tf.shape(ends, tf.int64)
    )


def _written(segmenter: Segmenter, texts: tf.Tensor) -> tf.Tensor:
    """What the pieces of texts say, spaces aside: the texts as SentencePiece normalizes them."""
    pieces = segmenter.tokenize(texts)
    contents = segmenter.content(pieces.flat_values)
    return tf.strings.reduce_join(pieces.with_flat_values(contents), axis=-1)


def _prefix(texts: tf.Tensor, num_bytes: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(texts, tf.zeros_like(num_bytes), num_bytes)


def _num_characters(texts: tf.Tensor, num_bytes: tf.Tensor) -> tf.Tensor:
    return tf.strings.length(_prefix(texts, num_bytes), unit="UTF8_CHAR")

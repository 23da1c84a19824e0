"""Text to ids and back as one TensorFlow module without Keras, for export and serving.

SentencePiece's time goes into finding the pieces of a word, and texts repeat their words: so each
batch is cut into words, and each different word is segmented once. That gives the same pieces as
segmenting whole texts, as long as no piece reaches across a space.
"""

import tensorflow as tf

from cocolm_tf.tokenization.dictionary import (
    UNKNOWN_TOKEN_ID,
    Dictionary,
)
from cocolm_tf.tokenization.normalization import PUNCTUATION, normalize, valid_utf8
from cocolm_tf.tokenization.offsets import (
    TokenOffsets,
    character_offsets,
    segment_with_offsets,
    to_text_offsets,
)
from cocolm_tf.tokenization.segmenter import WORD_START, Segmenter


class TokenizerGraph(tf.Module):
    """The tokenizer's computation; the pieces of `proto` hold no space but a leading one."""

    # `contents`, [V] string, is what the tokens spell, without spaces; for a byte piece, that byte.

    def __init__(self, proto: bytes, dictionary: Dictionary, lowercase: bool = False) -> None:
        super().__init__(name="tokenizer")
        self.lowercase = lowercase
        self._mask_token_id = len(dictionary.tokens) - 1
        self._segmenter = Segmenter(proto)
        piece_ids = tf.range(UNKNOWN_TOKEN_ID + 1, self._mask_token_id)
        self._piece_to_id = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(dictionary.pieces, tf.string), piece_ids
            ),
            default_value=UNKNOWN_TOKEN_ID,
        )
        self.byte_pieces = byte_pieces = self._segmenter.byte_pieces
        self._id_to_piece = tf.constant(
            [byte_pieces.get(token, token) for token in dictionary.tokens]
        )
        self.contents = tf.strings.regex_replace(self._id_to_piece, WORD_START, "")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")], autograph=False)
    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Texts [B] string to ids [B, (N)] int32, without special tokens."""
        with tf.device("cpu"):
            words = tf.strings.split(normalize(texts, self.lowercase), " ")
            distinct, index = tf.unique(words.flat_values)
            pieces = self._segmenter.tokenize(distinct)
            positions, _ = self._lay_out(pieces, words.with_flat_values(index))
            ids = self._piece_to_id.lookup(pieces.flat_values)
            return tf.ragged.map_flat_values(tf.gather, ids, positions)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")], autograph=False)
    def tokenize_with_offsets(self, texts: tf.Tensor) -> TokenOffsets:
        """The ids of `tokenize` and the characters that they cover; see `TokenOffsets`."""
        with tf.device("cpu"):
            words = tf.strings.split(normalize(texts, self.lowercase), " ")
            distinct, index = tf.unique(words.flat_values)
            pieces, piece_starts, piece_ends = segment_with_offsets(self._segmenter, distinct)
            positions, words_of_pieces = self._lay_out(pieces, words.with_flat_values(index))
            lengths = tf.gather(tf.strings.length(distinct, unit="UTF8_CHAR"), index)
            starts, ends = to_text_offsets(
                character_offsets(texts, self.lowercase),
                tf.gather(tf.cumsum(lengths, exclusive=True), words_of_pieces.flat_values),
                tf.gather(piece_starts, positions.flat_values),
                tf.gather(piece_ends, positions.flat_values),
            )
            ids = self._piece_to_id.lookup(pieces.flat_values)
            first_words = tf.gather(words.row_splits, positions.value_rowids())
            return TokenOffsets(
                positions.with_flat_values(tf.gather(ids, positions.flat_values)),
                positions.with_flat_values(starts),
                positions.with_flat_values(ends),
                positions.with_flat_values(
                    tf.cast(words_of_pieces.flat_values - first_words, tf.int32)
                ),
            )

    @tf.function(
        input_signature=[tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1)],
        autograph=False,
    )
    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids [B, (N)] int32 to prepared texts [B] string."""
        # Special tokens are left out, except that an unknown one shows as "⁇". Bytes that make no
        # character show as U+FFFD.
        with tf.device("cpu"):
            is_text = (ids >= UNKNOWN_TOKEN_ID) & (ids < self._mask_token_id)
            ids = tf.ragged.boolean_mask(ids, is_text)
            pieces = tf.gather(self._id_to_piece, ids.flat_values)
            pieces = tf.where(ids.flat_values == UNKNOWN_TOKEN_ID, " ⁇ ", pieces)
            texts = tf.strings.reduce_join(ids.with_flat_values(pieces), axis=-1)
            if self.byte_pieces:
                texts = valid_utf8(texts)
            return tf.strings.strip(tf.strings.regex_replace(texts, rf"[ {WORD_START}]+", " "))

    def _lay_out(
        self, pieces: tf.RaggedTensor, words: tf.RaggedTensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """For each piece of texts, [B, (T)]: its index in `pieces`, and its word's in `words`."""
        # `pieces` [W, (P)] are those of the different words; `words` [B, (N)] says which of the W
        # words the texts' words are. The indices are into the flat values of either.
        surfaces = pieces.flat_values
        is_space = tf.equal(surfaces, WORD_START)
        is_punctuation = tf.strings.regex_full_match(surfaces, rf"[{PUNCTUATION}](?s:.*)")
        is_punctuation &= ~self._segmenter.is_byte(surfaces)

        by_word = tf.gather(pieces.with_flat_values(tf.range(tf.size(surfaces))), words.flat_values)
        rows = words.with_values(by_word).merge_dims(1, 2)
        positions = rows.flat_values
        row_ends = rows.row_splits[1:]
        is_last = tf.scatter_nd(
            row_ends[:, tf.newaxis], tf.ones_like(row_ends), [tf.size(positions, tf.int64) + 1]
        )
        # A word that SentencePiece does not know how to begin leaves a lone space. The released
        # tokenizer drops it before punctuation and at the end of a text.
        next_is_punctuation = tf.concat([tf.gather(is_punctuation, positions), [True]], 0)[1:]
        droppable = next_is_punctuation | (is_last[1:] > 0)
        is_kept = ~(tf.gather(is_space, positions) & droppable)
        kept = tf.ragged.boolean_mask(rows, rows.with_flat_values(is_kept))
        return kept, kept.with_flat_values(tf.boolean_mask(by_word.value_rowids(), is_kept))

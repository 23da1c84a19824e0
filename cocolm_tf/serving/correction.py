"""The signature `correct`: which words of a text do not belong, and what they should be.

The main model predicts two things of each token x of its input (paper, section 3.3): p_copy, the
probability that x is the original, which every token trains; and a distribution softmax(LM) over
the tokens that may stand there instead. Together they give the probability of each original token,

    p(v) = 1(v = x) p_copy + (1 - p_copy) softmax(LM)[v],

for each token by itself: given the text, the model's tokens are independent of each other.

So for a word of the tokens x_1 ... x_n,

- it belongs if all of its tokens are original, with the probability p_copy_1 * ... * p_copy_n;
- the original was the word v_1 ... v_n with the probability p_1(v_1) * ... * p_n(v_n).

The second sums to one over all words of n tokens, the word itself included, which has at least the
first: the probabilities of all corrections together are at most the probability that the word does
not belong.

The corruption of pretraining replaces token by token, so that the original of a word has as many
tokens as the word. A model that was fine-tuned on people's mistakes (`cocolm_tf.corrections`) has
also learned that a token should be nothing: the original may have fewer tokens then, and where it
has none, the word should go. It never has more.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cocolm_tf.serving.encoder import Encoder, concatenated
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import (
    Settings,
    SignatureGroup,
    Tensors,
    by_text,
    dense_rows,
    padded,
)
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID, UNKNOWN_TOKEN_ID
from cocolm_tf.tokenization.normalization import PUNCTUATION
from cocolm_tf.tokenization.offsets import Characters, begins_word, whole_words_within
from cocolm_tf.tokenization.segmenter import WORD_START

# A word of more tokens is scored and gets no corrections: it is a number, a key or an address.
MAX_TOKENS_TO_CORRECT = 32
# What the LM head says of a token that should be nothing: of a correction that has fewer tokens, or
# of a word that should go. Only fine-tuning on corrections teaches it.
NOTHING_ID = PAD_TOKEN_ID

# Rows as wide as the vocabulary that are there at once.
_LM_ROWS_AT_ONCE = 256
# What may replace a token: one that begins a word, one that continues it, or any.
_BEGINNING, _CONTINUATION, _ANY, _NONE = range(4)


class Candidates(NamedTuple):
    """What may be the original of each token."""

    ids: tf.Tensor  # [T, C] int32, the most probable other tokens
    log_probabilities: tf.Tensor  # [T, C] float32, of these; -inf where there are fewer
    own: tf.Tensor  # [T] float32, the log probability of the token itself


class Corrector(SignatureGroup):
    """The signatures `correct`, `correct_tsv` and `correct_ids`."""

    # Texts longer than the model are read in windows that overlap by a quarter; what goes beyond
    # the `max_tokens` or `max_bytes` of the settings is not read. Words whose probability of not
    # belonging is less than `min_probability` get no corrections, which saves their part of the LM
    # head's time.

    names = ("correct", "correct_tsv", "correct_ids")

    def __init__(
        self, parts: ServedPreset, encoder: Encoder, settings: Settings | None = None
    ) -> None:
        super().__init__(parts, encoder, settings)
        self._copy_head, self._lm_head = parts.head("copy_head"), parts.head("lm_head")
        pieces = parts.tokenizer.get_vocabulary()
        # One more spells the word itself, and some spell the same.
        self._width = min(2 * self.settings.num_corrections + 1, len(pieces))
        self._contents = tf.tensor_scatter_nd_update(
            self.reader.graph.contents, [[NOTHING_ID]], [""]
        )
        is_byte = np.isin(np.arange(len(pieces)), parts.tokenizer.byte_token_ids)
        self._is_byte = tf.constant(is_byte)
        self._allowed = _allowed_replacements(pieces, parts.tokenizer.special_token_ids, is_byte)

    def correct(self, texts: tf.Tensor) -> Tensors:
        """Finds the words of texts [B] string that do not belong, and corrections for them.

        Words are those that white space separates, and punctuation before and after them are
        words of their own. What cannot be read, such as control characters, is no word; invalid
        UTF-8 counts as U+FFFD.

        Returns:
            With W the largest number of words of a text, K that of corrections:

            - `words` [B, W] string: the words as they stand in the texts;
            - `starts`, `ends` [B, W] int32: their first characters, and the ones after their
              last, as Python indexes a string;
            - `probabilities` [B, W] float32: that the word does not belong;
            - `corrections` [B, W, K] string: what it may have been, the most probable first, as
              the vocabulary spells it; "" where the word should go, which models say that were
              fine-tuned on corrections, and, with a probability of 0, where there are fewer;
            - `correction_probabilities` [B, W, K] float32, whose sum is at most the word's in
              `probabilities`: the module has the derivation;
            - `num_words` [B] int32: where a row of the others ends;
            - `truncated` [B] bool: whether the text was too long, and its end went unread.

        Raises:
            tf.errors.InvalidArgumentError: When called, if the rows of a large batch would be as
                wide as one long text; `correct_tsv` has no such rows.
        """
        found, is_truncated = self._find_corrections(texts)
        dense = dense_rows(found, self.settings.max_tokens, "words", "correct_tsv")
        return dense | {"truncated": is_truncated}

    def correct_tsv(self, texts: tf.Tensor) -> Tensors:
        """Corrects texts [B] string as `correct` does, and gives each text one string.

        Returns:
            `tsv` [B] string: a line for each word, of fields between tabs: the word's start, its
            end, the probability that it does not belong, the word, and then each correction and
            its probability; and `truncated` [B] bool.
        """
        found, is_truncated = self._find_corrections(texts)
        flat = {name: ragged.flat_values for name, ragged in found.items()}
        options, shares = flat["corrections"], flat["correction_probabilities"]
        is_given = tf.concat([tf.fill([tf.shape(options)[0], 1], True), shares > 0], axis=1)
        fields = tf.strings.join([options, _formatted(shares)], "\t")
        word = [tf.strings.as_string(flat[name]) for name in ("starts", "ends")]
        word = tf.strings.join([*word, _formatted(flat["probabilities"]), flat["words"]], "\t")
        fields = tf.ragged.boolean_mask(tf.concat([word[:, tf.newaxis], fields], axis=1), is_given)
        lines = tf.strings.reduce_join(fields, axis=1, separator="\t")
        lines = found["words"].with_flat_values(lines)
        tsv = tf.strings.reduce_join(lines, axis=1, separator="\n")
        return {"tsv": tsv, "truncated": is_truncated}

    # A function, so that a SavedModel holds it once for both signatures.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")], autograph=False)
    def _find_corrections(self, texts: tf.Tensor) -> tuple[dict[str, tf.RaggedTensor], tf.Tensor]:
        """The outputs of `correct`, [B, (W), ...] each; and whether the texts were too long."""
        (texts,), is_cut = self.reader.texts(texts)
        tokens = self.reader.graph.tokenize_with_offsets(texts)
        tokens, is_truncated = whole_words_within(tokens, self.settings.max_tokens, is_cut)
        limit = self.reader.limit
        # Two windows share a quarter of the room beside `<s>` and `</s>`.
        states = self.encoder.states_in_windows(tokens.ids, limit, overlap=(limit - 2) // 4)
        rows = tokens.ids.value_rowids()
        ids, starts, ends, _ = (part.flat_values for part in tokens)

        is_beginning = begins_word(tokens)
        word_of = tf.cumsum(tf.cast(is_beginning, tf.int32)) - 1
        num_words = tf.reduce_sum(tf.cast(is_beginning, tf.int32))
        word_starts = tf.math.unsorted_segment_min(starts, word_of, num_words)
        word_ends = tf.math.unsorted_segment_max(ends, word_of, num_words)
        word_rows = tf.boolean_mask(rows, is_beginning)
        word_lengths = tf.math.bincount(word_of, minlength=num_words)

        copy_logits = tf.cast(self._copy_head(states), tf.float32)
        probabilities = replaced_probability(copy_logits, word_of, num_words)
        is_suspicious = probabilities >= self.settings.min_probability
        is_suspicious &= word_lengths <= MAX_TOKENS_TO_CORRECT
        suspicious = tf.where(is_suspicious)
        wanted = tf.where(tf.gather(is_suspicious, word_of))[:, 0]
        characters = Characters(texts)
        unknown = characters.between(rows, starts, ends, ids == UNKNOWN_TOKEN_ID)
        own = tf.where(ids == UNKNOWN_TOKEN_ID, unknown, tf.gather(self._contents, ids))
        found, found_probabilities = self._corrections(
            *(tf.gather(x, wanted) for x in (states, copy_logits, ids, own, is_beginning))
        )
        shape = [num_words, self.settings.num_corrections]
        found = tf.tensor_scatter_nd_update(tf.fill(shape, ""), suspicious, found)
        found_probabilities = tf.tensor_scatter_nd_update(
            tf.zeros(shape), suspicious, found_probabilities
        )

        # A word of a lone "▁" has no characters.
        is_word = word_ends > word_starts
        by_word = {
            "words": characters.between(word_rows, word_starts, word_ends, is_word),
            "starts": word_starts,
            "ends": word_ends,
            "probabilities": probabilities,
            "corrections": found,
            "correction_probabilities": found_probabilities,
        }
        by_word = {name: tf.boolean_mask(values, is_word) for name, values in by_word.items()}
        word_rows = tf.boolean_mask(word_rows, is_word)
        return by_text(by_word, word_rows, tf.size(texts, tf.int64)), is_truncated

    def correct_ids(self, token_ids: tf.Tensor) -> Tensors:
        """Judges tokens [B, S] int32, special tokens included, for callers who tokenize.

        Returns:
            With K corrections, and zeros for what is padding or cut off: `probabilities` [B, S]
            float32, that the token is not the original; `correction_ids` [B, S, K] int32, what it
            may have been, the most probable first, `<pad>` for nothing; their
            `correction_probabilities` [B, S, K] float32; and `truncated` [B] bool.
        """
        ids, is_truncated = self.reader.rows_of_ids(token_ids)
        states = self.encoder.states(ids).flat_values
        copy_logits = tf.cast(self._copy_head(states), tf.float32)
        kinds = tf.fill(tf.shape(ids.flat_values), _ANY)
        found = self._candidates(states, copy_logits, ids.flat_values, kinds)
        best, index = tf.math.top_k(found.log_probabilities, self.settings.num_corrections)
        width = tf.shape(token_ids)[1]
        correction_ids = tf.gather(found.ids, index, batch_dims=1)
        return {
            "probabilities": padded(ids, tf.sigmoid(-copy_logits), width),
            "correction_ids": padded(ids, correction_ids, width),
            "correction_probabilities": padded(ids, tf.exp(best), width),
            "truncated": is_truncated,
        }

    def _corrections(
        self,
        states: tf.Tensor,
        copy_logits: tf.Tensor,
        ids: tf.Tensor,
        own: tf.Tensor,
        is_beginning: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The corrections of words, [W, K] each, given their tokens."""
        kinds = tf.where(is_beginning, _BEGINNING, _CONTINUATION)
        kinds = tf.where(tf.gather(self._is_byte, ids), _NONE, kinds)
        found = self._candidates(states, copy_logits, ids, kinds)
        contents = tf.concat([own[:, tf.newaxis], tf.gather(self._contents, found.ids)], axis=1)
        log_probabilities = tf.concat([found.own[:, tf.newaxis], found.log_probabilities], axis=1)
        word_of = tf.cumsum(tf.cast(is_beginning, tf.int32)) - 1
        num_words = tf.reduce_sum(tf.cast(is_beginning, tf.int32))
        lengths = tf.math.bincount(word_of, minlength=num_words, dtype=tf.int64)
        spelled, scores = best_spellings(contents, log_probabilities, lengths, self._width)
        own = tf.strings.unsorted_segment_join(own, word_of, num_words)
        return best_corrections(spelled, scores, own, self.settings.num_corrections)

    def _candidates(
        self, states: tf.Tensor, copy_logits: tf.Tensor, ids: tf.Tensor, kinds: tf.Tensor
    ) -> Candidates:
        """The candidates for tokens, by the probabilities of the paper's section 3.3."""

        def candidates_of_part(number: tf.Tensor) -> Candidates:
            first = number * _LM_ROWS_AT_ONCE
            part = slice(first, first + _LM_ROWS_AT_ONCE)
            logits = self.encoder.model.token_logits(states[part]) + self._lm_head.bias
            normalizer = tf.reduce_logsumexp(logits, axis=1)
            own = tf.gather(logits, ids[part], batch_dims=1) - normalizer
            allowed = tf.where(tf.gather(self._allowed, kinds[part]), logits, -float("inf"))
            best, best_ids = tf.math.top_k(allowed, self._width)
            best = tf.where(best_ids == ids[part, tf.newaxis], -float("inf"), best)
            is_replaced = tf.math.log_sigmoid(-copy_logits[part])
            is_original = tf.math.log_sigmoid(copy_logits[part])
            return Candidates(
                best_ids,
                (is_replaced - normalizer)[:, tf.newaxis] + best,
                tf.reduce_logsumexp(tf.stack([is_original, is_replaced + own]), axis=0),
            )

        outputs = (
            tf.TensorSpec([None, self._width], tf.int32),
            tf.TensorSpec([None, self._width], tf.float32),
            tf.TensorSpec([None], tf.float32),
        )
        parts = -(-tf.size(ids) // _LM_ROWS_AT_ONCE)
        return Candidates(*concatenated(candidates_of_part, parts, outputs))


def _allowed_replacements(
    pieces: list[str], special_token_ids: list[int], is_byte: np.ndarray
) -> tf.Tensor:
    """[4, V] bool: which pieces may begin a word, continue it, stand anywhere, or nowhere."""
    # `NOTHING_ID` is allowed wherever a piece may be.
    is_ordinary = np.ones(len(pieces), bool)
    is_ordinary[special_token_ids] = False
    starts_word = np.array([piece.startswith(WORD_START) for piece in pieces])
    has_content = np.array([piece.strip(WORD_START) != "" for piece in pieces])
    # A word begins without "▁" where the vocabulary does not have the two as one, and they are
    # punctuation: before that, the tokenizer drops the lone "▁".
    is_punctuation = tf.strings.regex_full_match(pieces, rf"[{PUNCTUATION}](?s:.*)").numpy()
    vocabulary = set(pieces)
    is_alone = np.array([WORD_START + piece not in vocabulary for piece in pieces])
    allowed = np.zeros([_NONE + 1, len(pieces)], bool)
    allowed[_BEGINNING] = (starts_word & has_content) | (is_punctuation & is_alone)
    allowed[_CONTINUATION] = ~starts_word
    # A byte alone is no character: none comes into a word, and none is taken out of one.
    allowed[[_BEGINNING, _CONTINUATION]] &= ~is_byte
    allowed[_ANY] = True
    allowed &= is_ordinary
    allowed[:_NONE, NOTHING_ID] = True
    return tf.constant(allowed)


def _formatted(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.strings.as_string(probabilities, precision=4)


# --- From tokens to words ---


def replaced_probability(
    copy_logits: tf.Tensor, word_numbers: tf.Tensor, num_words: tf.Tensor
) -> tf.Tensor:
    """The probability that a token of each word is not the original: [W] float32."""
    # `copy_logits` [T] float32; `word_numbers` [T], the word of each token, ascending.
    log_belongs = tf.math.unsorted_segment_sum(
        tf.math.log_sigmoid(copy_logits), word_numbers, num_words
    )
    # Not 1 - exp(x): most words belong, and a float32 has no digits left for what is close to 1.
    return -tf.math.expm1(log_belongs)


def best_spellings(
    contents: tf.Tensor, log_probabilities: tf.Tensor, word_lengths: tf.Tensor, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The `width` likeliest spellings of each word and their log probabilities, [W, width]."""
    # The candidates of each of T tokens are `contents` and `log_probabilities` [T, C], -inf for
    # none; `word_lengths` [W] int64 are in tokens, at least 1. Results are in descending order,
    # -inf where there are fewer; the same spelling may occur several times. The tokens are
    # independent, so the best `width` beginnings of a word lead to its best `width` spellings:
    # nothing is missed that is spelled with the candidates.
    first_tokens = tf.cumsum(word_lengths, exclusive=True)
    num_words = tf.size(word_lengths)
    spelled = tf.fill([num_words, width], "")
    scores = tf.concat(
        [tf.zeros([num_words, 1]), tf.fill([num_words, width - 1], -float("inf"))], axis=1
    )

    def extend(
        place: tf.Tensor, spelled: tf.Tensor, scores: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        words = tf.where(word_lengths > place)[:, 0]
        tokens = tf.gather(first_tokens, words) + place
        choices = tf.shape(contents)[1]
        beginnings = tf.gather(scores, words)[:, :, tf.newaxis]
        all_scores = beginnings + tf.gather(log_probabilities, tokens)[:, tf.newaxis, :]
        best, index = tf.math.top_k(
            tf.reshape(all_scores, [-1, width * choices]), tf.minimum(width, width * choices)
        )
        longer = tf.strings.join(
            [
                tf.gather(tf.gather(spelled, words), index // choices, batch_dims=1),
                tf.gather(tf.gather(contents, tokens), index % choices, batch_dims=1),
            ]
        )
        words = words[:, tf.newaxis]
        return (
            place + 1,
            tf.tensor_scatter_nd_update(spelled, words, longer),
            tf.tensor_scatter_nd_update(scores, words, best),
        )

    longest = tf.reduce_max(tf.concat([word_lengths, [0]], 0))
    _, spelled, scores = tf.while_loop(
        lambda place, *_: place < longest,
        extend,
        (tf.constant(0, tf.int64), spelled, scores),
        parallel_iterations=1,
    )
    return spelled, scores


def best_corrections(
    spelled: tf.Tensor, scores: tf.Tensor, own: tf.Tensor, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The `count` likeliest words other than the word itself, and their probabilities."""
    # [W, count] each; "" says that the word should go, and is followed by 0 where there are fewer.
    # `spelled` and `scores` [W, C] are from `best_spellings`, `own` [W] is what each word's own
    # tokens spell. Token sequences that spell the same word count together.
    is_same = tf.equal(spelled[:, :, tf.newaxis], spelled[:, tf.newaxis, :])
    together = tf.linalg.matvec(tf.cast(is_same, tf.float32), tf.exp(scores))
    is_first = tf.equal(
        tf.argmax(tf.cast(is_same, tf.int32), axis=2, output_type=tf.int32),
        tf.range(tf.shape(spelled)[1]),
    )
    is_other = spelled != own[:, tf.newaxis]
    probabilities = tf.where(is_first & is_other, tf.minimum(together, 1.0), 0.0)
    best, index = tf.math.top_k(probabilities, count)
    return tf.where(best > 0, tf.gather(spelled, index, batch_dims=1), ""), best

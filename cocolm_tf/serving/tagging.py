"""The signature `tag`: which parts of a text have a label, as names of people and places have."""

import tensorflow as tf

from cocolm_tf.data.tags import NO_SCHEME, NO_TYPE, TagCodes, begins_chunk, ends_chunk
from cocolm_tf.finetuning.models.token_classifier import CocoLMTokenClassifier
from cocolm_tf.finetuning.models.token_rows import SILENT, units_of_texts
from cocolm_tf.serving.correction import MAX_TOKENS
from cocolm_tf.serving.encoder import Encoder
from cocolm_tf.serving.signature import (
    LONGEST_TEXTS_OF_REQUEST,
    MAX_BYTES,
    TEXTS,
    TOKEN_IDS,
    Reader,
    Signature,
    Tensors,
    dense_rows,
    text_request,
)
from cocolm_tf.tokenization.offsets import Characters, TokenOffsets, whole_words_within
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer


class Tagger:
    """The functions of the signatures `tag`, `tag_tsv` and `tag_ids`.

    Args:
        encoder: of the classifier's backbone.
        tokenizer: its tokenizer.
        classifier: the fine-tuned model.
        max_tokens: What of a text is longer goes unread. Up to here, texts longer than the
            model are read in overlapping windows, as in fine-tuning.
        max_bytes: What of a text is longer goes unread too.

    Example:
    ```python
    preset = ServedPreset("runs/names")
    encoder = Encoder(InferenceEncoder(preset.backbone))
    tagger = Tagger(encoder, preset.tokenizer, preset.token_classifier, 4096)
    tagger.tag(tf.constant(["Ada lives in Rome."]))["spans"]
    ```
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: CocoLMTokenizer,
        classifier: CocoLMTokenClassifier,
        max_tokens: int,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._encoder = encoder
        self.reader = Reader(tokenizer, classifier.preprocessor.sequence_length, max_bytes)
        self._classifier = classifier
        self._max_tokens = max_tokens
        self._tag_names = tf.constant(classifier.tag_names)
        if classifier.scheme == NO_SCHEME:
            self._codes, self._labels = None, self._tag_names
        else:
            self._codes = TagCodes.of(classifier.tag_names)
            self._labels = tf.constant(
                [name.partition("-")[2] for name in classifier.tag_names], tf.string
            )

    def tag(self, texts: tf.Tensor) -> Tensors:
        """Finds the labeled spans of texts.

        Args:
            texts: [B] string. UTF-8; invalid bytes count as U+FFFD.

        Returns:
            With N the largest number of spans of a text, in order:

            - `spans` [B, N] string: the spans as they stand in the texts;
            - `starts`, `ends` [B, N] int32: their first characters, and the ones after their
              last, as Python indexes a string;
            - `labels` [B, N] string;
            - `scores` [B, N] float32: how probable the tags of the span's words are, all together;
            - `num_spans` [B] int32: where a row of the others ends;
            - `truncated` [B] bool: whether the text was too long, and its end went unread.

        Raises:
            tf.errors.InvalidArgumentError: when called, if the rows of a large batch would be as
                wide as one text with very many spans; `tag_tsv` has no such rows.
        """
        by_text, is_truncated = self._tagged(texts)
        counts = tf.cast(by_text["spans"].row_lengths(), tf.int32)
        most = LONGEST_TEXTS_OF_REQUEST * max(self._max_tokens, MAX_TOKENS)
        dense = dense_rows(by_text, most, "spans", "tag_tsv")
        return dense | {"num_spans": counts, "truncated": is_truncated}

    def tag_tsv(self, texts: tf.Tensor) -> Tensors:
        """Finds the labeled spans of texts as `tag` does, and gives each text one string.

        Args:
            texts: [B] string. UTF-8; invalid bytes count as U+FFFD.

        Returns:
            - `tsv` [B] string: a line for each span, joined by line feeds. Its fields, joined by
              tabs, are the span's start, its end, its label, its score, and the span with its
              white space as single spaces;
            - `truncated` [B] bool.
        """
        by_text, is_truncated = self._tagged(texts)
        flat = {name: ragged.flat_values for name, ragged in by_text.items()}
        places = [tf.strings.as_string(flat[name]) for name in ("starts", "ends")]
        scores = tf.strings.as_string(flat["scores"], precision=4)
        spans = tf.strings.regex_replace(flat["spans"], r"[\s\x{85}\x{2028}\x{2029}]+", " ")
        lines = tf.strings.join([*places, flat["labels"], scores, spans], "\t")
        lines = by_text["spans"].with_flat_values(lines)
        tsv = tf.strings.reduce_join(lines, axis=1, separator="\n")
        return {"tsv": tsv, "truncated": is_truncated}

    def tag_ids(self, token_ids: tf.Tensor) -> Tensors:
        """Tags tokens, for callers who tokenize. The first token of a word speaks for it.

        Args:
            token_ids: [B, S] int32, special tokens included, padded with `<pad>`. What is longer
                than the model is cut.

        Returns:
            - `tags` [B, S] string: the most probable tag of each token, in the model's scheme; ""
              for what is padding or cut off;
            - `probabilities` [B, S] float32: the tags';
            - `truncated` [B] bool.
        """
        rows, is_truncated = self.reader.rows_of_ids(token_ids)
        numbers, log_probabilities = self._best_tags(self._encoder.states(rows).flat_values)
        shape = tf.stack([-1, tf.shape(token_ids)[1]])

        def dense(values: tf.Tensor) -> tf.Tensor:
            return rows.with_flat_values(values).to_tensor(shape=shape)

        return {
            "tags": dense(tf.gather(self._tag_names, numbers)),
            "probabilities": dense(tf.exp(log_probabilities)),
            "truncated": is_truncated,
        }

    def _best_tags(self, states: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The numbers of the most probable tags, [T] int32, and their log probabilities."""
        logits = tf.cast(self._classifier.tag_logits(states), tf.float32)
        best = tf.argmax(logits, axis=1, output_type=tf.int32)
        return best, tf.reduce_max(logits, axis=1) - tf.reduce_logsumexp(logits, axis=1)

    def _tagged(self, texts: tf.Tensor) -> tuple[dict[str, tf.RaggedTensor], tf.Tensor]:
        """What `tag` gives, [B, (N)] each, and whether the texts were too long."""
        preprocessor = self._classifier.preprocessor
        (texts,), is_cut = self.reader.texts(texts)
        tokens = self.reader.graph.tokenize_with_offsets(texts)
        if preprocessor.unit == "word":
            tokens, is_truncated = whole_words_within(tokens, self._max_tokens, is_cut)
        else:
            is_truncated = is_cut | (tokens.ids.row_lengths() > self._max_tokens)
            tokens = TokenOffsets(*(part[:, : self._max_tokens] for part in tokens))
        units = units_of_texts(tokens, preprocessor.unit)
        states = self._encoder.states_in_windows(
            tokens.ids, self.reader.limit, preprocessor.overlap
        )
        states = tf.boolean_mask(states, units.of_tokens != SILENT)
        numbers, log_probabilities = self._best_tags(states)

        begins, ends, is_inside = self._bounds(numbers, units.texts)
        first, last = tf.where(begins)[:, 0], tf.where(ends)[:, 0]
        span_of = tf.maximum(tf.cumsum(tf.cast(begins, tf.int32)) - 1, 0)
        scores = tf.math.unsorted_segment_sum(
            tf.where(is_inside, log_probabilities, 0.0), span_of, tf.size(first)
        )
        rows, starts = tf.gather(units.texts, first), tf.gather(units.starts, first)
        span_ends = tf.gather(units.ends, last)
        is_wanted = tf.ones_like(starts, tf.bool)
        by_span = {
            "spans": Characters(texts).between(rows, starts, span_ends, is_wanted),
            "starts": starts,
            "ends": span_ends,
            "labels": tf.gather(self._labels, tf.gather(numbers, first)),
            "scores": tf.exp(scores),
        }
        num_texts = tf.size(texts, tf.int64)
        by_text = {
            name: tf.RaggedTensor.from_value_rowids(values, rows, num_texts)
            for name, values in by_span.items()
        }
        return by_text, is_truncated

    def _bounds(
        self, numbers: tf.Tensor, texts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[U] bool each: whether a span begins with the unit, ends with it, or has it at all."""
        if self._codes is None:
            return (tf.ones_like(numbers, tf.bool),) * 3
        prefixes, types = (tf.gather(part, numbers) for part in self._codes[:2])
        is_new = texts[1:] != texts[:-1]
        is_first = tf.concat([tf.ones_like(texts[:1], tf.bool), is_new], 0)
        is_last = tf.concat([is_new, tf.ones_like(texts[:1], tf.bool)], 0)

        def beside(values: tf.Tensor, shift: int, is_edge: tf.Tensor, outside: int) -> tf.Tensor:
            return tf.where(is_edge, outside, tf.roll(values, shift, axis=0))

        before = beside(prefixes, 1, is_first, 0), beside(types, 1, is_first, NO_TYPE)
        after = beside(prefixes, -1, is_last, 0), beside(types, -1, is_last, NO_TYPE)
        return (
            begins_chunk(before[0], prefixes, before[1], types),
            ends_chunk(prefixes, after[0], types, after[1]),
            tf.not_equal(types, NO_TYPE),
        )


def tagging_signatures(tagger: Tagger) -> dict[str, Signature]:
    """The signatures `tag`, `tag_tsv` and `tag_ids`."""
    return {
        "tag": Signature(tagger.tag, (TEXTS,), text_request),
        "tag_tsv": Signature(tagger.tag_tsv, (TEXTS,), text_request),
        "tag_ids": Signature(tagger.tag_ids, (TOKEN_IDS,), tagger.reader.ids_request),
    }

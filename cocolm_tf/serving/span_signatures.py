"""The signatures that find spans in texts: `answer`, of a question, and `tag`, of labels.

Spans are characters, as Python indexes a string. Texts longer than the model are read in
overlapping windows, as in fine-tuning; what goes beyond the `max_tokens` and `max_bytes` of the
settings is not read.
"""

import tensorflow as tf

from cocolm_tf.data.tags import NO_SCHEME, NO_TYPE, TagCodes, begins_chunk, ends_chunk
from cocolm_tf.finetuning.models.answers import best_spans
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.question_windows import Windows, lay_out_windows
from cocolm_tf.finetuning.models.token_classifier import CocoLMTokenClassifier
from cocolm_tf.finetuning.models.token_rows import NO_UNIT, units_of_texts
from cocolm_tf.serving.encoder import concatenated
from cocolm_tf.serving.signature import SignatureGroup, Tensors, by_text, dense_rows, padded
from cocolm_tf.tokenization.offsets import Characters, TokenOffsets, whole_words_within

# The logit of padding.
_PADDING_LOGIT = -1e4
# The score of an answer from a context without tokens, relative to no answer's.
_NO_TOKENS_PENALTY = 1e6
# Windows that are searched for spans at once.
_WINDOWS_AT_ONCE = 32


class Answerer(SignatureGroup):
    """The signatures `answer` and `answer_ids`."""

    names = ("answer", "answer_ids")
    task = CocoLMQuestionAnswerer

    def answer(self, questions: tf.Tensor, contexts: tf.Tensor) -> Tensors:
        """Answers questions [B] string from contexts [B] string.

        Returns:
            - `answers` [B] string: the best answer that the context has, also where there may be
              none; "" of a context without words; its `starts` and `ends` [B] int32;
            - `scores` [B] float32: the sum of its start and end logits;
            - `no_answer_scores` [B] float32: the same of there being no answer, from the window
              that is surest that there is one;
            - `answerable` [B] bool: whether the model, by the threshold that it was saved with,
              says that there is an answer;
            - `truncated` [B] bool: whether the end of the question or the context went unread.
        """
        preprocessor, graph = self.model.preprocessor, self.reader.graph
        max_tokens = self.settings.max_tokens
        (questions, contexts), is_cut = self.reader.texts(questions, contexts)
        question_ids = graph.tokenize(questions)
        tokens = graph.tokenize_with_offsets(contexts)
        is_truncated = is_cut | (tokens.ids.row_lengths() > max_tokens)
        is_truncated |= question_ids.row_lengths() > preprocessor.max_question_length
        windows = lay_out_windows(
            question_ids,
            TokenOffsets(*(part[:, :max_tokens] for part in tokens)),
            tf.zeros([tf.size(questions), 2], tf.int32),
            sequence_length=preprocessor.sequence_length,
            stride=preprocessor.stride,
            max_question_length=preprocessor.max_question_length,
        )
        spans = self._spans(windows)
        scores = spans["scores"]

        # Of a question's windows the first with the best span, and the surest one.
        num_questions = tf.size(questions, tf.int64)
        by_question = tf.RaggedTensor.from_value_rowids(
            scores, tf.cast(windows.rows, tf.int64), num_questions, validate=False
        )
        # One more column, since a batch without questions has none to take the maximum of.
        of_windows = tf.pad(
            by_question.to_tensor(-float("inf")), [[0, 0], [0, 1]], constant_values=-float("inf")
        )
        best = by_question.row_starts() + tf.argmax(of_windows, axis=1)
        no_answer = tf.math.unsorted_segment_min(
            spans["no_answer_scores"], windows.rows, num_questions
        )
        scores = tf.gather(scores, best)
        is_found = scores > -float("inf")
        starts, ends = (
            tf.where(is_found, tf.gather(spans[name], best), 0) for name in ("starts", "ends")
        )
        scores = tf.where(is_found, scores, no_answer - _NO_TOKENS_PENALTY)
        threshold = self.model.null_threshold
        is_answered = is_found
        if threshold is not None:
            is_answered &= no_answer - scores <= threshold
        return {
            "answers": tf.strings.substr(contexts, starts, ends - starts, unit="UTF8_CHAR"),
            "starts": starts,
            "ends": ends,
            "scores": scores,
            "no_answer_scores": no_answer,
            "answerable": is_answered,
            "truncated": is_truncated,
        }

    def answer_ids(self, token_ids: tf.Tensor) -> Tensors:
        """Gives the logits of tokens [B, S] int32, for callers who tokenize.

        The rows are `<s> question </s> </s> context </s>`, padded with `<pad>`.

        Returns:
            `start_logits` and `end_logits` [B, S] float32 of an answer that begins or ends with
            the token; of `<s>`, that there is none; -10000 for what is padding or cut off. And
            `truncated` [B] bool.
        """
        rows, is_truncated = self.reader.rows_of_ids(token_ids)
        start, end = self._logits(rows, tf.shape(token_ids)[1])
        return {"start_logits": start, "end_logits": end, "truncated": is_truncated}

    def _logits(self, rows: tf.RaggedTensor, width: tf.Tensor) -> list[tf.Tensor]:
        """Start and end logits, [B, width] each."""
        states = self.encoder.states(rows)
        logits = tf.cast(self.model.answer_logits(states.flat_values), tf.float32)
        return tf.unstack(padded(rows, logits, width, _PADDING_LOGIT), num=2, axis=-1)

    def _spans(self, windows: Windows) -> Tensors:
        """The best span of each window, [W] each."""
        lengths = tf.reduce_sum(tf.cast(windows.padding_mask, tf.int64), axis=1)
        rows = tf.RaggedTensor.from_tensor(windows.token_ids, lengths)
        start_logits, end_logits = self._logits(rows, tf.shape(windows.token_ids)[1])

        def spans_of_part(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
            first = number * _WINDOWS_AT_ONCE
            part = slice(first, first + _WINDOWS_AT_ONCE)
            spans = best_spans(
                start_logits[part],
                end_logits[part],
                windows.starts[part],
                windows.ends[part],
                max_answer_length=self.model.max_answer_length,
                n_best=1,
            )
            scores = spans.start_logits + spans.end_logits
            no_answer = tf.reduce_sum(spans.no_answer_logits, axis=1)
            return spans.starts[:, 0], spans.ends[:, 0], scores[:, 0], no_answer

        number, score = (tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.float32))
        parts = -(-tf.size(windows.rows) // _WINDOWS_AT_ONCE)
        found = concatenated(spans_of_part, parts, (number, number, score, score))
        return dict(zip(("starts", "ends", "scores", "no_answer_scores"), found, strict=True))


class Tagger(SignatureGroup):
    """The signatures `tag`, `tag_tsv` and `tag_ids`: which parts of a text have a label."""

    names = ("tag", "tag_tsv", "tag_ids")
    task = CocoLMTokenClassifier

    @property
    def limit(self) -> int:
        """The longest row in tokens, as in fine-tuning."""
        return self.model.preprocessor.sequence_length

    def tag(self, texts: tf.Tensor) -> Tensors:
        """Finds the labeled spans of texts [B] string.

        Returns:
            With N the largest number of spans of a text: `spans` [B, N] string, as they stand in
            the text; their `starts` and `ends` [B, N] int32 and `labels` [B, N] string; `scores`
            [B, N] float32, how probable the tags of the span's words are, all together;
            `num_spans` [B] int32, where a row of the others ends; and `truncated` [B] bool.

        Raises:
            tf.errors.InvalidArgumentError: When called, if the rows of a large batch would be as
                wide as one text with very many spans; `tag_tsv` has no such rows.
        """
        found, is_truncated = self._tagged(texts)
        dense = dense_rows(found, self.settings.max_tokens, "spans", "tag_tsv")
        return dense | {"truncated": is_truncated}

    def tag_tsv(self, texts: tf.Tensor) -> Tensors:
        """Finds the labeled spans of texts [B] string as `tag` does, in one string a text.

        Returns:
            `tsv` [B] string: a line for each span, of fields between tabs: the span's start, its
            end, its label, its score, and the span with its white space as single spaces; and
            `truncated` [B] bool.
        """
        found, is_truncated = self._tagged(texts)
        flat = {name: ragged.flat_values for name, ragged in found.items()}
        places = [tf.strings.as_string(flat[name]) for name in ("starts", "ends")]
        scores = tf.strings.as_string(flat["scores"], precision=4)
        spans = tf.strings.regex_replace(flat["spans"], r"[\s\x{85}\x{2028}\x{2029}]+", " ")
        lines = tf.strings.join([*places, flat["labels"], scores, spans], "\t")
        lines = found["spans"].with_flat_values(lines)
        tsv = tf.strings.reduce_join(lines, axis=1, separator="\n")
        return {"tsv": tsv, "truncated": is_truncated}

    def tag_ids(self, token_ids: tf.Tensor) -> Tensors:
        """Tags tokens [B, S] int32, for callers who tokenize. A word has its first token's tag.

        Returns:
            `tags` [B, S] string, the most probable tag of each token in the model's scheme, "" for
            what is padding or cut off; their `probabilities` [B, S] float32; and `truncated` [B]
            bool.
        """
        rows, is_truncated = self.reader.rows_of_ids(token_ids)
        tags, log_probabilities = self._best_tags(self.encoder.states(rows).flat_values)
        width = tf.shape(token_ids)[1]
        return {
            "tags": padded(rows, tf.gather(self.model.tag_names, tags), width),
            "probabilities": padded(rows, tf.exp(log_probabilities), width),
            "truncated": is_truncated,
        }

    def _best_tags(self, states: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The numbers of the most probable tags, [T] int32, and their log probabilities."""
        logits = tf.cast(self.model.tag_logits(states), tf.float32)
        best = tf.argmax(logits, axis=1, output_type=tf.int32)
        return best, tf.reduce_max(logits, axis=1) - tf.reduce_logsumexp(logits, axis=1)

    def _tagged(self, texts: tf.Tensor) -> tuple[dict[str, tf.RaggedTensor], tf.Tensor]:
        """What `tag` gives, [B, (N)] each, and whether the texts were too long."""
        preprocessor, max_tokens = self.model.preprocessor, self.settings.max_tokens
        (texts,), is_cut = self.reader.texts(texts)
        tokens = self.reader.graph.tokenize_with_offsets(texts)
        if preprocessor.unit == "word":
            tokens, is_truncated = whole_words_within(tokens, max_tokens, is_cut)
        else:
            is_truncated = is_cut | (tokens.ids.row_lengths() > max_tokens)
            tokens = TokenOffsets(*(part[:, :max_tokens] for part in tokens))
        units = units_of_texts(tokens, preprocessor.unit)
        states = self.encoder.states_in_windows(tokens.ids, self.reader.limit, preprocessor.overlap)
        states = tf.boolean_mask(states, units.of_tokens != NO_UNIT)
        tags, log_probabilities = self._best_tags(states)

        names = self.model.tag_names
        if self.model.scheme == NO_SCHEME:
            begins = ends = is_inside = tf.ones_like(tags, tf.bool)
        else:
            begins, ends, is_inside = _bounds(TagCodes.of(names), tags, units.texts)
            names = [name.partition("-")[2] for name in names]
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
            "labels": tf.gather(names, tf.gather(tags, first)),
            "scores": tf.exp(scores),
        }
        return by_text(by_span, rows, tf.size(texts, tf.int64)), is_truncated


def _bounds(codes: TagCodes, tags: tf.Tensor, texts: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """[U] bool each: whether a span begins with the unit, ends with it, or has it at all."""
    prefixes, types = (tf.gather(part, tags) for part in codes[:2])
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

"""The signature `answer`: extractive question answering, from questions to spans of contexts."""

from collections.abc import Sequence

import tensorflow as tf

from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.spans import best_spans
from cocolm_tf.finetuning.models.windows import Windows, lay_out_windows
from cocolm_tf.serving.encoder import Encoder, concatenated
from cocolm_tf.serving.signature import MAX_BYTES, TOKEN_IDS, Reader, Signature, Tensors
from cocolm_tf.tokenization.offsets import TokenOffsets
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# The logit of padding.
_PADDING_LOGIT = -1e4
# The score of an answer from a context without tokens, relative to no answer's.
_NO_TOKENS_PENALTY = 1e6
# Windows that are searched for spans at once.
_WINDOWS_AT_ONCE = 32


class Answerer:
    """The functions of the signatures `answer` and `answer_ids`."""

    # Contexts longer than the model are read in overlapping windows, as in fine-tuning; what goes
    # beyond `max_tokens`, or beyond `max_bytes` of a question or context, is not read.

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: CocoLMTokenizer,
        answerer: CocoLMQuestionAnswerer,
        max_tokens: int,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._encoder = encoder
        self.reader = Reader(tokenizer, encoder.model.max_sequence_length, max_bytes)
        self._answerer = answerer
        self._max_tokens = max_tokens

    def answer(self, questions: tf.Tensor, contexts: tf.Tensor) -> Tensors:
        """Answers questions [B] string from contexts [B] string.

        Returns:
            - `answers` [B] string: the best answer that the context has, also where there may be
              none; "" of a context without words;
            - `starts`, `ends` [B] int32: its first character in the context, and the one after
              its last, as Python indexes a string;
            - `scores` [B] float32: the sum of its start and end logits;
            - `no_answer_scores` [B] float32: the same of there being no answer, from the window
              that is surest that there is one;
            - `answerable` [B] bool: whether the model, by the threshold that it was saved with,
              says that there is an answer;
            - `truncated` [B] bool: whether the question or the context was too long, and its end
              went unread.
        """
        preprocessor, graph = self._answerer.preprocessor, self.reader.graph
        (questions, contexts), is_cut = self.reader.texts(questions, contexts)
        question_ids = graph.tokenize(questions)
        tokens = graph.tokenize_with_offsets(contexts)
        is_truncated = is_cut | (tokens.ids.row_lengths() > self._max_tokens)
        is_truncated |= question_ids.row_lengths() > preprocessor.max_question_length
        windows = lay_out_windows(
            question_ids,
            TokenOffsets(*(part[:, : self._max_tokens] for part in tokens)),
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
            scores, tf.cast(windows.rows, tf.int64), num_questions
        )
        # One more column, since a batch without questions has none to take the maximum of.
        of_windows = tf.pad(
            by_question.to_tensor(-float("inf")), [[0, 0], [0, 1]], constant_values=-float("inf")
        )
        in_question = tf.argmax(of_windows, axis=1)
        best = by_question.row_starts() + in_question
        no_answer = tf.math.unsorted_segment_min(
            spans["no_answer_scores"], windows.rows, num_questions
        )
        scores = tf.gather(scores, best)
        is_found = scores > -float("inf")
        starts, ends = (
            tf.where(is_found, tf.gather(spans[name], best), 0) for name in ("starts", "ends")
        )
        scores = tf.where(is_found, scores, no_answer - _NO_TOKENS_PENALTY)
        threshold = self._answerer.null_threshold
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
        """Gives the logits of tokens, for callers who tokenize.

        Args:
            token_ids: [B, S] int32, `<s> question </s> </s> context </s>`, padded with `<pad>`.
                What is longer than the model is cut.

        Returns:
            - `start_logits`, `end_logits` [B, S] float32: of an answer that begins or ends with
              the token; of `<s>`, that there is none. -10000 for what is padding or cut off;
            - `truncated` [B] bool.
        """
        rows, is_truncated = self.reader.rows_of_ids(token_ids)
        start, end = self._logits(rows, tf.shape(token_ids)[1])
        return {"start_logits": start, "end_logits": end, "truncated": is_truncated}

    def _logits(self, rows: tf.RaggedTensor, width: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """Start and end logits, [B, width] each."""
        states = self._encoder.states(rows)
        logits = tf.cast(self._answerer.answer_logits(states.flat_values), tf.float32)
        dense = rows.with_flat_values(logits).to_tensor(
            _PADDING_LOGIT, shape=tf.stack([-1, width, 2])
        )
        start, end = tf.unstack(dense, axis=-1)
        return start, end

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
                max_answer_length=self._answerer.max_answer_length,
                n_best=1,
            )
            scores = spans.start_logits + spans.end_logits
            no_answer = tf.reduce_sum(spans.no_answer_logits, axis=1)
            return spans.starts[:, 0], spans.ends[:, 0], scores[:, 0], no_answer

        number, score = (tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.float32))
        parts = -(-tf.size(windows.rows) // _WINDOWS_AT_ONCE)
        found = concatenated(spans_of_part, parts, (number, number, score, score))
        return dict(zip(("starts", "ends", "scores", "no_answer_scores"), found, strict=True))


def answering_signatures(answerer: Answerer) -> dict[str, Signature]:
    """The signatures `answer` and `answer_ids`."""
    inputs = tuple(tf.TensorSpec([None], tf.string, name) for name in ("questions", "contexts"))
    return {
        "answer": Signature(answerer.answer, inputs, _question_request),
        "answer_ids": Signature(answerer.answer_ids, (TOKEN_IDS,), answerer.reader.ids_request),
    }


def _question_request(texts: Sequence[str]) -> Tensors:
    return {
        "questions": tf.constant(["What was it?"] * len(texts)),
        "contexts": tf.constant(texts, tf.string),
    }

"""From start and end logits to spans of contexts, in the graph, and to answers of questions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.models.question_windows import NOWHERE

# The score of the best candidate where there is none, as of an empty context: far below any sum of
# logits.
_NO_CANDIDATE = -1e6


class Spans(NamedTuple):
    """The best spans of each window, best first."""

    # Where a window has fewer spans than were asked for, the logits of the others are -inf.

    starts: tf.Tensor  # [W, K] int32, the first character of the context
    ends: tf.Tensor  # [W, K] int32, the character after the last
    start_logits: tf.Tensor  # [W, K] float32, of the span's first token
    # [W, K] float32, of its last token. The sum of both ranks the spans.
    end_logits: tf.Tensor
    no_answer_logits: tf.Tensor  # [W, 2] float32, those of `<s>`, which stands for no answer


def best_spans(
    start_logits: tf.Tensor,
    end_logits: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
    *,
    max_answer_length: int,
    n_best: int,
) -> Spans:
    """The `n_best` spans of each context with the highest sums of start and end logits, [W, S]."""
    # All spans of up to `max_answer_length` tokens compete, not only those of the best starts and
    # the best ends. Each has a character at least.
    start_logits, end_logits = (tf.cast(x, tf.float32) for x in (start_logits, end_logits))
    width = tf.shape(starts)[1]
    lengths = tf.range(max_answer_length)

    # [W, S, L]: the tokens that are 0 to L - 1 tokens after each token.
    last = tf.minimum(tf.range(width)[:, tf.newaxis] + lengths, width - 1)
    is_inside = tf.range(width)[:, tf.newaxis] + lengths < width
    span_ends = tf.gather(ends, last, axis=1)
    is_span = (
        is_inside & (starts != NOWHERE)[..., tf.newaxis] & (span_ends > starts[..., tf.newaxis])
    )
    scores = start_logits[..., tf.newaxis] + tf.gather(end_logits, last, axis=1)
    scores = tf.reshape(tf.where(is_span, scores, -float("inf")), [-1, width * max_answer_length])

    found = tf.minimum(n_best, width * max_answer_length)
    top_scores, top = tf.math.top_k(scores, found)
    first = top // max_answer_length
    final = tf.minimum(first + top % max_answer_length, width - 1)
    is_found = top_scores > -float("inf")

    def at(values: tf.Tensor, places: tf.Tensor, otherwise: float) -> tf.Tensor:
        values = tf.where(is_found, tf.gather(values, places, batch_dims=1), otherwise)
        padding = [[0, 0], [0, n_best - found]]
        return tf.ensure_shape(tf.pad(values, padding, constant_values=otherwise), [None, n_best])

    return Spans(
        starts=at(starts, first, NOWHERE),
        ends=at(ends, final, NOWHERE),
        start_logits=at(start_logits, first, -float("inf")),
        end_logits=at(end_logits, final, -float("inf")),
        no_answer_logits=tf.stack([start_logits[:, 0], end_logits[:, 0]], axis=1),
    )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A span of a context that may be the answer.

    Args:
        text: The characters [start, end) of the context.
        start: Its first character.
        end: The character after its last.
        start_logit: Of its first token.
        end_logit: Of its last token.

    Example:
    ```python
    Candidate("The cat", 0, 7, 4.1, 3.7).score  # 7.8
    ```
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """The sum of both logits, by which candidates are ranked."""
        return self.start_logit + self.end_logit


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `CocoLMQuestionAnswerer.predict` answers to a question.

    Args:
        answer: The best candidate's text; empty where there is no answer.
        candidates: The best spans with different texts, best first.
        no_answer: The candidate that stands for no answer, with an empty text.
        null_odds: By how much no answer scores above the best candidate: the higher, the likelier
            the question is unanswerable.

    Example:
    ```python
    prediction = answerer.predict((["Who sat?"], ["The cat sat."]))[0]
    prediction.answer, prediction.candidates[0].start
    ```
    """

    answer: str
    candidates: tuple[Candidate, ...]
    no_answer: Candidate
    null_odds: float

    def with_threshold(self, null_threshold: float | None) -> "Prediction":
        """Decides anew whether there is an answer.

        Args:
            null_threshold: There is no answer where `null_odds` is above it; None to answer always.

        Returns:
            The same prediction with that decision.

        Example:
        ```python
        prediction.with_threshold(None).answer
        ```
        """
        is_answered = self.candidates and (
            null_threshold is None or self.null_odds <= null_threshold
        )
        answer = self.candidates[0].text if is_answered else ""
        return dataclasses.replace(self, answer=answer)


def collect_answers(
    contexts: Sequence[str],
    rows: np.ndarray,
    spans: Spans,
    null_threshold: float | None,
    n_best: int,
) -> list[Prediction]:
    """The prediction of each question, from the best spans of all its windows."""
    # `rows` [W] has the question of each window. No answer scores as in the window where it scores
    # lowest: a window that holds the answer scores it low, the others high.
    order = np.argsort(rows, kind="stable")
    windows_of = np.split(order, np.searchsorted(rows[order], np.arange(1, len(contexts))))
    return [
        _prediction(context, Spans(*(part[windows] for part in spans)), n_best).with_threshold(
            null_threshold
        )
        for context, windows in zip(contexts, windows_of, strict=True)
    ]


def _prediction(context: str, spans: Spans, n_best: int) -> Prediction:
    scores = (spans.start_logits + spans.end_logits).ravel()
    starts, ends, start_logits, end_logits = (part.ravel() for part in spans[:4])
    candidates: dict[str, Candidate] = {}
    # Windows overlap: the same span comes from several of them.
    for index in np.argsort(-scores, kind="stable"):
        if not np.isfinite(scores[index]) or len(candidates) == n_best:
            break
        start, end = int(starts[index]), int(ends[index])
        text = context[start:end]
        if text not in candidates:
            logits = float(start_logits[index]), float(end_logits[index])
            candidates[text] = Candidate(text, start, end, *logits)
    surest = spans.no_answer_logits[np.argmin(spans.no_answer_logits.sum(axis=1))]
    no_answer = Candidate("", 0, 0, *map(float, surest))
    ranked = tuple(candidates.values())
    best = ranked[0].score if ranked else _NO_CANDIDATE
    return Prediction("", ranked, no_answer, no_answer.score - best)


def probabilities(candidates: Sequence[Candidate]) -> list[float]:
    """Softmax over candidates' scores, as SQuAD's format of n-best predictions has it."""
    highest = max(candidate.score for candidate in candidates)
    weights = [math.exp(candidate.score - highest) for candidate in candidates]
    return [weight / sum(weights) for weight in weights]

"""The answers of questions, from the best spans of their windows."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cocolm_tf.finetuning.models.spans import Spans

# The score of the best candidate where there is none, as of an empty context: far below any sum of
# logits.
_NO_CANDIDATE = -1e6


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

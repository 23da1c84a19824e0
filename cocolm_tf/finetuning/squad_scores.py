"""What predictions score on SQuAD, by the official evaluation, and where no answer is best."""

from collections.abc import Mapping, Sequence

from official.nlp.tools import squad_evaluate_v2_0

from cocolm_tf.data.squad import Question, to_official
from cocolm_tf.finetuning.models.answers import Prediction


def score_answers(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Scores answers with the official evaluation of SQuAD 2.0, which does for 1.1 as well.

    Args:
        questions: With their references.
        answers: The answer to each question, by its id; empty for no answer.

    Returns:
        `exact` and `f1`, in percent, the mean over all questions; where there are such questions,
        `HasAns_exact` and `HasAns_f1` over those with an answer, `NoAns_exact` and `NoAns_f1` over
        those without; and `total`, `HasAns_total` and `NoAns_total`, how many there are.

    Example:
    ```python
    score_answers(questions, {question.id: "" for question in questions})["f1"]
    ```
    """
    scores = squad_evaluate_v2_0.evaluate(to_official(questions), answers)
    # The rest is about thresholds, of which the official way of asking knows probabilities only.
    parts = [f"{part}{name}" for part in ("", "HasAns_", "NoAns_") for name in _NAMES]
    return {name: scores[name] for name in parts if name in scores}


def choose_null_threshold(
    questions: Sequence[Question], predictions: Sequence[Prediction]
) -> float | None:
    """Finds the threshold on null odds with the best F1.

    Args:
        questions: With their references.
        predictions: The model's, in the same order.

    Returns:
        The threshold for `Prediction.with_threshold`; None, to answer always, if every question
        has an answer.

    Example:
    ```python
    answerer.null_threshold = choose_null_threshold(dev, answerer.predict(texts))
    ```
    """
    if all(question.is_answerable for question in questions):
        return None
    # The evaluation takes probabilities, and 0 for the threshold that no question stays below.
    levels = sorted({prediction.null_odds for prediction in predictions})
    ranks = {odds: number / len(levels) for number, odds in enumerate(levels, start=1)}
    pairs = list(zip(questions, predictions, strict=True))
    scores = squad_evaluate_v2_0.evaluate(
        to_official(questions),
        {question.id: p.with_threshold(None).answer for question, p in pairs},
        {question.id: ranks[prediction.null_odds] for question, prediction in pairs},
    )
    number = round(scores["final_f1_thresh"] * len(levels))
    return levels[number - 1] if number else levels[0] - 1.0


_NAMES = ("exact", "f1", "total")

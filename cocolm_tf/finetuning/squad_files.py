"""Predictions in the official formats of SQuAD."""

import os
from collections.abc import Sequence

from cocolm_tf.data.squad import Question
from cocolm_tf.finetuning.jobs import write_json
from cocolm_tf.finetuning.models.answers import Prediction, probabilities

PREDICTIONS_FILENAME = "predictions.json"
NULL_ODDS_FILENAME = "null_odds.json"
N_BEST_FILENAME = "nbest_predictions.json"


def write_squad_files(
    folder: str, questions: Sequence[Question], predictions: Sequence[Prediction]
) -> None:
    """Writes what the official evaluation and people read.

    Args:
        folder: Gets `predictions.json`, the answer to each question by its id, empty for none;
            `null_odds.json`, how likely each is unanswerable; and `nbest_predictions.json`, the
            candidates for each with their shares of all probability, no answer among them.
        questions: What was asked.
        predictions: What was answered, in the same order.

    Example:
    ```python
    write_squad_files("runs/squad", dev, answerer.predict(texts))
    ```
    """
    ids = [question.id for question in questions]
    files = {
        PREDICTIONS_FILENAME: [prediction.answer for prediction in predictions],
        NULL_ODDS_FILENAME: [prediction.null_odds for prediction in predictions],
        N_BEST_FILENAME: [_n_best(prediction) for prediction in predictions],
    }
    for name, values in files.items():
        write_json(dict(zip(ids, values, strict=True)), os.path.join(folder, name))


def _n_best(prediction: Prediction) -> list[dict[str, str | float]]:
    ranked = sorted(
        [*prediction.candidates, prediction.no_answer], key=lambda candidate: -candidate.score
    )
    return [
        {
            "text": candidate.text,
            "probability": probability,
            "start_logit": candidate.start_logit,
            "end_logit": candidate.end_logit,
        }
        for candidate, probability in zip(ranked, probabilities(ranked), strict=True)
    ]

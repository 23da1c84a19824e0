import json

import numpy as np
import pytest

from cocolm_tf.corrections.evaluation import WordPredictions, as_json, evaluate, report
from cocolm_tf.corrections.texts import Edit, MarkedText

SPELLING, DOUBLING, MISSING = "spelling", "doubling", "M"
TEXTS = [
    MarkedText(
        "Teh cat cat sat on it", ((Edit(0, 3, "The", SPELLING), Edit(7, 11, "", DOUBLING)),)
    ),
    MarkedText("A dog sat here", ((),)),
    MarkedText("It went there", ((Edit(2, 2, " then", MISSING), Edit(8, 13, "home", SPELLING)),)),
]


def words_of(
    text: str, probabilities: list[float], corrections: list[list[str]]
) -> WordPredictions:
    ends = np.cumsum([len(word) + 1 for word in text.split()]) - 1
    starts = ends - [len(word) for word in text.split()]
    return WordPredictions(starts, ends, np.array(probabilities), corrections)


PREDICTIONS = [
    words_of(TEXTS[0].text, [0.9, 0.1, 0.8, 0, 0, 0], [["the"], ["dog"], ["", "sat"], [], [], []]),
    words_of(TEXTS[1].text, [0.0, 0.7, 0.2, 0.0], [["The"], ["cat"], [], ["there"]]),
    words_of(TEXTS[2].text, [0.1, 0.2, 0.3], [["He"], ["goes"], ["away", "home"]]),
]


def test_scores_of_a_model_at_a_threshold():
    found = evaluate(TEXTS, PREDICTIONS, threshold=0.5)
    assert (found["texts"], found["words"], found["wrong_words"]) == (3, 13, 3)
    assert found["detection"]["precision"] == pytest.approx(2 / 3)
    assert found["detection"]["recall"] == pytest.approx(2 / 3)
    # Capitals are those of the text: "the" is "The"; and "" takes a word out.
    assert found["correction"] == {
        "accuracy_at_1": pytest.approx(2 / 3),
        "accuracy_at_5": 1.0,
    }
    assert found["edits"]["precision"] == pytest.approx(2 / 3)
    assert found["edits"]["recall"] == pytest.approx(2 / 4)
    assert found["by_kind"] == {
        DOUBLING: {"count": 1, "flagged": 1.0, "accuracy_at_1": 1.0, "corrected": 1.0},
        MISSING: {"count": 1, "flagged": None, "accuracy_at_1": None, "corrected": 0.0},
        SPELLING: {"count": 2, "flagged": 0.5, "accuracy_at_1": 0.5, "corrected": 0.5},
    }


def test_a_perfect_model_has_perfect_scores():
    texts, predictions = TEXTS[:1] * 4, PREDICTIONS[:1] * 4
    found = evaluate(texts, predictions)
    assert found["texts"] == 2
    assert found["threshold"] == 0.8
    for part in ("detection", "correction", "edits"):
        assert set(found[part].values()) == {1.0}
    assert found["gleu_of_uncorrected"] < found["gleu"] == 1.0


def test_without_a_mistake_there_is_nothing_to_score():
    with pytest.raises(ValueError, match="no wrong word to score"):
        evaluate(TEXTS[1:2], PREDICTIONS[1:2], threshold=0.5)
    with pytest.raises(ValueError, match="to choose a threshold by"):
        evaluate(TEXTS[1:2] * 2, PREDICTIONS[1:2] * 2)
    with pytest.raises(ValueError, match="give --threshold"):
        evaluate(TEXTS[:1], PREDICTIONS[:1])


def test_for_people_and_for_programs():
    found = evaluate(TEXTS, PREDICTIONS, threshold=0.5)
    assert json.loads(as_json(found))["detection"]["precision"] == 0.66667
    lines = report(found).splitlines()
    assert lines[0].startswith("3 texts, 13 words, 3 of them wrong")
    assert [MISSING, "1", "-", "-", "0.000"] in [line.split() for line in lines]

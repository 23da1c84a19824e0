import math

import numpy as np
import pytest

from cocolm_tf.corrections.evaluation import (
    best_threshold,
    detection,
    edit_counts,
    gleu,
    precision_at_recall,
    precision_recall_f,
)
from cocolm_tf.corrections.texts import Edit

SENTENCE = "one two three four five six seven"


def test_f_weighs_precision_and_recall():
    found = precision_recall_f(1, 1, 3)
    assert found == pytest.approx({"precision": 0.5, "recall": 0.25, "f0.5": 0.625 / 1.5})


def test_nothing_found_and_nothing_there():
    assert precision_recall_f(0, 0, 0) == {"precision": 1.0, "recall": 1.0, "f0.5": 1.0}
    assert precision_recall_f(0, 0, 5) == {"precision": 1.0, "recall": 0.0, "f0.5": 0.0}
    assert precision_recall_f(0, 2, 5)["f0.5"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed: int):
    draw = np.random.default_rng(seed)
    is_wrong = draw.random(60) < 0.3
    probabilities = np.round(0.4 * is_wrong + 0.6 * draw.random(60), 2)
    scores = {x: detection(probabilities, is_wrong, x)["f0.5"] for x in probabilities}
    found = best_threshold(probabilities, is_wrong)
    assert scores[found] == pytest.approx(max(scores.values()))


def test_precision_at_a_recall():
    probabilities, is_wrong = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 1], bool)
    assert precision_at_recall(probabilities, is_wrong, 0.3) == 1.0
    assert precision_at_recall(probabilities, is_wrong, 1.0) == 0.75
    assert detection(probabilities, is_wrong, 0.7)["recall"] == pytest.approx(2 / 3)


def test_edits_count_where_place_and_correction_are_the_same():
    text = "He go too school"
    wanted = [Edit(3, 5, "goes", "R:VERB:SVA"), Edit(6, 9, "to", "R:SPELL")]
    made = [Edit(3, 5, "goes"), Edit(6, 9, "two")]
    totals, by_kind = edit_counts([(text, made, [wanted])])
    assert totals == {"true_positives": 1, "false_positives": 1, "false_negatives": 1}
    assert by_kind == {"R:VERB:SVA": (1, 1), "R:SPELL": (0, 1)}


def test_of_several_annotators_the_one_who_agrees_counts():
    text, made = "He go", [Edit(3, 5, "went")]
    references = [[Edit(3, 5, "goes", "A")], [Edit(3, 5, "went", "B")], []]
    totals, by_kind = edit_counts([(text, made, references)])
    assert totals == {"true_positives": 1, "false_positives": 0, "false_negatives": 0}
    assert by_kind == {"B": (1, 1)}
    totals, _ = edit_counts([(text, [], references)])
    assert not any(totals.values())


def test_gleu_of_the_reference_is_one():
    assert gleu([SENTENCE], [SENTENCE + " eight"], [[SENTENCE + " eight"]]) == 1.0


def test_gleu_takes_off_what_should_have_been_changed():
    # The hypothesis keeps the last word, which the reference replaces: of each order, one n-gram
    # is not the reference's, and is the source's: it is missed once and taken off once.
    wanted = "one two three four five six SEVEN"
    expected = math.prod((7 - n + 1 - 2) / (7 - n + 1) for n in range(1, 5)) ** 0.25
    assert gleu([SENTENCE], [SENTENCE], [[wanted]]) == pytest.approx(expected)
    # A wrong word that the source has not is missed only.
    other = "one two three four five six eight"
    expected = math.prod((7 - n) / (7 - n + 1) for n in range(1, 5)) ** 0.25
    assert gleu([SENTENCE], [other], [[wanted]]) == pytest.approx(expected)


def test_gleu_has_a_brevity_penalty_and_sums_over_texts():
    short = "one two three four five six"
    assert gleu([SENTENCE], [short], [[SENTENCE]]) == pytest.approx(math.exp(1 - 7 / 6))
    both = gleu([SENTENCE] * 2, [short, SENTENCE], [[SENTENCE]] * 2)
    assert both == pytest.approx(math.exp(1 - 14 / 13))


def test_gleu_of_several_references_is_the_mean_over_draws():
    other = "eight nine ten eleven twelve thirteen"
    found = gleu([SENTENCE], [SENTENCE], [[SENTENCE, other]], draws=400)
    assert found == pytest.approx(0.5, abs=0.1)
    assert found == gleu([SENTENCE], [SENTENCE], [[SENTENCE, other]], draws=400)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.finetuning.models.answers import (
    Candidate,
    Prediction,
    Spans,
    best_spans,
    collect_answers,
    probabilities,
)

LOGITS = st.integers(-3, 3).map(float)
NOTHING = -math.inf


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """Logits and places of one window: `<s>`, some question, a context, what comes after."""
    before, length, after = (
        draw(st.integers(1, 3)),
        draw(st.integers(0, 8)),
        draw(st.integers(0, 2)),
    )
    places, position = [], 0
    for _ in range(length):
        size = draw(st.integers(0, 2))
        places.append((position, position + size))
        position += size + draw(st.integers(0, 1))
    places = [(-1, -1)] * before + places + [(-1, -1)] * after
    logits = [draw(st.lists(LOGITS, min_size=len(places), max_size=len(places))) for _ in "se"]
    return *map(np.float32, logits), *np.array(places, np.int32).T


def brute_force(start, end, starts, ends, max_answer_length: int) -> list[tuple[float, int, int]]:
    return [
        (float(start[i] + end[j]), int(starts[i]), int(ends[j]))
        for i in range(len(start))
        for j in range(i, min(len(start), i + max_answer_length))
        if starts[i] >= 0 and ends[j] >= 0 and starts[i] < ends[j]
    ]


@settings(max_examples=50)
@given(windows(), st.integers(1, 12), st.integers(1, 30))
def test_best_spans_are_those_of_brute_force(window, max_answer_length, n_best):
    found = best_spans(
        *(part[np.newaxis] for part in window), max_answer_length=max_answer_length, n_best=n_best
    )
    expected = brute_force(*window, max_answer_length)
    scores = (found.start_logits + found.end_logits).numpy()[0]
    assert scores.shape == (n_best,)
    best = sorted((score for score, _, _ in expected), reverse=True)[:n_best]
    assert scores.tolist() == best + [NOTHING] * (n_best - len(best))
    spans = [
        (score, int(start), int(end))
        for score, start, end in zip(scores, found.starts[0], found.ends[0], strict=True)
        if score > NOTHING
    ]
    for span in set(spans):
        assert spans.count(span) <= expected.count(span)
    assert found.no_answer_logits.numpy().tolist() == [[window[0][0], window[1][0]]]


def test_windows_do_not_meet():
    logits = np.float32([[9, 0, 0], [0, 1, 5]])
    places = np.int32([[-1, 0, 2], [-1, 4, 6]])
    found = best_spans(
        logits, logits, places, np.where(places < 0, -1, places + 1), max_answer_length=2, n_best=1
    )
    assert found.starts.numpy().tolist() == [[0], [6]]
    assert found.no_answer_logits.numpy().tolist() == [[9, 9], [0, 0]]


def spans(*rows: list[tuple[int, int, float, float]], no_answer: list[float]) -> Spans:
    columns = np.array(rows, float).transpose(2, 0, 1)
    halves = np.repeat(np.array(no_answer)[:, np.newaxis] / 2, 2, axis=1)
    return Spans(*columns[:2].astype(int), *columns[2:], halves)


EMPTY = (-1, -1, NOTHING, NOTHING)


def test_a_question_has_the_best_of_all_its_windows():
    contexts = ["the cat sat", "no", "it"]
    found = spans(
        [(0, 3, 1, 1), (4, 7, 1, 0.5)],
        [(0, 2, 3, 3), EMPTY],
        [(4, 7, 2, 2), (8, 11, 0, 0)],
        [EMPTY, EMPTY],
        no_answer=[5.0, 1.0, 3.0, 0.0],
    )
    cat, no, it = collect_answers(contexts, np.array([0, 1, 0, 2]), found, 0.0, n_best=2)
    assert [(c.text, c.start, c.end, c.score) for c in cat.candidates] == [
        ("cat", 4, 7, 4.0),
        ("the", 0, 3, 2.0),
    ]
    assert cat.no_answer.score == 3.0  # the lowest
    assert cat.null_odds == -1.0
    assert (cat.answer, no.answer, it.answer) == ("cat", "no", "")
    assert cat.with_threshold(-1.5).answer == ""
    assert cat.with_threshold(-1.0).answer == "cat"
    assert no.null_odds == -5.0
    assert it.candidates == ()
    assert it.with_threshold(None).answer == ""
    assert it.null_odds > 1000


def test_what_is_not_finite_shows():
    found = spans([(0, 3, math.nan, 1)], no_answer=[math.nan])
    (prediction,) = collect_answers(["cat"], np.array([0]), found, 0.0, n_best=2)
    assert math.isnan(prediction.null_odds)


def test_one_text_is_one_candidate():
    found = spans([(0, 3, 1, 1), (4, 7, 2, 2), (0, 7, 0, 0)], no_answer=[0.0])
    (prediction,) = collect_answers(["cat cat"], np.array([0]), found, None, n_best=3)
    assert [(c.text, c.start) for c in prediction.candidates] == [("cat", 4), ("cat cat", 0)]


def test_probabilities_are_a_softmax():
    candidates = [Candidate("a", 0, 1, 400.0, 400.0), Candidate("", 0, 0, 400.0, 399.0)]
    expected = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]
    assert probabilities(candidates) == pytest.approx(expected)


def test_a_threshold_decides_anew():
    candidate = Candidate("a", 0, 1, 1.0, 1.0)
    prediction = Prediction("", (candidate,), Candidate("", 0, 0, 0.5, 0.5), -1.0)
    assert prediction.with_threshold(None).answer == "a"
    assert prediction.with_threshold(0.0).answer == "a"
    assert prediction.with_threshold(-2.0).answer == ""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from cocolm_tf.finetuning.retrieval import nearest, retrieval_scores, search_scores


def test_known_rankings():
    relevance = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}
    scores = retrieval_scores({"q1": ["b", "x", "a"], "q2": ["x", "y"]}, relevance, ranks=(1, 3))
    best = 2 + 1 / np.log2(3)
    assert scores == pytest.approx(
        {
            "ndcg@10": (1 + 2 / np.log2(4)) / best / 2,
            "recall@1": 0.25,
            "recall@3": 0.5,
            "mrr@10": 0.5,
        }
    )


def test_what_stands_behind_the_tenth_place_counts_for_recall_alone():
    ranking = [*map(str, range(20))]
    scores = retrieval_scores({"q": ranking}, {"q": {"10": 3}})
    assert scores == {
        "ndcg@10": 0,
        "recall@1": 0,
        "recall@10": 0,
        "recall@100": 1,
        "mrr@10": 0,
    }


@given(st.integers(0, 10_000), st.integers(2, 30))
def test_ndcg_is_scikit_learns(seed, documents):
    rng = np.random.default_rng(seed)
    scores, grades = rng.normal(size=documents), rng.integers(0, 3, size=documents)
    grades[rng.integers(documents)] = 1
    ranking = [*map(str, np.argsort(-scores))]
    relevance = {str(number): grade for number, grade in enumerate(grades.tolist()) if grade}
    found = retrieval_scores({"q": ranking}, {"q": relevance})
    assert found["ndcg@10"] == pytest.approx(ndcg_score([grades], [scores], k=10))


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_nearest_is_a_stable_sort_of_all(seed, count):
    rng = np.random.default_rng(seed)
    # Few values, so that many inner products are equal.
    queries, documents = (rng.integers(-1, 2, size=[rows, 3]).astype(float) for rows in (4, 9))
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(nearest(queries, documents, count), expected)


def test_many_queries_are_searched_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=[7, 4]), rng.normal(size=[5, 4])
    expected = nearest(queries, documents, 3)
    monkeypatch.setattr("cocolm_tf.finetuning.retrieval._SCORES_AT_ONCE", 12)
    np.testing.assert_array_equal(nearest(queries, documents, 3), expected)


def test_a_query_does_not_find_itself():
    vectors = np.eye(3)
    scores = search_scores(["a"], vectors[:1], ["a", "b", "c"], vectors, {"a": {"b": 1}})
    assert scores["mrr@10"] == 1.0
    scores = search_scores(["q"], vectors[:1], ["a", "b", "c"], vectors, {"q": {"b": 1}})
    assert scores["mrr@10"] == 0.5

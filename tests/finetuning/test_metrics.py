import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.data.tags import chunks
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.metrics import (
    METRICS,
    best_thresholds,
    comparable,
    evaluate,
    guesses,
    metrics_of,
    nearest,
    predicted,
    retrieval_scores,
    search_scores,
    span_scores,
    span_scores_by_label,
)


def by_counting(labels, predictions) -> dict[str, float]:
    """The definitions, for two classes."""
    true = [[((labels == a) & (predictions == b)).sum() for b in (0, 1)] for a in (0, 1)]
    (tn, fp), (fn, tp) = true
    root = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return {
        "accuracy": (tp + tn) / len(labels),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "matthews": (tp * tn - fp * fn) / root,
    }


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_scored_as_defined_and_as_scikit_learn_does(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 2, (2, 60))
    found = evaluate(["accuracy", "f1", "matthews", "macro_f1"], labels, predictions)
    for name, value in by_counting(labels, predictions).items():
        assert found[name] == pytest.approx(value, abs=1e-12)
    assert found["accuracy"] == sklearn_metrics.accuracy_score(labels, predictions)
    assert found["f1"] == sklearn_metrics.f1_score(labels, predictions)
    assert found["matthews"] == sklearn_metrics.matthews_corrcoef(labels, predictions)
    assert found["macro_f1"] == sklearn_metrics.f1_score(labels, predictions, average="macro")


def test_numbers_are_scored_as_defined_and_as_scipy_does():
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 80).round(1).astype(np.float32)
    predictions = (labels + rng.normal(0, 2, 80)).astype(np.float32)
    found = evaluate(["pearson", "spearman", "mae", "rmse"], labels, predictions)
    assert found["mae"] == pytest.approx(np.abs(labels - predictions).mean(), rel=1e-6)
    assert found["rmse"] == pytest.approx(((labels - predictions) ** 2).mean() ** 0.5, rel=1e-6)
    assert found["pearson"] == pytest.approx(np.corrcoef(labels, predictions)[0, 1], abs=1e-6)
    ranks = [stats.rankdata(values) for values in (labels, predictions)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    assert found["pearson"] == stats.pearsonr(labels, predictions).statistic
    assert found["spearman"] == stats.spearmanr(labels, predictions).statistic


@pytest.mark.parametrize("name", METRICS)
def test_predictions_that_never_change_are_worth_a_number(name):
    labels = np.array([0, 1, 1, 0])
    value = evaluate([name], labels, np.zeros(4, labels.dtype))[name]
    assert np.isfinite(value)
    others = dict.fromkeys(("accuracy", "exact_match", "micro_f1", "mae"), 0.5)
    others |= {"macro_f1": 1 / 3, "rmse": 0.5**0.5}
    assert value == pytest.approx(others.get(name, 0))


def task(name: str, classes: int, metrics: tuple[str, ...] = ()) -> TaskData:
    names = [str(number) for number in range(classes)] if classes > 1 else None
    return TaskData(name, names, Examples([]), {}, {}, metrics=metrics)


def test_the_tasks_metrics_are_those_of_glue():
    found = {
        name: metrics_of(task(known.title, len(known.label_names or [0]), known.metrics))
        for name, known in GLUE_TASKS.items()
    }
    assert found["cola"][0] == "matthews"
    assert found["stsb"][:2] == ("spearman", "pearson")
    assert found["mrpc"] == found["qqp"] == ("accuracy", "f1")
    assert all(found[name][0] == "accuracy" for name in ("sst2", "mnli", "qnli", "rte", "wnli"))


@pytest.mark.parametrize("name", ["mine", *(known.title for known in GLUE_TASKS.values())])
def test_metrics_suit_the_classes_whatever_a_task_is_called(name):
    assert metrics_of(task(name, 1)) == ("spearman", "pearson", "mae", "rmse")
    assert metrics_of(task(name, 2)) == ("accuracy", "f1")
    assert metrics_of(task(name, 3)) == ("accuracy", "macro_f1")


def test_guesses_are_the_commonest_class_or_the_mean():
    np.testing.assert_array_equal(guesses(np.int32([2, 0, 2, 1]), 3), [2, 2, 2])
    found = guesses(np.float32([1, 2, 6]), 2)
    np.testing.assert_array_equal(found, [3, 3])
    assert found.dtype == np.float32


def test_outputs_to_predictions():
    np.testing.assert_array_equal(predicted(np.array([[0.1, 0.7], [2.0, -1.0]])), [1, 0])
    numbers = np.array([[-0.5], [2.5], [5.5]])
    np.testing.assert_array_equal(predicted(numbers), np.float32([-0.5, 2.5, 5.5]))


def test_another_metric_may_choose():
    assert metrics_of(task("mine", 2), "matthews") == ("matthews", "accuracy", "f1")
    assert metrics_of(task("mine", 3), "macro_f1") == ("macro_f1", "accuracy")
    assert metrics_of(task("mine", 1), "rmse")[0] == "rmse"
    assert comparable("rmse", 0.5) > comparable("rmse", 0.7) and comparable("f1", 0.5) < comparable(
        "f1", 0.7
    )


@pytest.mark.parametrize(("classes", "metric"), [(2, "bleu"), (3, "f1"), (2, "mae"), (1, "f1")])
def test_a_metric_of_another_kind_of_task_is_refused(classes, metric):
    with pytest.raises(UserError, match=f"--metric={metric}: that of .* is one of "):
        metrics_of(task("mine", classes), metric)


SEVERAL = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])


def test_several_labels_are_scored_as_scikit_learn_has_it():
    data = TaskData("t", ["a", "b", "c"], None, {}, {}, label_separator=",")
    names = metrics_of(data)
    assert names == ("micro_f1", "macro_f1", "exact_match")
    found = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    scores = evaluate(names, SEVERAL, found)
    # Right 3 of 5, said 3; a and b by themselves 1 and 2/3, c 0; two rows are right.
    assert scores["micro_f1"] == pytest.approx(2 * 3 / (5 + 3))
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["exact_match"] == 0.5
    with pytest.raises(UserError, match="that of several labels a text is one of micro_f1"):
        metrics_of(data, "accuracy")
    assert guesses(np.array([[1, 0], [1, 0], [0, 1]]), 2).tolist() == [[1, 0], [1, 0]]


def test_thresholds_are_best_for_f1():
    rng = np.random.default_rng(0)
    for _ in range(10):
        labels = rng.integers(0, 2, [12, 3])
        labels[:, 2] = 0
        shares = rng.choice(np.linspace(0.1, 0.9, 9), [12, 3]).astype(np.float32)
        thresholds = best_thresholds(labels, shares)
        assert thresholds[2] == 0.5
        for truth, share, threshold in zip(labels.T[:2], shares.T, thresholds, strict=False):
            cuts = np.linspace(0.05, 0.95, 10)  # Below, between and above all that there are.
            found = max(METRICS["f1"](truth, share >= cut) for cut in cuts)
            assert METRICS["f1"](truth, share >= threshold) == pytest.approx(found)


# --- Labeled spans ---


LABELS = [chunks(["B-X", "I-X", "O", "B-Y"]), chunks(["O", "B-X", "O"])]


def test_scores_by_hand():
    # Right: one X of two, no Y; found too: one Y with a wrong bound, one Z.
    found = [chunks(["B-X", "I-X", "B-Y", "I-Y"]), chunks(["O", "O", "B-Z"])]
    scores = span_scores(LABELS, found)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(1 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    table = span_scores_by_label(LABELS, found)
    assert table["X"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    assert table["Z"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_the_same_place_in_another_text_is_another_span():
    assert span_scores(LABELS, LABELS[::-1])["f1"] == 0.0
    assert span_scores(LABELS, LABELS) == dict.fromkeys(
        ("f1", "precision", "recall", "macro_f1"), 1.0
    )


def test_nothing_to_find_is_zero():
    assert span_scores([[], []], [[], []])["f1"] == 0.0
    assert span_scores([[]], [chunks(["B-X"])])["macro_f1"] == 0.0
    with pytest.raises(ValueError, match="2 texts, but predictions for 1"):
        span_scores([[], []], [[]])


def test_scores_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    true = [["B-X", "I-X", "O"], ["S-Y", "E-Y", "I-X", "O"]]
    found = [["I-X", "I-X", "B-X"], ["S-Y", "B-Y", "I-X", "O"]]
    scores = span_scores(*([chunks(tags) for tags in rows] for rows in (true, found)))
    assert scores["f1"] == pytest.approx(seqeval.f1_score(true, found))
    assert scores["macro_f1"] == pytest.approx(seqeval.f1_score(true, found, average="macro"))


# --- Searches by vectors ---


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
    assert found["ndcg@10"] == pytest.approx(sklearn_metrics.ndcg_score([grades], [scores], k=10))


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
    monkeypatch.setattr("cocolm_tf.finetuning.metrics._SCORES_AT_ONCE", 12)
    np.testing.assert_array_equal(nearest(queries, documents, 3), expected)


def test_a_query_does_not_find_itself():
    vectors = np.eye(3)
    scores = search_scores(["a"], vectors[:1], ["a", "b", "c"], vectors, {"a": {"b": 1}})
    assert scores["mrr@10"] == 1.0
    scores = search_scores(["q"], vectors[:1], ["a", "b", "c"], vectors, {"q": {"b": 1}})
    assert scores["mrr@10"] == 0.5

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.metrics import (
    METRICS,
    best_thresholds,
    evaluate,
    guesses,
    metrics_of,
    predicted,
    worth,
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
    assert worth("rmse", 0.5) > worth("rmse", 0.7) and worth("f1", 0.5) < worth("f1", 0.7)


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
    for _ in range(20):
        labels = rng.integers(0, 2, [12, 3])
        labels[:, 2] = 0
        shares = rng.choice(np.linspace(0.1, 0.9, 9), [12, 3]).astype(np.float32)
        thresholds = best_thresholds(labels, shares)
        assert thresholds[2] == 0.5
        for truth, share, threshold in zip(labels.T[:2], shares.T, thresholds, strict=False):
            cuts = np.linspace(0.0, 1.0, 101) + 1e-3
            found = max(METRICS["f1"](truth, share >= cut) for cut in cuts)
            assert METRICS["f1"](truth, share >= threshold) == pytest.approx(found)

import csv

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.tables import read_table
from cocolm_tf.finetuning.metrics import evaluate, predicted
from cocolm_tf.finetuning.predictions import (
    assess,
    draw_assessment,
    probabilities,
    read_outputs,
    save_predictions,
    write_outputs,
    write_predictions,
)


def task(label_names, label_values=None, bounds=None) -> TaskData:
    return TaskData("T", label_names, Examples([]), {}, {}, label_values, bounds)


LABELS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1),
    min_size=2,
    unique=True,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LABELS)
@example(['27" monitor', "C:\\drive", "\\", '"', " a "])
def test_what_is_written_is_read_back(tmp_path, labels):
    write_predictions(str(tmp_path / "T.tsv"), np.eye(len(labels)), task(labels))
    table = read_table(str(tmp_path / "T.tsv"), ["index", "prediction"])
    assert table.rows == [(str(index), label) for index, label in enumerate(labels)]


LOGITS = np.array([[0.5, 0.1], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("data", "outputs", "expected"),
    [
        (task(["bad", "good"], ["0", "1"]), LOGITS, "0\t0\n1\t1\n"),
        (task(["entailment", "not_entailment"]), LOGITS, "0\tentailment\n1\tnot_entailment\n"),
        (task(None, bounds=(0, 5)), np.array([[2.34567], [5.2]]), "0\t2.346\n1\t5.000\n"),
    ],
)
def test_the_leaderboards_format(tmp_path, data, outputs, expected):
    path = tmp_path / "new" / "T.tsv"
    write_predictions(str(path), outputs, data)
    assert path.read_text() == "index\tprediction\n" + expected
    assert [file.name for file in path.parent.iterdir()] == ["T.tsv"]


def test_numbers_are_clipped_for_the_leaderboard_alone():
    """Or the larger of two that are both too large would be no larger."""
    labels, outputs = np.float32([4.8, 5.0]), np.float32([[5.2], [5.6]])
    assert evaluate(["spearman"], labels, predicted(outputs))["spearman"] == pytest.approx(1)


NAMES = ("bad", "so, so", "good")


@pytest.fixture
def examples() -> Examples:
    texts = [f"text {number}\nof two lines" for number in range(60)]
    labels = np.random.default_rng(0).integers(0, 3, 60).astype(np.int32)
    return Examples(texts, None, labels, "file", rows=np.arange(60) * 2 + 5)


@pytest.fixture
def shares(examples) -> np.ndarray:
    logits = np.random.default_rng(1).normal(size=[60, 3]) + 1.5 * np.eye(3)[examples.labels]
    return probabilities(logits)


def test_outputs_have_rows_labels_and_probabilities(tmp_path, examples, shares):
    path = str(tmp_path / "outputs" / "dev.csv")
    write_outputs(path, shares, examples, NAMES)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == examples.rows.tolist()
    assert [row["label"] for row in rows] == [NAMES[label] for label in examples.labels]
    assert rows[0]["prediction"] == NAMES[shares[0].argmax()]
    np.testing.assert_allclose(read_outputs(path, NAMES), shares, rtol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    numbers = np.float32([[0.123456789], [-7]])
    write_outputs(path, numbers, examples.select([3, 1]), None)
    np.testing.assert_allclose(read_outputs(path, None), numbers, rtol=1e-5)


def test_classes_are_assessed_as_scikit_learn_does(examples, shares):
    found = assess(shares, examples, NAMES)
    predictions = shares.argmax(axis=1)
    report = metrics.classification_report(
        examples.labels, predictions, target_names=NAMES, output_dict=True
    )
    for name, scores in found["classes"].items():
        for key in ("precision", "recall"):
            assert scores[key] == report[name][key]
        assert (scores["f1"], scores["rows"]) == (report[name]["f1-score"], report[name]["support"])
    confusion = np.array(found["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(examples.labels))
    assert np.trace(confusion) == (predictions == examples.labels).sum()


def test_calibration_is_by_its_definition(examples, shares):
    found = assess(shares, examples, NAMES)
    confidence, is_right = shares.max(axis=1), shares.argmax(axis=1) == examples.labels
    error = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - is_right[inside].mean())
    assert found["calibration_error"] == pytest.approx(error)
    assert sum(one["rows"] for one in found["calibration"]) == 60


def test_the_errors_that_the_model_was_surest_of_come_first(examples, shares):
    errors = assess(shares, examples, NAMES)["errors"]
    wrong = shares.argmax(axis=1) != examples.labels
    assert errors[0]["probability"] == shares.max(axis=1)[wrong].max()
    places = {int(row): number for number, row in enumerate(examples.rows)}
    for error in errors:
        number = places[error["row"]]
        assert wrong[number] and error["label"] == NAMES[examples.labels[number]]
        assert error["text"] == f"text {number} of two lines"
    assert len(errors) == min(10, wrong.sum())


def test_all_is_left_beside_a_preset(tmp_path, examples, shares):
    data = TaskData("T", NAMES, examples, {"dev": examples}, {"T": examples.select(range(4))})
    found = save_predictions(str(tmp_path), {"dev": shares, "T": shares[:4]}, data)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    drawn = {"figures/dev_confusion.svg", "figures/dev_calibration.svg"}
    assert left == {"outputs/dev.csv", "outputs/T.csv", "predictions/T.tsv", *drawn}
    assert set(found) == {"dev"} and set(found["dev"]["figures"]) == drawn


def test_numbers_are_drawn_too_and_the_furthest_off_are_listed(tmp_path):
    labels = np.float32([0, 1, 2])
    numbers = Examples(["a", "b", "c"], None, labels)
    found = assess(np.float32([[0.1], [1.0], [5.0]]), numbers, None)
    assert [error["row"] for error in found["errors"]] == [2, 0]
    assert draw_assessment(str(tmp_path), "dev", found) == ["dev_numbers.svg"]

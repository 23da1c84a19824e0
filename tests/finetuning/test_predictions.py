import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.tables import read_table
from cocolm_tf.finetuning.predictions import write_predictions


def task(label_names, label_values=None, bounds=None) -> TaskData:
    return TaskData("T", label_names, Examples([]), {}, {}, label_values, bounds)


LABELS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1),
    min_size=2,
    unique=True,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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

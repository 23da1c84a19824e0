import numpy as np
import pytest

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.finetuning.predictions import write_predictions


def task(label_names, label_values=None, bounds=None) -> TaskData:
    return TaskData("T", label_names, Examples([]), {}, {}, label_values, bounds)


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

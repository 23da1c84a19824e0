import numpy as np

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.finetuning.batches import Tokens
from cocolm_tf.finetuning.tasks.classification import data_lines, describe_data


def test_rows_labels_lengths_and_what_was_cut_or_left_out():
    train = Examples(
        ["a"] * 1500, None, np.int32([0] * 500 + [1] * 1000), "x.tsv", ["line 3 is bad"]
    )
    data = TaskData("mine", ["no", "yes"], train, {"dev": train.select([0, 1])}, {})
    tokens = Tokens(np.zeros(0), np.full(1500, 7), 64, 1)
    report = describe_data(data, train, {"train": tokens})
    assert report["train"] == {
        "rows": 1500,
        "source": "x.tsv",
        "left_out": ["line 3 is bad"],
        "labels": {"no": 500, "yes": 1000},
        "tokens": {"median": 7, "percentile_95": 7, "longest": 7, "truncated": 1},
    }
    assert data_lines("mine", report).splitlines() == [
        "mine:",
        "  train: 1,500 rows of x.tsv; labels: no 500 (33.3%), yes 1,000 (66.7%); tokens: median "
        "7, 95% up to 7, longest 7; 1 truncated",
        "    left out: line 3 is bad",
        "  dev: 2 rows of x.tsv; labels: no 2 (100.0%), yes 0 (0.0%)",
        "    left out: line 3 is bad",
    ]


def test_numbers_and_texts_without_labels():
    train = Examples(["a", "b"], None, np.float32([1, 4]), "x")
    data = TaskData("mine", None, train, {}, {"test": Examples(["a"], source="y")})
    lines = data_lines("mine", describe_data(data, train, {})).splitlines()
    assert lines[1:] == [
        "  train: 2 rows of x; labels: mean 2.50, from 1 to 4",
        "  test: 1 rows of y",
    ]

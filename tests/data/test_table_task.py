from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.data.table_task import read_table_task
from cocolm_tf.errors import UserError


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    return str(path)


def rows(count: int, labels: list[str]) -> list[tuple[str, str]]:
    return [(f"text {number}", labels[number % len(labels)]) for number in range(count)]


def test_classes_are_the_labels_of_the_training_table(tmp_path: Path):
    train = write(tmp_path / "my.train.tsv", rows(20, ["b", "a", "c"]))
    dev = write(tmp_path / "dev.tsv", rows(4, ["c"]))
    test = write(tmp_path / "test.tsv", [("one", "?"), ("", "?")])
    data = read_table_task(train, "text", "label", dev_file=dev, test_file=test)
    assert (data.name, data.label_names) == ("my", ["a", "b", "c"])
    np.testing.assert_array_equal(data.train.labels[:4], [1, 0, 2, 1])
    np.testing.assert_array_equal(data.dev["dev"].labels, [2] * 4)
    assert data.test["test"].first == ["one", ""]


def test_number_like_classes_are_in_the_order_of_numbers(tmp_path: Path):
    train = write(tmp_path / "train.tsv", rows(40, ["10", "9", "1"]))
    assert read_table_task(train, "text", "label").label_names == ["1", "9", "10"]


def test_a_dev_set_is_split_off(tmp_path: Path):
    train = write(tmp_path / "train.tsv", rows(100, ["a", "a", "a", "b"]))
    data = read_table_task(train, "text", "label", dev_fraction=0.2)
    assert len(data.train) == 80 and len(data.dev["dev"]) == 20
    assert data.dev["dev"].labels.sum() == 5
    assert not set(data.train.first) & set(data.dev["dev"].first)


def test_a_regression(tmp_path: Path):
    train = write(tmp_path / "train.tsv", rows(30, ["1.5", "-2"]))
    data = read_table_task(train, "text", "label", regression=True)
    assert data.label_names is None and data.num_classes == 1
    assert set(data.train.labels) == {1.5, -2.0}


def test_pairs(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label\n" + "one,two,x\nthree,four,y\n" * 10)
    data = read_table_task(str(path), "a", "label", second_text_column="b")
    assert set(zip(data.train.first, data.train.second, strict=True)) == {
        ("one", "two"),
        ("three", "four"),
    }


@pytest.mark.parametrize(
    ("table", "arguments", "complaint"),
    [
        (rows(9, ["a"]), {}, "column 'label' has the label 'a' only"),
        (
            rows(300, list(map(str, range(300)))),
            {},
            "300 different labels in 300 rows: .*--regression",
        ),
        (rows(9, ["a", "b"]), {"text_column": "texts"}, "no column 'texts': it has text, label"),
        (
            rows(9, ["a", "b"]),
            {"regression": True},
            "train.tsv:2 has the label 'a', which is no num",
        ),
        (rows(2, ["a", "b"]), {}, "2 rows, too few to split a dev set off"),
        (rows(9, ["a", "b"]), {"dev_fraction": 1.0}, r"--dev_fraction=1.0 must be in \(0, 1\)"),
        ([*rows(9, ["a", "b"]), ("", "a")], {}, "train.tsv:11 has an empty text"),
        ([*rows(9, ["a", "b"]), ("c", "")], {}, "train.tsv:11 has the label '', none of a, b"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, table, arguments, complaint):
    train = write(tmp_path / "train.tsv", table)
    defaults = {"text_column": "text", "label_column": "label"}
    with pytest.raises(UserError, match=complaint):
        read_table_task(train, **(defaults | arguments))


def test_a_label_that_only_the_dev_set_has_is_named(tmp_path: Path):
    train = write(tmp_path / "train.tsv", rows(9, ["a", "b"]))
    dev = write(tmp_path / "dev.tsv", rows(4, ["a", "z"]))
    with pytest.raises(UserError, match=r"dev.tsv:3 has the label 'z', none of a, b; 2 of 4 rows"):
        read_table_task(train, "text", "label", dev_file=dev)


def test_bad_rows_may_be_left_out(tmp_path: Path):
    train = write(tmp_path / "train.tsv", [*rows(99, ["a", "b"]), ("", "a")])
    data = read_table_task(train, "text", "label", max_bad_share=0.01)
    assert len(data.train) + len(data.dev["dev"]) == 99
    assert data.train.left_out == ["line 101 has an empty text"]

import json
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.data.table_task import read_table_task, table_name
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
        (rows(9, ["a", "nan", "b"]), {}, "train.tsv:3 has the label 'nan', none of a, b; 3 of 9"),
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


@pytest.mark.parametrize("test_rows", [["one", "", "two"], ["", "one", "", ""], ["one", "  "]])
@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_every_row_of_a_test_file_has_its_number(tmp_path: Path, test_rows, suffix):
    train = write(tmp_path / "train.tsv", rows(20, ["a", "b"]))
    test = tmp_path / f"test{suffix}"
    test.write_text("".join(f"{text}\n" for text in ["text", *test_rows]))
    data = read_table_task(train, "text", "label", test_file=str(test))
    assert data.test["test"].first == test_rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.tsv", "text\tid\none\t1\n\ntwo\t2\n"),
        ("test.csv", "text,id\none,1\n\ntwo,2\n"),
        ("test.jsonl", '{"text": "one"}\n{"text": "one"}\n\n{"text": "two"}\n'),
    ],
)
def test_a_blank_line_in_a_test_file_is_named(tmp_path: Path, name, content):
    train = write(tmp_path / "train.tsv", rows(20, ["a", "b"]))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}:3 is blank"):
        read_table_task(train, "text", "label", test_file=str(tmp_path / name))
    # In a file that is learned from nothing is lost with it.
    labeled = tmp_path / "labeled.tsv"
    labeled.write_text("text\tlabel\none\ta\n\ntwo\tb\n\n")
    data = read_table_task(str(labeled), "text", "label", dev_file=train)
    assert data.train.first == ["one", "two"]


def test_training_has_a_row_of_every_class(tmp_path: Path):
    table = [*rows(20, ["a", "b"]), ("x", "only"), ("y", "twice"), ("z", "twice")]
    data = read_table_task(write(tmp_path / "train.tsv", table), "text", "label", dev_fraction=0.9)
    assert set(data.train.labels) == {0, 1, 2, 3}
    dev = data.dev["dev"]
    assert set(dev.labels) == {0, 1, 3}
    assert dev.left_out == ["any row of 'only', as its only one is learned from"]
    assert not data.train.left_out


def test_a_class_needs_a_row_to_learn_from(tmp_path: Path):
    table = [*rows(20, ["a", "b"]), (" ", "c")]
    data = read_table_task(write(tmp_path / "train.tsv", table), "text", "label", max_bad_share=0.1)
    assert data.label_names == ["a", "b"]


@pytest.mark.parametrize("labels", [["1", "1.0", "2"], ["1.0", "2.00", "2", "1"]])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_1_and_1_0_are_one_class(tmp_path: Path, labels, suffix):
    """The name is the one that comes first."""
    train, dev = tmp_path / f"train{suffix}", tmp_path / f"dev{suffix}"
    for path, written in ((train, labels * 5), (dev, ["2", "2.0", "1"])):
        if suffix == ".csv":
            lines = ["text,label", *(f"a,{label}" for label in written)]
        else:
            lines = [json.dumps({"text": "a"})[:-1] + f', "label": {label}}}' for label in written]
        path.write_text("\n".join(lines))
    data = read_table_task(str(train), "text", "label", dev_file=str(dev))
    assert data.label_names == ["1", "2"] if labels[0] == "1" else ["1.0", "2.00"]
    assert data.dev["dev"].labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize("missing", ["NaN", "null", '""'])
def test_a_missing_label_is_none(tmp_path: Path, missing):
    lines = [f'{{"text": "a", "label": {label}}}' for label in [1, 0, missing, 1]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="train.jsonl:3 has"):
        read_table_task(str(tmp_path / "train.jsonl"), "text", "label")


@pytest.mark.parametrize("label", ["two\nlines", "a\ttab", "a\rreturn"])
def test_a_label_that_predictions_cannot_hold_is_named(tmp_path: Path, label):
    lines = [json.dumps({"text": "a", "label": label}) for label in ["fine", label]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match="train.jsonl:2 has the label .* without tabs and line ends"
    ):
        read_table_task(str(tmp_path / "train.jsonl"), "text", "label")


@pytest.mark.parametrize("label", ['27" monitor', "C:\\drive", "a|b", "é\u2028", " a ", "1e3"])
def test_labels_stay_as_they_are(tmp_path: Path, label):
    lines = [json.dumps({"text": "a", "label": label}) for label in ["other", label] * 5]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = read_table_task(str(tmp_path / "train.jsonl"), "text", "label")
    assert sorted(data.label_names) == sorted(["other", label])


def test_other_encodings_and_delimiters(tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_bytes(("text;label\n" + "café;très bien\ncrème;mal\n" * 9).encode("cp1252"))
    data = read_table_task(str(path), "text", "label", encoding="cp1252", delimiter=";")
    assert data.label_names == ["mal", "très bien"] and set(data.train.first) == {"café", "crème"}
    for arguments in ({"delimiter": ";"}, {"encoding": "cp1252"}):
        with pytest.raises(UserError, match="--encoding=|--delimiter=';'"):
            read_table_task(str(path), "text", "label", **arguments)


def test_torn_rows_of_csv_may_be_left_out(tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "a,x\nb,y\n" * 50 + '"He said "no" and left",x\n')
    with pytest.raises(UserError, match="train.csv:102 has text between a closing quote"):
        read_table_task(str(path), "text", "label")
    data = read_table_task(str(path), "text", "label", max_bad_share=0.01)
    assert len(data.train) + len(data.dev["dev"]) == 100


def test_a_table_is_never_called_as_a_built_in_task():
    assert table_name("folder/reviews.2.csv") == "reviews"
    built_in = {*GLUE_TASKS, *(task.title for task in GLUE_TASKS.values()), "squad", "submission"}
    for name in built_in | {"rte-prompts", "Qqp", ""}:
        assert table_name(f"folder/{name}.csv") == f"{name}-table"


def test_several_labels(tmp_path: Path):
    def write(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    train = write("t.tsv", "x\ty\na\tred; blue\nb\t\nc\tblue\nd\tgreen;red\n")
    arguments = {"text_column": "x", "label_column": "y", "label_separator": ";"}
    data = read_table_task(train, dev_file=train, **arguments)
    assert data.multi_label and data.label_names == ["blue", "green", "red"]
    assert data.train.labels.tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    dev = write("d.tsv", "x\ty\na\tred;pink\n")
    with pytest.raises(UserError, match=r"d.tsv:2 has the label 'pink', none of blue, green, red"):
        read_table_task(train, dev_file=dev, **arguments)
    rows = "".join(f"t{n}\t{'red' if n % 2 else 'red;blue'}\n" for n in range(20))
    split = read_table_task(write("s.tsv", "x\ty\n" + rows), dev_fraction=0.2, **arguments)
    assert split.dev["dev"].labels.sum(axis=0).tolist() == [2, 4]
    with pytest.raises(UserError, match="--regression and --multi_label"):
        read_table_task(train, regression=True, **arguments)
    empty = write("e.tsv", "x\ty\na\t\nb\t\n")
    with pytest.raises(UserError, match="column 'y' has no labels"):
        read_table_task(empty, **arguments)

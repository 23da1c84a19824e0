import json
from pathlib import Path

import numpy as np
import pytest
from superglue_data import ROWS, write_superglue

from cocolm_tf.data import superglue
from cocolm_tf.data.superglue import (
    SUPERGLUE_TASKS,
    Rows,
    chosen,
    leaderboard_lines,
    read_superglue,
    superglue_files,
    superglue_scores,
)
from cocolm_tf.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_superglue(tmp_path_factory.mktemp("superglue"))


def lines(task: str, data, predictions) -> list[dict]:
    title = SUPERGLUE_TASKS[task].title
    written = leaderboard_lines(task, data.rows[title], np.array(predictions))
    return [json.loads(line) for line in written]


@pytest.mark.parametrize(
    ("task", "texts", "labels"),
    [
        ("boolq", ("is it", "it is"), [1, 0]),
        ("cb", ("a cat", "an animal"), [0, 1, 2]),
        ("copa", ("The hill was red.", "because the cat sang"), [1, 0, 0, 1, 1, 0]),
        ("multirc", ("a cat saw a dog", "Who saw? a cat"), [1, 0, 0]),
        ("record", ("Ada met Bo Li Bo smiled", "Ada was met"), [0, 1, 1, 1, 0, 0]),
        ("rte", ("a cat sat", "it sat"), [0, 1]),
        ("wic", ("a cat * saw * it", "the * saw * is red"), [0]),
        ("wsc", ("Ada told Bo that * she, * too, saw it.", "Ada"), [1]),
    ],
)
def test_rows_become_texts(folder, task, texts, labels):
    data = read_superglue(task, folder)
    train = data.train
    assert (train.first[0], train.second[0]) == texts
    assert train.labels.tolist() == labels == data.dev["dev"].labels.tolist()
    test = data.test[SUPERGLUE_TASKS[task].title]
    assert test.first == train.first
    assert test.labels is None
    # Within the task's own folder as well.
    own = read_superglue(task, f"{folder}/{SUPERGLUE_TASKS[task].title}")
    assert own.train.first == train.first


def test_candidates_are_groups(folder):
    assert read_superglue("copa", folder).rows["train"].groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert read_superglue("multirc", folder).rows["dev"].groups.tolist() == [0, 0, 1]
    rows = read_superglue("record", folder).rows["dev"]
    assert rows.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert list(rows.candidates) == ["Ada", "Bo Li", "Bo"] * 2
    assert list(rows.references) == [["Bo Li", "Bo"], ["Ada"]]
    groups = np.array([0, 0, 1, 1, 1, 2])
    scores = np.array([0.1, 0.3, 2.0, -1.0, 2.0, -5.0])
    assert chosen(Rows([], groups), scores).tolist() == [0, 1, 1, 0, 0, 1]


def test_the_leaderboards_lines(folder):
    data = {task: read_superglue(task, folder) for task in SUPERGLUE_TASKS}
    assert lines("boolq", data["boolq"], [1, 0]) == [
        {"idx": 0, "label": "true"},
        {"idx": 1, "label": "false"},
    ]
    assert lines("cb", data["cb"], [2, 0, 1])[0] == {"idx": 0, "label": "neutral"}
    assert lines("copa", data["copa"], [0, 1, 1, 0, 1, 0]) == [
        {"idx": 0, "label": 1},
        {"idx": 1, "label": 0},
        {"idx": 2, "label": 0},
    ]
    assert lines("record", data["record"], [0, 1, 0, 1, 0, 0]) == [
        {"idx": 20, "label": "Bo Li"},
        {"idx": 21, "label": "Ada"},
    ]
    assert lines("wic", data["wic"], [1]) == [{"idx": 0, "label": "true"}]
    assert lines("wsc", data["wsc"], [1]) == [{"idx": 0, "label": "True"}]
    assert lines("multirc", data["multirc"], [1, 0, 1]) == [
        {
            "idx": 7,
            "passage": {
                "questions": [
                    {"idx": 4, "answers": [{"idx": 10, "label": 1}, {"idx": 11, "label": 0}]},
                    {"idx": 5, "answers": [{"idx": 12, "label": 1}]},
                ]
            },
        }
    ]
    rte = data["rte"]
    assert list(rte.test) == ["RTE", "AX-b"]
    assert rte.test["AX-b"].second == ["a dog"]
    (line,) = leaderboard_lines("rte", rte.rows["AX-b"], np.array([1]))
    assert json.loads(line) == {"idx": 0, "label": "not_entailment"}


def test_scores_by_hand(folder):
    def scores(task, predictions):
        data = read_superglue(task, folder)
        return superglue_scores(data, "dev", data.dev["dev"].labels, np.array(predictions))

    # F1 over answers: right 1, said 2, true 1; the second question has its one answer wrong.
    assert scores("multirc", [1, 0, 1]) == {"f1a": pytest.approx(2 / 3), "em": 0.5}
    # Classes 0 and 1 right, 2 taken for 1: F1 of 1, 2/3 and 0.
    assert scores("cb", [0, 1, 1]) == {
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx((1 + 2 / 3) / 3),
    }
    assert scores("copa", [1, 0, 0, 1, 0, 1])["accuracy"] == pytest.approx(2 / 3)
    # "Bo" is a reference itself; "Bo Li" for "Ada" has no word of it.
    assert scores("record", [0, 0, 1, 0, 1, 0]) == {"f1": 0.5, "em": 0.5}
    assert scores("record", [1, 0, 0, 1, 0, 0]) == {"f1": 0.5, "em": 0.5}
    data = read_superglue("record", folder)
    rows = Rows([], np.array([0]), ["The Bo Lee"], [["Bo Li"]])
    data.rows["dev"] = rows
    partly = superglue_scores(data, "dev", np.array([0]), np.array([1]))
    assert partly == {"f1": pytest.approx(0.5), "em": 0.0}


def test_tfds_gives_what_the_files_give(folder, monkeypatch):
    def rows(config: str, split: str) -> list[dict]:
        name = config.removeprefix("super_glue/")
        titles = {"wsc.fixed": "WSC", "axb": "AX-b", "axg": "RTE"}
        title = titles.get(name) or SUPERGLUE_TASKS[name].title
        file = "AX-b" if title == "AX-b" else {"validation": "val"}.get(split, split)
        lines = (Path(folder) / title / f"{file}.jsonl").read_text().splitlines()
        task = {"wsc.fixed": "wsc", "axb": "rte", "axg": "rte"}.get(name, name)
        flat = [one for line in lines for one in superglue._flat_rows(json.loads(line), task)]
        return [as_tfds(row) for row in reversed(flat)]

    def as_tfds(row):
        as_bytes = {str: str.encode, bool: np.int64, int: np.int32}
        return {
            key: as_tfds(value)
            if isinstance(value, dict)
            else np.array([one.encode() for one in value], object)
            if isinstance(value, list)
            else as_bytes.get(type(value), lambda same: same)(value)
            for key, value in row.items()
        }

    monkeypatch.setattr(superglue, "tfds_rows", rows)
    for task in SUPERGLUE_TASKS:
        from_files, from_tfds = read_superglue(task, folder), read_superglue(task)
        assert from_tfds.train.first == from_files.train.first
        assert from_tfds.train.second == from_files.train.second
        assert from_tfds.train.labels.tolist() == from_files.train.labels.tolist()
        assert list(from_tfds.rows["train"].ids) == list(from_files.rows["train"].ids)


@pytest.mark.parametrize(
    ("title", "change", "message"),
    [
        ("BoolQ", {"question": 3}, "train.jsonl:1 has in 'question' no str"),
        ("BoolQ", {"label": "maybe"}, "the label 'maybe', none of False, True"),
        ("CB", {"label": None}, "the label None, none of entailment"),
        ("COPA", {"question": "why"}, "train.jsonl:1 has what is wrong for COPA: 'why'"),
        ("WiC", {"start1": "0"}, "has in 'start1' no int"),
        ("MultiRC", {"passage": {}}, "train.jsonl:1 lacks or misplaces 'questions' of MultiRC"),
        ("WSC", {"target": None}, "train.jsonl:1 lacks or misplaces"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, title, change, message):
    (tmp_path / "train.jsonl").write_text(json.dumps(dict(ROWS[title][0]) | change) + "\n")
    (tmp_path / "val.jsonl").write_text("")
    task = next(task for task, known in SUPERGLUE_TASKS.items() if known.title == title)
    with pytest.raises(UserError, match=message):
        read_superglue(task, str(tmp_path))


def test_missing_files(tmp_path, folder):
    with pytest.raises(UserError, match=r"has no BoolQ/train.jsonl"):
        read_superglue("boolq", str(tmp_path))
    with pytest.raises(UserError, match="--task is one of boolq, cb"):
        read_superglue("mnli", folder)
    assert superglue_files("boolq") == []
    paths = superglue_files("rte", folder)
    assert f"{folder}/RTE/val.jsonl" in paths and f"{folder}/AX-b/AX-b.jsonl" in paths

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from cocolm_tf.data import sources
from cocolm_tf.data.glue import GLUE_TASKS, read_glue
from cocolm_tf.errors import UserError

# What the official files look like: header, a row, and the header and a row of the test file.
FILES = {
    "cola": (None, "gj04\t1\t\tA cat.", "index\tsentence", "0\tA test."),
    "sst2": ("sentence\tlabel", "A cat. \t1", "index\tsentence", "0\tA test."),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t702\t703\tA cat.\tA dog.",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "0\t1\t2\tA test.\tAnother.",
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tnews\tf\t2012\t1\tnone\tnone\tA cat.\tA dog.\t3.800",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "0\tnews\tf\t2012\t1\tnone\tnone\tA test.\tAnother.",
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "13\t1\t2\tA cat.\tA dog.\t1",
        "id\tquestion1\tquestion2",
        "0\tA test.\tAnother.",
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t2\tfiction\t(\t(\t(\t(\tA cat.\tA dog.\tneutral\tneutral",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2",
        "0\t1\t2\tfiction\t(\t(\t(\t(\tA test.\tAnother.",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tA cat.\tA dog.\tnot_entailment",
        "index\tquestion\tsentence",
        "0\tA test.\tAnother.",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tA cat.\tA dog.\tnot_entailment",
        "index\tsentence1\tsentence2",
        "0\tA test.\tAnother.",
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tA cat.\tA dog.\t1",
        "index\tsentence1\tsentence2",
        "0\tA test.\tAnother.",
    ),
}


def write_task(folder: Path, task: str, rows: list[str] | None = None) -> Path:
    header, row, test_header, test_row = FILES[task]
    known = GLUE_TASKS[task]
    folder = folder / known.title
    folder.mkdir(parents=True)
    for name in ["train", *known.dev.values()]:
        lines = [*([header] if header else []), *(rows or [row] * 3)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in (known.test or {known.title: "test"}).values():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.tsv").write_text(f"{test_header}\n{test_row}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_official_files(tmp_path: Path, task: str):
    write_task(tmp_path, task)
    data = read_glue(task, str(tmp_path))
    is_pair = task not in ("cola", "sst2")
    for examples in (data.train, *data.dev.values()):
        assert [text.strip() for text in examples.first] == ["A cat."] * 3
        assert examples.second == (["A dog."] * 3 if is_pair else None)
        label = np.float32(3.8) if task == "stsb" else np.int32(1)
        assert list(examples.labels) == [label] * 3 and examples.labels.dtype == label.dtype
    for examples in data.test.values():
        assert list(examples.first) == ["A test."] and examples.labels is None
        assert examples.second == (["Another."] if is_pair else None)
    names = {"mnli": ["MNLI-m", "MNLI-mm", "AX"]}.get(task, [GLUE_TASKS[task].title])
    assert list(data.test) == names
    assert list(data.dev) == (["matched", "mismatched"] if task == "mnli" else ["dev"])
    assert data.num_classes == {"mnli": 3, "stsb": 1}.get(task, 2)


def test_the_files_may_lie_on_a_store(tmp_path: Path, to_store):
    write_task(tmp_path / "glue", "mnli")
    data = read_glue("mnli", to_store(tmp_path / "glue"))
    assert [len(part) for part in (data.train, *data.dev.values(), *data.test.values())] == [
        *[3] * 3,
        *[1] * 3,
    ]


def test_the_task_folder_itself_will_do_and_test_files_may_be_missing(tmp_path: Path):
    folder = write_task(tmp_path, "rte")
    (folder / "test.tsv").unlink()
    data = read_glue("rte", str(folder))
    assert len(data.train) == 3 and not data.test


def test_a_few_broken_rows_are_left_out_and_reported(tmp_path: Path):
    _, row, _, _ = FILES["qqp"]
    rows = [row] * 298 + ["13\t1\t2\tTorn", "14\t1\t2\tA cat.\t \t1", row]
    write_task(tmp_path, "qqp", rows)
    data = read_glue("qqp", str(tmp_path))
    assert len(data.train) == 299
    assert data.train.left_out == ["line 300 has 4 columns, not 6", "line 301 has an empty text"]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["0\tA cat.\tA dog.\tmaybe"], "train.tsv:2 has the label 'maybe', none of entailment"),
        (["0\tA cat.\tentailment"], "train.tsv:2 has 3 columns, not 4"),
        (["0\tA cat.\t\tentailment"], "train.tsv:2 has an empty text"),
    ],
)
def test_many_broken_rows_are_an_error(tmp_path: Path, rows, complaint):
    write_task(tmp_path, "rte", rows)
    with pytest.raises(UserError, match=complaint):
        read_glue("rte", str(tmp_path))


def test_a_score_out_of_range_is_an_error(tmp_path: Path):
    _, row, _, _ = FILES["stsb"]
    write_task(tmp_path, "stsb", [row.replace("3.800", "5.1")])
    with pytest.raises(
        UserError, match="train.tsv:2 has the label '5.1', not a number from 0 to 5"
    ):
        read_glue("stsb", str(tmp_path))


def test_a_bad_test_row_is_always_an_error(tmp_path: Path):
    folder = write_task(tmp_path, "rte")
    header, row = FILES["rte"][2:]
    (folder / "test.tsv").write_text("\n".join([header, *[row] * 500, "7\ttorn"]))
    with pytest.raises(UserError, match="test.tsv:502 has 2 columns, not 3"):
        read_glue("rte", str(tmp_path))


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=f"--data_dir={tmp_path} has no RTE/train.tsv"):
        read_glue("rte", str(tmp_path))
    (write_task(tmp_path, "mnli") / "dev_mismatched.tsv").unlink()
    with pytest.raises(UserError, match="MNLI/dev_mismatched.tsv: No such file"):
        read_glue("mnli", str(tmp_path))
    with pytest.raises(UserError, match="--task is one of cola, .*, not 'snli'"):
        read_glue("snli", str(tmp_path))


def write_tfds(folder: Path, config: str, features: dict, splits: dict[str, list[dict]]) -> None:
    """Writes a prepared dataset, its rows in an order of their own as TFDS does."""
    folder = folder / "glue" / config / "2.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    infos = []
    for split, rows in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="glue", split=split, filetype_suffix="tfrecord"
        )
        path = str(template.sharded_filepath(shard_index=0, num_shards=1))
        with tf.io.TFRecordWriter(path) as file:
            for row in reversed(rows):
                file.write(features.serialize_example(row))
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(rows)], num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=infos, filename_template=template
    )


@pytest.fixture
def prepared_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Has datasets read from where tests write them."""

    def prepared(name: str, data_dir: None) -> tfds.core.DatasetBuilder:
        return tfds.builder_from_directory(str(tmp_path / name / "2.0.0"))

    monkeypatch.setattr(sources, "prepared_builder", prepared)
    return tmp_path


def test_tfds_gives_what_the_files_give(prepared_in: Path):
    features = {
        "premise": tfds.features.Text(),
        "hypothesis": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=GLUE_TASKS["mnli"].label_names),
        "idx": tf.int32,
    }
    rows = [
        {"premise": f"p{number}", "hypothesis": f"h{number}", "label": number % 3, "idx": number}
        for number in range(4)
    ]
    tests = [row | {"label": -1} for row in rows[:2]]
    splits = {"train": rows, "validation_matched": rows[1:], "validation_mismatched": rows[2:]}
    write_tfds(
        prepared_in, "mnli", features, splits | {"test_matched": tests, "test_mismatched": tests}
    )
    write_tfds(prepared_in, "ax", features, {"test": tests})
    data = read_glue("mnli")
    assert data.train.first == ["p0", "p1", "p2", "p3"]
    assert data.train.second == ["h0", "h1", "h2", "h3"]
    np.testing.assert_array_equal(data.train.labels, [0, 1, 2, 0])
    assert data.dev["matched"].first == ["p1", "p2", "p3"]
    assert data.dev["mismatched"].first == ["p2", "p3"]
    assert {name: test.first for name, test in data.test.items()} == {
        name: ["p0", "p1"] for name in ("MNLI-m", "MNLI-mm", "AX")
    }


def test_tfds_numbers(prepared_in: Path):
    features = {
        "sentence1": tfds.features.Text(),
        "sentence2": tfds.features.Text(),
        "label": tf.float32,
        "idx": tf.int32,
    }
    row = {"sentence1": "a", "sentence2": "b", "label": 2.4, "idx": 0}
    test = row | {"label": -1.0}
    write_tfds(prepared_in, "stsb", features, {"train": [row], "validation": [row], "test": [test]})
    data = read_glue("stsb")
    np.testing.assert_allclose(data.dev["dev"].labels, [2.4], rtol=1e-6)
    assert data.test["STS-B"].labels is None

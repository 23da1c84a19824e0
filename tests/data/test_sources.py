import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocolm_tf.data.sources import DocstringSource, FileSource, TfdsSource
from cocolm_tf.errors import UserError

WORDS = st.lists(
    st.lists(st.text("abé ", min_size=1).filter(str.strip), min_size=1, max_size=4), max_size=6
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WORDS, st.integers(1, 3))
def test_text_documents_are_what_blank_lines_separate(tmp_path: Path, corpus, blank_lines):
    corpus = [[paragraph.strip() for paragraph in document] for document in corpus]
    text = ("\n" * (blank_lines + 1)).join("\n".join(document) for document in corpus)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    documents = FileSource.find(str(tmp_path / "a.txt"))
    assert [document.split("\n") for document in documents] == corpus


def test_a_document_ends_with_its_file_and_files_are_sorted(tmp_path: Path):
    (tmp_path / "b.txt").write_text("three\r\n \t\r\nfour\r\n")
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("one\ntwo")
    documents = FileSource.find(f"{tmp_path}/b.txt, {tmp_path}/*.gz,{tmp_path}/b*")
    assert list(documents) == ["one\ntwo", "three", "four"]


def test_one_document_per_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\n two \nthree")
    documents = FileSource.find(str(tmp_path / "a.txt"), one_document_per_line=True)
    assert list(documents) == ["one", "two", "three"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-be"])
def test_documents_in_another_encoding(tmp_path: Path, encoding):
    (tmp_path / "a.txt").write_bytes("café\n\nnaïve\n".encode(encoding))
    (tmp_path / "a.jsonl").write_bytes('{"text": "café"}\n{"text": "naïve"}\n'.encode(encoding))
    documents = ["café", "naïve"]
    assert list(FileSource.find(str(tmp_path / "a.txt"), encoding=encoding)) == documents
    found = FileSource.find(str(tmp_path / "a.jsonl"), jsonl_field="text", encoding=encoding)
    assert list(found) == documents


def test_no_accent_is_lost_unless_asked_for(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 99 + b"caf\xe9\n")
    with pytest.raises(UserError, match=r"a.txt:100 is not UTF-8: .*0xE9.* --encoding"):
        list(FileSource.find(str(path)))
    (document,) = FileSource.find(str(path), max_bad_share=0.01)
    assert document.endswith("fine\ncaf\ufffd")


def test_a_wrong_pattern_or_encoding_is_named_at_once(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"no file matches '.*\*.text'"):
        FileSource.find(f"{tmp_path}/*.txt,{tmp_path}/*.text")
    with pytest.raises(UserError, match="--encoding=nonsense is no encoding"):
        FileSource.find(f"{tmp_path}/*.txt", jsonl_field="text", encoding="nonsense")


def test_jsonl_documents(tmp_path: Path):
    rows = [{"text": "one\n\ntwo", "id": 1}, {"text": " "}, {"text": "three"}]
    lines = "\n\n".join(map(json.dumps, rows))
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    documents = FileSource.find(f"{tmp_path}/*.jsonl*", jsonl_field="text")
    assert list(documents) == ["one\ntwo", "three"] * 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{text: 1}", "is not JSON"),
        ('["text"]', "is not a JSON object"),
        ('{"body": "b"}', "has no field 'text': it has .'body'."),
        ('{"text": 3}', "field 'text' is not a string"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, complaint: str):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a.jsonl:2.*{complaint}"):
        list(FileSource.find(str(tmp_path / "a.jsonl"), jsonl_field="text"))


@pytest.fixture
def tiny_tfds(tmp_path: Path) -> str:
    """The folder of a prepared dataset `tiny`, with three examples."""
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": tf.int64})
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="tiny", split="train", filetype_suffix="tfrecord"
    )
    with tf.io.TFRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1))) as file:
        for label, text in enumerate(["one\n\ntwo", "", "three"]):
            file.write(features.serialize_example({"text": text, "label": label}))
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[3], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[split], filename_template=template
    )
    return str(tmp_path)


def test_tfds_documents(tiny_tfds: str):
    assert list(TfdsSource.find("tiny", data_dir=tiny_tfds)) == ["one\ntwo", "three"]
    assert list(TfdsSource.find("tiny", split="train[2:]", data_dir=tiny_tfds)) == ["three"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "tinny"}, "no dataset 'tinny'"),
        ({"field": "label"}, "no text field 'label': it has .'text'."),
        ({"split": "test"}, "no split 'test': it has .'train'."),
    ],
)
def test_what_a_tfds_dataset_lacks_is_named(tiny_tfds: str, arguments: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        TfdsSource.find(**({"name": "tiny", "data_dir": tiny_tfds} | arguments))


def test_docstring_documents_read_this_environment(write_modules: Callable):
    write_modules({"b.py": '"""The first words of the module b are these few ones."""'})
    (document,) = DocstringSource.find()
    assert document == "The first words of the module b are these few ones."

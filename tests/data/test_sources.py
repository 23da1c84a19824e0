import gzip
import io
import json
import os
import pickle
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from cocolm_tf.data import sources
from cocolm_tf.data.sources import DocstringSource, FileSource, TfdsSource
from cocolm_tf.errors import UserError

RANDOM = random.Random(0)
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


def test_json_lines_are_not_taken_for_text(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    line = '{"text": "one", "title": "", "id": 3}'
    path.write_bytes(gzip.compress(f"{line}\n{line}".encode()))
    with pytest.raises(
        UserError, match="looks like JSON lines: .*--jsonl_field, it has text, titl"
    ):
        FileSource.find(str(path))
    assert list(FileSource.find(str(path), one_document_per_line=True)) == [line] * 2
    assert list(FileSource.find(str(path), jsonl_field="text")) == ["one"] * 2
    for text in ("{a text in braces}\n", "[1]\n", '"quoted"', "7\n\n", "{}\nno fields"):
        (tmp_path / "a.txt").write_text(text)
        assert list(FileSource.find(str(tmp_path / "a.txt")))


def test_each_file_is_what_its_first_bytes_say(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}')
    (tmp_path / "b.parquet").write_bytes(written(write_parquet, text=pyarrow.array(TEXTS)))
    source = FileSource.find(f"{tmp_path}/*", jsonl_field="body")
    assert list(source) == ["one", *["one\ntwo", "drei, vier, fünf"] * 50]


def test_bad_jsonl_lines_may_be_let_pass(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 97 + b'{"text": "caf\xe9"}\nno\n{"text": 3}')
    counts = Counter()
    source = FileSource.find(str(path), jsonl_field="text", max_bad_share=0.03)
    assert list(source.documents(str(path), counts)) == ["fine"] * 97 + ["caf\ufffd"]
    assert counts == {"bad_records": 3}
    with pytest.raises(UserError, match=r"a.jsonl:98 is not UTF-8.* 3 of 100 lines are bad"):
        list(FileSource.find(str(path), jsonl_field="text", max_bad_share=0.02))


def test_a_torn_file_gives_what_comes_before_the_damage(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({"text": RANDOM.randbytes(20).hex()}) for _ in range(4000)]
    content = gzip.compress("\n".join(lines).encode())
    path.write_bytes(content[: len(content) // 2])
    source = FileSource.find(str(path), jsonl_field="text", max_bad_share=0.01)
    counts = Counter()
    documents = list(source.documents(str(path), counts))
    assert documents == [json.loads(line)["text"] for line in lines[: len(documents)]]
    # That the file ends is one, and the line that is cut off is another.
    assert len(documents) > 1000 and counts["bad_records"] in (1, 2)
    with pytest.raises(UserError, match="a.jsonl.gz is a broken gzip file"):
        list(FileSource.find(str(path), jsonl_field="text"))
    # Damage in the middle costs all that comes after it.
    path.write_bytes(content[:30_000] + b"\xff" * 999 + content[30_999:])
    with pytest.raises(UserError, match=r"lines are bad"):
        list(FileSource.find(str(path), jsonl_field="text", max_bad_share=0.2))


@pytest.mark.parametrize("one_document_per_line", [False, True])
@pytest.mark.parametrize("between", [" ", "\n", " \n"])
def test_a_document_without_an_end_is_cut_at_white_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str, one_document_per_line: bool
):
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 64)
    words = [f"word{number}" for number in range(1000)]
    (tmp_path / "a.txt").write_text(between.join(words) + "\n\nthe end")
    found = list(FileSource.find(f"{tmp_path}/a.txt", one_document_per_line=one_document_per_line))
    assert " ".join(found).split() == [*words, "the", "end"]
    assert max(map(len, found)) <= 64 and found[-1] == "the end"
    if not one_document_per_line:
        assert min(map(len, found[:-2])) > 48


def test_a_line_without_an_end_takes_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 1 << 18)
    (tmp_path / "a.txt").write_text("and so on " * 1_600_000)
    tracemalloc.start()
    found = sum(len(document) + 1 for document in FileSource.find(f"{tmp_path}/a.txt"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 16_000_000
    assert peak < 10_000_000


def test_a_text_in_json_without_an_end_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 10)
    monkeypatch.setattr(sources, "_LONGEST_JSON", 100)
    lines = [{"text": "one two three four\n\nfive"}, {"text": "no end " * 99}, {"text": "six"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"a.jsonl:2 has more than 100 characters"):
        list(FileSource.find(f"{tmp_path}/a.jsonl", jsonl_field="text"))
    source = FileSource.find(f"{tmp_path}/a.jsonl", jsonl_field="text", max_bad_share=1.0)
    assert list(source) == ["one two", "three", "four\nfive", "six"]


def test_a_source_is_read_by_its_parts_anywhere(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n{name} two")
    os.symlink(tmp_path / "a.txt", tmp_path / "c.txt")
    source = FileSource.find(
        f"{tmp_path}/*.txt,{tmp_path}/./b.txt,{tmp_path}/../{tmp_path.name}/a.txt"
    )
    assert len(source.parts) == 2 and source.parts == tuple(sorted(source.parts))
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert list(again) == ["a one", "a two", "b one", "b two"]
    assert list(again.documents(source.parts[1])) == ["b one", "b two"]


TEXTS = ["one\n\ntwo", None, "", "drei, vier, fünf"] * 50


def write_parquet(table: pyarrow.Table, sink: io.BytesIO) -> None:
    parquet.write_table(table, sink, row_group_size=20)


def write_arrow(table: pyarrow.Table, sink: io.BytesIO) -> None:
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)


def write_stream(table: pyarrow.Table, sink: io.BytesIO) -> None:
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)


COLUMNAR = pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])


def written(write: Callable, **columns: pyarrow.Array) -> bytes:
    sink = io.BytesIO()
    write(pyarrow.table({"id": range(200)} | columns), sink)
    return sink.getvalue()


@COLUMNAR
def test_a_column_of_text(tmp_path: Path, write: Callable):
    kinds = [pyarrow.string(), pyarrow.large_string()]
    columns = {str(kind): pyarrow.array(TEXTS, kind) for kind in kinds}
    columns["dictionary"] = columns["string"].dictionary_encode()
    path = tmp_path / "a"
    path.write_bytes(written(write, **columns))
    for column in columns:
        source = FileSource.find(str(path), text_column=column)
        assert list(source) == ["one\ntwo", "drei, vier, fünf"] * 50
        assert source.describe()["text_column"] == column
    with pytest.raises(UserError, match="no column 'id' of text; that is of int64: string, large"):
        FileSource.find(str(path), text_column="id")
    with pytest.raises(UserError, match="no column 'text' of text; it has string, large_string"):
        FileSource.find(str(path))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="is a compressed .* file: decompress it"):
        FileSource.find(str(path))


@COLUMNAR
def test_damage_within_a_column_of_text(tmp_path: Path, write: Callable):
    path = tmp_path / "a"
    texts = [RANDOM.randbytes(200).hex() for _ in range(200)]
    content = written(write, text=pyarrow.array(texts))
    # Within the text of a row, bytes that are not UTF-8: the row stays.
    place = content.index(texts[50][:100].encode())
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(UserError, match="row 51 of 'text' is not UTF-8.$"):
        list(FileSource.find(str(path)))
    with pytest.raises(UserError, match="not UTF-8. --max_bad_share lets a few bad rows pass.$"):
        list(FileSource.find(str(path), max_bad_share=0.0))
    found = list(FileSource.find(str(path), max_bad_share=0.005))
    texts[50] = "\ufffd" + texts[50][1:]
    assert found == texts


@COLUMNAR
def test_a_damaged_end_of_a_column(tmp_path: Path, write: Callable):
    path = tmp_path / "a"
    content = written(write, text=pyarrow.array([RANDOM.randbytes(200).hex() for _ in range(200)]))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=" damaged"):
        list(FileSource.find(str(path)))
    with pytest.raises(UserError, match=r" damaged.*rows are bad"):
        list(FileSource.find(str(path), max_bad_share=0.01))


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path: Path):
    path = tmp_path / "a"
    texts = [RANDOM.randbytes(200).hex() for _ in range(200)]
    content = written(write_parquet, text=pyarrow.array(texts))
    start = content.index(texts[40].encode()) - 60
    path.write_bytes(content[:start] + bytes(60) + content[start + 60 :])
    counts = Counter()
    source = FileSource.find(str(path), max_bad_share=0.2)
    assert list(source.documents(str(path), counts)) == [*texts[:40], *texts[60:]]
    assert counts == {"bad_records": 20}
    with pytest.raises(UserError, match="row group 2 is damaged.*20 of 200 rows are bad"):
        list(FileSource.find(str(path), max_bad_share=0.09))


def test_a_saved_dataset_of_hugging_face(tmp_path: Path):
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name in names:
        (folder / name).write_bytes(written(write_stream, text=pyarrow.array(TEXTS)))
    (folder / "cache-1.arrow").write_bytes(b"not to be read")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    source = FileSource.find(str(folder))
    assert [os.path.basename(part) for part in source.parts] == names
    assert list(source) == ["one\ntwo", "drei, vier, fünf"] * 100
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="has the splits train, test: give one of them, as .*train"):
        FileSource.find(str(tmp_path / "saved"))
    (folder / "state.json").write_text("[]")
    with pytest.raises(UserError, match="state.json is damaged"):
        FileSource.find(str(folder))
    (folder / "state.json").unlink()
    with pytest.raises(UserError, match="train is a folder, give a glob of its files"):
        FileSource.find(str(folder))


def test_columns_on_a_store():
    with tf.io.gfile.GFile("ram://sources/a.parquet", "wb") as file:
        file.write(written(write_parquet, text=pyarrow.array(TEXTS)))
    assert list(FileSource.find("ram://sources/*.parquet")) == ["one\ntwo", "drei, vier, fünf"] * 50


def wet_record(kind: str, content: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.example/\r\n"
    head += f"Content-Type: text/plain\r\nContent-Length: {len(content)}\r\n\r\n"
    return gzip.compress(head.encode() + content + b"\r\n\r\n")


def test_wet_files_of_common_crawl(tmp_path: Path):
    pytest.importorskip("warcio", reason="reads WET files")
    path = tmp_path / "a.warc.wet.gz"
    records = [wet_record("conversion", f"Page {n}.\n\nDrei, fünf.\n".encode()) for n in range(50)]
    whole = b"".join([wet_record("warcinfo", b"Software-Info: none\r\n"), *records])
    path.write_bytes(whole)
    pages = [f"Page {number}.\nDrei, fünf." for number in range(50)]
    assert list(FileSource.find(str(path))) == pages
    path.write_bytes(gzip.decompress(whole))
    assert list(FileSource.find(str(path))) == pages
    path.write_bytes(whole + wet_record("conversion", b"caf\xe9"))
    with pytest.raises(UserError, match="text of http://a.example/ is not UTF-8"):
        list(FileSource.find(str(path)))
    assert list(FileSource.find(str(path), max_bad_share=0.02)) == [*pages, "caf\ufffd"]
    path.write_bytes(whole + wet_record("response", b"HTTP/1.1 200 OK\r\n\r\n<html>"))
    with pytest.raises(UserError, match="has web pages as they were sent: give the WET file"):
        list(FileSource.find(str(path)))


def test_a_wet_file_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "warcio.archiveiterator", None)
    (tmp_path / "a.wet").write_bytes(gzip.decompress(wet_record("conversion", b"a")))
    with pytest.raises(UserError, match=r"a.wet is a WARC file.*pip install 'cocolm-tf\[warc\]'"):
        FileSource.find(str(tmp_path / "a.wet"))


@pytest.fixture
def tiny_tfds(tmp_path: Path) -> str:
    """The folder of a prepared dataset `tiny`, with three and two examples in two files."""
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": tf.int64})
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="tiny", split="train", filetype_suffix="tfrecord"
    )
    for index, texts in enumerate([["one\n\ntwo", "", "three"], ["four", b"f\xefve"]]):
        path = str(template.sharded_filepath(shard_index=index, num_shards=2))
        with tf.io.TFRecordWriter(path) as file:
            for text in texts:
                file.write(features.serialize_example({"text": text, "label": index}))
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[3, 2], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[split], filename_template=template
    )
    return str(tmp_path)


def test_tfds_documents(tiny_tfds: str):
    source = TfdsSource.find("tiny", data_dir=tiny_tfds)
    assert source.parts == ("train[0:3]", "train[3:5]")
    assert list(pickle.loads(pickle.dumps(source))) == ["one\ntwo", "three", "four", "f\ufffdve"]
    counts = Counter()
    assert list(source.documents("train[3:5]", counts)) == ["four", "f\ufffdve"]
    assert counts == {"bad_records": 1}
    source = TfdsSource.find("tiny", split="train[40%:80%]+train[:1]", data_dir=tiny_tfds)
    assert source.parts == ("train[2:3]", "train[3:4]", "train[0:1]")
    assert list(source) == ["three", "four", "one\ntwo"]


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

"""A user's files of texts."""

import gzip
import json
from pathlib import Path

import pytest

from cocolm_tf.analysis.inputs import CorruptedText, read_corrupted_texts, read_pairs
from cocolm_tf.errors import UserError

TABLE = 'index\tsentence1\tsentence2\tscore\n0\tA "cat.\tA dog.\t1.5\n1\tOne.\t Two. \t5.000\n'


def test_a_table_as_glue_has_it(tmp_path: Path):
    path = tmp_path / "dev.tsv"
    path.write_text(TABLE)
    pairs = read_pairs(str(path))
    assert pairs.first == ['A "cat.', "One."]
    assert pairs.second == ["A dog.", "Two."]
    assert pairs.scores.tolist() == [1.5, 5.0]
    assert len(pairs) == 2


def test_a_table_as_other_programs_write_it(tmp_path: Path):
    """With a byte order mark, compressed, quoted, in another encoding."""
    rows = 'sentence1,sentence2,score\r\n"A, café.",B.,1.5\r\n'
    (tmp_path / "marked.csv").write_bytes(rows.encode("utf-16"))
    (tmp_path / "zipped.csv.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "pairs.csv").write_bytes(rows.encode("cp1252"))
    for name, encoding in (("marked.csv", ""), ("zipped.csv.gz", ""), ("pairs.csv", "cp1252")):
        pairs = read_pairs(str(tmp_path / name), encoding)
        assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["A, café."], ["B."], [1.5])


def test_json_lines_without_scores(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"sentence1": "a", "sentence2": "b", "more": 1}, {"sentence1": "c", "sentence2": "d"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    pairs = read_pairs(str(path))
    assert (pairs.first, pairs.second, pairs.scores) == (["a", "c"], ["b", "d"], None)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.tsv", "", "no column 'sentence1': it has none"),
        ("p.tsv", "a\tb\n", "no column 'sentence1': it has a, b"),
        ("p.tsv", "sentence1\tsentence2\n", "has no rows"),
        ("p.tsv", "sentence1\tsentence2\na\n", ":2 has 1 columns, not 2"),
        ("p.tsv", "sentence1\tsentence2\na\t \n", ":2 has no sentence2"),
        ("p.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n", ":2: score must be a number"),
        ("p.tsv", b"sentence1\tsentence2\n\xff\tb\n", ":2 is not UTF-8.*Convert"),
        ("p.jsonl", "nonsense\n", ":1 is not JSON"),
        ("p.jsonl", "[1]\n", ":1 is not a JSON object"),
        ("p.jsonl", '{"sentence1": "a"}\n', ":1 has no field 'sentence2'"),
        ("p.jsonl", '{"sentence1": "a", "sentence2": null}\n', ":1 has in 'sentence2' neither"),
        (
            "p.jsonl",
            '{"sentence1": "a", "sentence2": "b"}\n'
            '{"sentence1": "a", "sentence2": "b", "score": 1}\n',
            ":2: either all pairs have a score, or none",
        ),
        (
            "p.jsonl",
            '{"sentence1": "a", "sentence2": "b", "score": NaN}\n',
            "neither .* nor a number",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, content: str | bytes, complaint: str):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_pairs(str(path))
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.tsv: No such file"):
        read_pairs(str(tmp_path / "none.tsv"))


def test_both_forms_of_corrupted_texts_are_read(tmp_path: Path):
    expected = [CorruptedText("A cat.", "A cats.")]
    (tmp_path / "a.tsv").write_text("corrupted\toriginal\nA cats.\tA cat.\n")
    (tmp_path / "a.jsonl").write_text('{"original": "A cat.", "corrupted": "A cats."}\n')
    for name in ("a.tsv", "a.jsonl"):
        assert read_corrupted_texts(str(tmp_path / name)) == expected


def test_bad_rows_of_corrupted_texts_are_named(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_text("original\ttext\nA\tB\n")
    with pytest.raises(UserError, match=r"a\.tsv has no column .corrupted."):
        read_corrupted_texts(str(path))
    path.write_text("original\tcorrupted\nA\t \n")
    with pytest.raises(UserError, match=r"a\.tsv:2 has no corrupted: it needs original and"):
        read_corrupted_texts(str(path))
    with pytest.raises(UserError, match=": No such file"):
        read_corrupted_texts(str(path) + "x")

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocolm_tf.data.tables import read_table
from cocolm_tf.errors import UserError

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=9)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_csv_and_jsonl_give_back_what_was_written(tmp_path: Path, rows):
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "y"), *rows])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"y": y, "x": x}) + "\n" for x, y in rows)
    for name in ("a.csv", "a.jsonl.gz"):
        table = read_table(str(tmp_path / name), ["y", "x"])
        assert table.rows == [(y, x) for x, y in rows] and not table.bad_rows


def test_csv_cells_may_have_lines_and_keep_their_line_numbers(tmp_path: Path):
    (tmp_path / "a.csv").write_text(
        'text,label\r\n"two\nlines, ""quoted""",1\r\n\r\nshort\r\nb,2\r\n'
    )
    table = read_table(str(tmp_path / "a.csv"), ["text", "label"])
    assert table.rows == [('two\nlines, "quoted"', "1"), ("b", "2")]
    assert table.lines == [2, 6]
    assert table.bad_rows == [(5, "has 1 columns, not 2")]


def test_a_quote_in_tsv_is_a_character(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_text(
        '\ufefftext\tlabel\r\nHe said "no.\t0\r\n"yes"\t1\n\n next\x85line\x0b\u2028\t1', newline=""
    )
    table = read_table(str(path), ["text", "label"])
    assert table.rows == [('He said "no.', "0"), ('"yes"', "1"), (" next\x85line\x0b\u2028", "1")]
    assert table.lines == [2, 3, 5]


def test_rows_with_other_columns_are_told(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("text\tlabel\na\t1\nb\nc\t1\t2\nd\t0\n")
    table = read_table(str(tmp_path / "a.tsv"), ["label"])
    assert table.rows == [("1",), ("0",)]
    assert table.bad_rows == [(3, "has 1 columns, not 2"), (4, "has 3 columns, not 2")]


def test_a_file_without_header(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("gj04\t1\t\tA cat.\n")
    table = read_table(
        str(tmp_path / "a.tsv"), ["sentence", "label"], ["s", "label", "x", "sentence"]
    )
    assert table.rows == [("A cat.", "1")] and table.lines == [1]


def test_json_values(tmp_path: Path):
    lines = [
        '{"t": "a", "n": 3, "b": true, "f": 1.5}',
        "",
        "{t}",
        "[1]",
        '{"t": "a"}',
        '{"t": null, "n": 1, "b": 1, "f": 1}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table = read_table(str(tmp_path / "a.jsonl"), ["t", "n", "b", "f"])
    assert table.rows == [("a", "3", "true", "1.5")]
    assert [line for line, _ in table.bad_rows] == [3, 4, 5, 6]
    complaints = ["is not JSON", "not a JSON object", "has no field 'n': it has t", "'t' neither"]
    for (_, reason), complaint in zip(table.bad_rows, complaints, strict=True):
        assert complaint in reason


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.tsv", b"text\tlabel\na\t1\n", r"a.tsv has no column 'x': it has text, label\."),
        ("a.csv", b"text,label\n", r"a.csv has no column 'x'"),
        ("a.jsonl", b'{"y": 1}\n', r"a.jsonl:1 has no field 'x': it has y; there is no good row"),
        ("a.txt", b"x\n1\n", r"the name of a table ends in .tsv, .csv, .jsonl"),
        ("a.tsv", b"x\n", r"a.tsv has no rows"),
        ("a.tsv", b"", r"a.tsv has no column 'x'"),
        ("a.csv", b'x,y\n"torn,1\n', r"a.csv is no CSV file"),
        ("a.tsv", b"x\n\xff\xfe\n", r"a.tsv is not UTF-8"),
        ("a.tsv.gz", b"x\n1\n", r"a.tsv.gz: "),
        ("a.tsv.gz", gzip.compress(b"x\n" * 99, mtime=0)[:-9], r"a.tsv.gz is a broken gzip file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_table(str(tmp_path / name), ["x"])


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="^/nowhere.tsv: No such file or directory.$"):
        read_table("/nowhere.tsv", ["x"])

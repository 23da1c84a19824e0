import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocolm_tf.data.tables import Table, label_parser, labeled_examples, number_parser, read_table
from cocolm_tf.errors import UserError

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
NO_LINE_ENDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t"), max_size=9
)


def write_csv(path: Path, rows: list, encoding: str = "utf-8", **dialect) -> str:
    # Python 3.11 quotes no carriage return where a line ends with a line feed alone.
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, **dialect).writerows(rows)
    return str(path)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(ANY, ANY), min_size=1, max_size=5),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from([",", ";", "\t", "|"]),
)
def test_csv_and_jsonl_give_back_what_was_written(tmp_path: Path, rows, encoding, delimiter):
    csv_path = write_csv(tmp_path / "a.csv", [("x", "y"), *rows], encoding, delimiter=delimiter)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding=encoding) as file:
        file.writelines(json.dumps({"y": y, "x": x}) + "\n" for x, y in rows)
    for path, separator in ((csv_path, delimiter), (str(tmp_path / "a.jsonl.gz"), "")):
        table = read_table(path, ["y", "x"], delimiter=separator)
        assert table.rows == [(y, x) for x, y in rows] and not table.bad_rows


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(NO_LINE_ENDS, NO_LINE_ENDS), min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_tsv_gives_back_what_was_written(tmp_path: Path, rows, end):
    lines = ["\t".join(row) for row in [("x", "y"), *rows]]
    (tmp_path / "a.tsv").write_bytes((end.join(lines) + end).encode())
    table = read_table(str(tmp_path / "a.tsv"), ["y", "x"])
    assert table.rows == [(y, x) for x, y in rows] and not table.bad_rows
    assert table.lines == list(range(2, 2 + len(rows)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NO_LINE_ENDS, min_size=1, max_size=6))
def test_every_line_of_one_column_is_a_row(tmp_path: Path, texts):
    (tmp_path / "a.tsv").write_bytes("".join(f"{text}\n" for text in ["x", *texts]).encode())
    assert read_table(str(tmp_path / "a.tsv"), ["x"]).rows == [(text,) for text in texts]
    (tmp_path / "a.csv").write_bytes(b'x\none\n\n""\ntwo\n')
    assert read_table(str(tmp_path / "a.csv"), ["x"]).rows == [("one",), ("",), ("",), ("two",)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "\nx\ty\n\na\t1\n  \n\t\n\n"),
        ("a.csv", "\nx,y\n\na,1\n  \n,\n\n"),
        ("a.jsonl", '{"x": "a", "y": 1}\n\n  \n{"x": "", "y": ""}\n\n'),
    ],
)
def test_blank_lines_between_rows_are_known(tmp_path: Path, name, content):
    (tmp_path / name).write_text(content)
    table = read_table(str(tmp_path / name), ["x", "y"])
    assert table.rows == [("a", "1"), ("", "")] and not table.bad_rows
    assert table.blank_lines == {"a.jsonl": [2, 3]}.get(name, [3, 5])


def test_long_fields(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", [("x", "y"), ("long " * 100_000, "1")])
    ((text, label),) = read_table(path, ["x", "y"]).rows
    assert (len(text), label) == (500_000, "1")


def test_a_torn_row_of_csv_costs_no_other_row(tmp_path: Path):
    lines = [
        "text,label",
        '"He said "no" and left",bad',
        "fine,good",
        '"torn,bad',
        '"two',
        'lines",good',
        'a "quote" inside,good',
        '"never ends,bad',
        "last,good",
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    table = read_table(str(tmp_path / "a.csv"), ["text", "label"])
    assert table.rows == [
        ("fine", "good"),
        ("two\nlines", "good"),
        ('a "quote" inside', "good"),
        ("last", "good"),
    ]
    assert table.lines == [3, 5, 7, 9]
    assert [line for line, _ in table.bad_rows] == [2, 4, 8]
    assert "closing quote" in table.bad_rows[0][1] and "does not end" in table.bad_rows[2][1]


def test_other_encodings_and_delimiters(tmp_path: Path):
    rows = [("text", "label"), ("Café; crème", "1")]
    path = write_csv(tmp_path / "a.csv", rows, "cp1252", delimiter=";")
    assert read_table(path, ["text"], encoding="cp1252", delimiter=";").rows == [("Café; crème",)]
    with pytest.raises(UserError, match=r"a.csv:2 is not UTF-8: .*--encoding=cp1252"):
        read_table(path, ["text"], encoding="", delimiter=";")
    with pytest.raises(UserError, match=r"if ';' separates its columns, give --delimiter=';'"):
        read_table(path, ["text"], encoding="cp1252", delimiter="")
    (tmp_path / "b.tsv").write_text('text|label\n"a|1\n')
    assert read_table(str(tmp_path / "b.tsv"), ["text"], delimiter="|").rows == [('"a',)]
    (tmp_path / "c.csv").write_text("text\tlabel\na\t1\n")
    assert read_table(str(tmp_path / "c.csv"), ["text"], delimiter="\\t").rows == [("a",)]
    for delimiter in (";;", '"', "\n"):
        with pytest.raises(UserError, match="--delimiter=.* must be one character"):
            read_table(path, ["text"], delimiter=delimiter)
    with pytest.raises(UserError, match="--delimiter goes with .csv and .tsv"):
        read_table("a.jsonl", ["text"], delimiter=";")


def test_a_column_that_there_is_twice_is_named(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x,y,x\n1,2,3\n")
    with pytest.raises(UserError, match="has 2 columns 'x': rename one"):
        read_table(str(tmp_path / "a.csv"), ["x"])
    assert read_table(str(tmp_path / "a.csv"), ["y"]).rows == [("2",)]


def test_optional_columns(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("x\ty\na\t1\n")
    (tmp_path / "a.jsonl").write_text('{"x": "a", "y": 1}\n{"x": "b", "y": null}\n{"x": "c"}\n')
    assert read_table(str(tmp_path / "a.tsv"), ["x"], optional=("y", "z")).rows == [("a", "1", "")]
    table = read_table(str(tmp_path / "a.jsonl"), ["x"], optional=("y",))
    assert table.rows == [("a", "1"), ("b", ""), ("c", "")]


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


def test_rows_with_other_columns_are_named(tmp_path: Path):
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
        '{"t": "a", "n": NaN, "b": 1, "f": 1}',
        '{"t": "a", "n": 1, "b": 1, "f": -Infinity}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table = read_table(str(tmp_path / "a.jsonl"), ["t", "n", "b", "f"])
    assert table.rows == [("a", "3", "true", "1.5")]
    assert [line for line, _ in table.bad_rows] == [3, 4, 5, 6, 7, 8]
    complaints = ["is not JSON", "not a JSON object", "has no field 'n': it has t"]
    complaints += [f"{name!r} neither a string nor a number" for name in "tnf"]
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
        (
            "a.csv",
            b'x,y\n"torn,1\n',
            r"a.csv:2 begins with a quote a field that does not end; there is no good",
        ),
        ("a.tsv", b"x\n\xff\xfe\n", r"a.tsv:2 is not UTF-8"),
        ("a.csv", b'x,"y\n', r"a.csv:1 begins with a quote"),
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


# Labeled examples.


def table(*rows, bad_rows=()) -> Table:
    return Table("file.tsv", rows, range(2, 2 + len(rows)), bad_rows)


def test_classes_and_numbers():
    found = labeled_examples(table(("a", "x "), ("b", "y")), 1, label_parser(["y", "x"]))
    assert (found.first, found.second) == (["a", "b"], None)
    np.testing.assert_array_equal(found.labels, np.int32([1, 0]))
    found = labeled_examples(table(("a", "b", "2.5")), 2, number_parser((0, 5)))
    assert (found.first, found.second) == (["a"], ["b"])
    assert found.labels.dtype == np.float32 and found.labels == [2.5]


def test_no_labels():
    found = labeled_examples(table(("a",), ("",)), 1, None, allow_empty=True)
    assert found.first == ["a", ""] and found.labels is None


@pytest.mark.parametrize(
    ("row", "parse", "complaint"),
    [
        (("b", "z"), label_parser(["x", "y"]), "file.tsv:3 has the label 'z', none of x, y."),
        ((" ", "x"), label_parser(["x", "y"]), "file.tsv:3 has an empty text."),
        (("b", "much"), number_parser(), "file.tsv:3 has the label 'much', which is no number."),
        (("b", "nan"), number_parser(), "file.tsv:3 has the label 'nan', not a finite number."),
        (("b", "6"), number_parser((0, 5)), "has the label '6', not a number from 0 to 5."),
    ],
)
def test_a_bad_row_is_named(row, parse, complaint):
    good = ("a", "x" if row[1] in "xz" else "1")
    with pytest.raises(UserError) as caught:
        labeled_examples(table(good, row), 1, parse)
    assert str(caught.value).endswith(complaint)


def test_a_few_bad_rows_may_be_left_out_and_are_named():
    rows = [("a", "x")] * 40 + [("", "x")] + [("c", "z")] * 7
    bad_rows = [(99, "has 1 columns, not 2"), (1, "has 3 columns, not 2")]
    found = labeled_examples(table(*rows, bad_rows=bad_rows), 1, label_parser(["x"]), 0.2)
    assert len(found) == 40
    assert found.left_out == [
        "line 1 has 3 columns, not 2",
        "line 42 has an empty text",
        "line 43 has the label 'z', none of x",
        "line 44 has the label 'z', none of x",
        "line 45 has the label 'z', none of x",
        "5 more",
    ]
    with pytest.raises(UserError, match="file.tsv:1 has 3 columns, not 2; 10 of 50 rows are bad"):
        labeled_examples(table(*rows, bad_rows=bad_rows), 1, label_parser(["x"]), 0.19)

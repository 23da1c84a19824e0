import numpy as np
import pytest

from cocolm_tf.data.labeled_tables import label_parser, labeled_examples, number_parser
from cocolm_tf.data.tables import Table
from cocolm_tf.errors import UserError


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


def test_a_few_bad_rows_may_be_left_out_and_are_told():
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

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.corrections.texts import (
    Edit,
    apply_edits,
    differences,
    read_m2,
    read_table_of_corrections,
    single_words,
    words_of,
)
from cocolm_tf.errors import UserError

M2 = """\
S He go too school .
A 1 2|||R:VERB:SVA|||goes|||REQUIRED|||-NONE-|||0
A 3 3|||M:DET|||the|||REQUIRED|||-NONE-|||0
A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||1

S the the cat
A 1 2|||U:DET|||-NONE-|||REQUIRED|||-NONE-|||0

S All is well .
"""

some_text = st.text(alphabet="ab -.,", max_size=12)


@given(some_text, some_text)
def test_the_differences_make_one_text_of_the_other(text: str, corrected: str):
    edits = differences(text, corrected)
    assert words_of(apply_edits(text, edits)) == words_of(corrected)
    assert bool(edits) == (words_of(text) != words_of(corrected))


@pytest.mark.parametrize(
    ("text", "corrected", "expected"),
    [
        ("He go too", "He goes to", [(3, 5, "goes", "R"), (6, 9, "to", "R")]),
        ("the the cat", "the cat", [(0, 3, "", "U")]),
        ("a cat sat", "a black cat sat", [(1, 1, "black", "M")]),
        ("alot of", "a lot of", [(0, 4, "a lot", "R")]),
        ("It is so.", "It is so.", []),
    ],
)
def test_differences_are_word_by_word(text: str, corrected: str, expected: list):
    found = [(*edit.of(text), edit.kind) for edit in differences(text, corrected)]
    assert found == expected


def test_edits_are_the_same_whatever_space_they_take_along():
    text = "the the cat"
    assert Edit(3, 7, "").of(text) == Edit(4, 7, " ").of(text) == (4, 7, "")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Edit(3, 9, "goes to"), [(3, 5, "goes"), (6, 9, "to")]),
        (Edit(2, 9, ""), [(3, 5, ""), (6, 9, "")]),
        (Edit(3, 9, "went"), [(3, 5, None), (6, 9, None)]),
        (Edit(6, 9, "to the"), [(6, 9, "to the")]),
        (Edit(2, 2, " will"), []),
    ],
)
def test_the_words_of_an_edit(edit: Edit, expected: list):
    assert single_words("He go too school", edit) == expected


def test_m2(tmp_path: Path):
    (tmp_path / "some.m2").write_text(M2)
    first, second, third = read_m2(str(tmp_path / "some.m2"))
    assert first.text == "He go too school ."
    assert [edit.kind for edit in first.edits] == ["R:VERB:SVA", "M:DET"]
    assert first.corrected() == "He goes too the school ."
    assert first.corrected(1) == first.text
    assert second.corrected() == "the cat"
    assert third.references == ((),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("A 1 2|||R|||x|||REQUIRED|||-NONE-|||0\n", ":1 is no line of an M2 file"),
        ("S a b\nA 1 3|||R|||x|||REQUIRED|||-NONE-|||0\n", ":2 is no edit .* there are 2 tokens"),
        ("S a b\nA 1|||R\n", ":2 is no edit of an M2 file"),
        ("\n", "has no texts"),
    ],
)
def test_what_is_no_m2_is_reported_by_its_line(tmp_path: Path, content: str, said: str):
    (tmp_path / "some.m2").write_text(content)
    with pytest.raises(UserError, match=said):
        read_m2(str(tmp_path / "some.m2"))


def test_a_table(tmp_path: Path):
    path = tmp_path / "some.csv"
    path.write_text("wrong,right\nHe go.,He goes.\n")
    (marked,) = read_table_of_corrections(str(path), "wrong", "right")
    assert marked.corrected() == "He goes."
    path.write_text("wrong,right\nHe go.,\n")
    with pytest.raises(UserError, match=r"some.csv:2 has no right"):
        read_table_of_corrections(str(path), "wrong", "right")

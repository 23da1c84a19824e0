from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocolm_tf import UserError
from cocolm_tf.serving.client import Answer, Export, Printer, find_version


def test_the_highest_version_is_taken(tmp_path: Path):
    for name in ("2", "10", "11", "x"):
        (tmp_path / name).mkdir()
        if name != "11":
            (tmp_path / name / "saved_model.pb").write_text("")
    assert find_version(str(tmp_path)) == str(tmp_path / "10")
    assert find_version(str(tmp_path / "2")) == str(tmp_path / "2")


def test_what_is_no_export_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        Export(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="has no SavedModel, nor a version of one"):
        Export(str(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(UserError, match="cannot be loaded"):
        Export(str(tmp_path))


def test_it_says_what_it_can_be_asked(export: Export):
    assert export.signatures == ["embed", "correct", "correct_tsv"]
    assert export.default == "correct"
    with pytest.raises(UserError, match="no signature 'answer', but embed, correct, correct_tsv"):
        export("answer", texts=["a"])


def test_strings_and_ids_go_in(export: Export):
    # Half of a surrogate pair, which has no encoding.
    by_text = export("embed", texts=["The cat\ud800"])
    assert by_text["embeddings"].shape == (1, 16)
    by_ids = export("embed_ids", token_ids=[[0, 7, 2], [0, 7, 2]])
    np.testing.assert_allclose(*by_ids["embeddings"], atol=1e-6)


TEXT = "The cat sit on it."
CORRECTED = {
    "words": ["cat", "sit", "on"],
    "starts": [4, 8, 12],
    "ends": [7, 11, 14],
    "probabilities": [0.1, 0.9, 0.6],
    "corrections": [["dog", ""], ["sat", "sits"], ["in", ""]],
    "correction_probabilities": [[0.05, 0.0], [0.7, 0.1], [0.3, 0.0]],
}


def printed(kind: str, answer: Answer, text: str = TEXT, truncated: bool = False, **how) -> str:
    printer = Printer(**{"color": False} | how)
    return printer(kind, [text], [answer | {"truncated": truncated}])


def test_suspicious_words_are_marked_and_corrected():
    lines = printed("correct", CORRECTED).splitlines()
    assert lines[0] == "The cat [sit] [on] it."
    assert "90%" in lines[1] and "sit → sat 70%, sits 10%" in lines[1]
    assert "on → in 30%" in lines[2]
    assert len(lines) == 3
    line, note = printed("correct", CORRECTED, threshold=0.95).split("\n")
    assert line == TEXT
    assert "belongs" in note
    colored = printed("correct", CORRECTED, color=True)
    assert "\x1b[31m" in colored and "[sit]" not in colored


def test_a_word_that_should_go_has_nothing_for_a_correction():
    corrections = [["dog", ""], ["", "sits"], ["in", ""]]
    lines = printed("correct", CORRECTED | {"corrections": corrections}).splitlines()
    assert "sit → (nothing) 70%, sits 10%" in lines[1]
    assert "on → in 30%" in lines[2]


def test_a_text_without_words_has_none_that_belong():
    empty = {name: [] for name in CORRECTED}
    assert printed("correct", empty, "\x01").endswith("There is no word.")
    assert "The first word is too long to be read." in printed("correct", empty, truncated=True)


def test_vectors_are_compared():
    answers = [{"embeddings": x, "truncated": False} for x in ([1.0, 0.0], [0.6, 0.8])]
    lines = Printer(color=False)("embed", ["a", "b"], answers).splitlines()
    assert lines[:2] == ["[0] a", "[1] b"]
    assert lines[-1].split() == ["[1]", "0.600", "1.000"]
    assert "2 dimensions: 0.6000 0.8000" in printed("embed", {"embeddings": [0.6, 0.8]})


def test_the_most_probable_class_is_first():
    answer = {"labels": ["bad", "good"], "probabilities": [0.25, 0.75]}
    text, first, second = printed("classify", answer, "Fine.").splitlines()
    assert text == "Fine."
    assert "75.0%" in first and first.endswith("good")
    assert "25.0%" in second and second.endswith("bad")
    assert printed("classify", answer | {"assigned": [True, False]}).endswith("bad ✓")
    assert printed("classify", {"values": 4.25}, "Fine.").split() == ["4.250", "Fine."]


def test_an_answer_that_is_none_says_so():
    answer = {"answers": "mat", "starts": 10, "ends": 13, "scores": 1.0, "no_answer_scores": 4.0}
    found = printed("answer", answer | {"answerable": True}, "Where?")
    assert found.splitlines()[1].strip() == "mat"
    none = printed("answer", answer | {"answerable": False}, "Where?")
    assert "none, or mat" in none and "characters 10 to 13" in none


def test_spans_have_a_line_each():
    answer = {"labels": ["PER", "LOC"], "starts": [0, 13], "ends": [3, 17], "scores": [0.9, 0.5]}
    assert printed("tag", answer, "Ada lives in Rome").splitlines()[1:] == [
        "   90% PER Ada  characters 0 to 3",
        "   50% LOC Rome  characters 13 to 17",
    ]
    assert "Nothing has a label." in printed("tag", {name: [] for name in answer}, "Nobody")


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("correct", CORRECTED),
        ("embed", {"embeddings": [1.0, 0.0]}),
        ("classify", {"values": 1.0}),
        ("classify", {"labels": ["good"], "probabilities": [1.0]}),
    ],
)
def test_all_say_what_was_not_read(kind: str, answer: dict[str, Any]):
    note = "The text is too long: its end was not read."
    assert printed(kind, answer, truncated=True).count(note) == 1
    assert note not in printed(kind, answer)

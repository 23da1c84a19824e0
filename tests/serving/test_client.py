from pathlib import Path

import numpy as np
import pytest

from cocolm_tf import UserError
from cocolm_tf.serving.client import Export, Printer, find_version


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


def correct_outputs(truncated: bool = False) -> dict[str, np.ndarray]:
    return {
        "num_words": np.array([3]),
        "starts": np.array([[4, 8, 12]]),
        "ends": np.array([[7, 11, 14]]),
        "probabilities": np.array([[0.1, 0.9, 0.6]]),
        "corrections": np.array([[[b"dog", b""], [b"sat", b"sits"], [b"in", b""]]]),
        "correction_probabilities": np.array([[[0.05, 0.0], [0.7, 0.1], [0.3, 0.0]]]),
        "truncated": np.array([truncated]),
    }


def read(**outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of texts that were read to their end."""
    (first, *_) = outputs.values()
    return outputs | {"truncated": np.zeros(len(first), bool)}


def test_suspicious_words_are_marked_and_corrected():
    lines = Printer(color=False).correct([TEXT], correct_outputs()).splitlines()
    assert lines[0] == "The cat [sit] [on] it."
    assert "90%" in lines[1] and "sit → sat 70%, sits 10%" in lines[1]
    assert "on → in 30%" in lines[2]
    assert len(lines) == 3
    (line, note) = (
        Printer(color=False, threshold=0.95).correct([TEXT], correct_outputs()).split("\n")
    )
    assert line == TEXT
    assert "belongs" in note
    assert "not read" in Printer(color=False).correct([TEXT], correct_outputs(truncated=True))


def test_a_word_that_should_go_has_nothing_for_a_correction():
    outputs = correct_outputs()
    outputs["corrections"][0, 1, 0] = b""
    lines = Printer(color=False).correct([TEXT], outputs).splitlines()
    assert "sit → (nothing) 70%, sits 10%" in lines[1]
    assert "on → in 30%" in lines[2]


def test_a_text_without_words_has_none_that_belong():
    outputs = correct_outputs() | {"num_words": np.array([0])}
    assert Printer(color=False).correct(["\x01"], outputs).endswith("There is no word.")
    outputs["truncated"] = np.array([True])
    told = Printer(color=False).correct(["x" * 99999], outputs).splitlines()[-1]
    assert told.strip() == "The first word is too long to be read."


def test_colors_only_where_they_are_seen():
    colored = Printer(color=True).correct([TEXT], correct_outputs())
    assert "\x1b[31m" in colored and "[sit]" not in colored
    assert "\x1b" not in Printer(color=False).correct([TEXT], correct_outputs())


def test_vectors_are_compared():
    vectors = np.float32([[1.0, 0.0], [0.6, 0.8]])
    lines = Printer(color=False).embed(["a", "b"], read(embeddings=vectors)).splitlines()
    assert lines[:2] == ["[0] a", "[1] b"]
    assert lines[-1].split() == ["[1]", "0.600", "1.000"]
    alone = Printer(color=False).embed(["a"], read(embeddings=vectors[1:]))
    assert "2 dimensions: 0.6000 0.8000" in alone


def test_the_most_probable_class_is_first():
    outputs = read(labels=np.array([[b"bad", b"good"]]), probabilities=np.array([[0.25, 0.75]]))
    text, first, second = Printer(color=False).classify(["Fine."], outputs).splitlines()
    assert text == "Fine."
    assert "75.0%" in first and first.endswith("good")
    assert "25.0%" in second and second.endswith("bad")
    rated = Printer(color=False).classify(["Fine."], read(values=np.array([4.25])))
    assert rated.split() == ["4.250", "Fine."]


def test_an_answer_that_is_none_says_so():
    outputs = {
        "answers": np.array([b"The cat", b"mat"]),
        "starts": np.array([0, 10]),
        "ends": np.array([7, 13]),
        "scores": np.array([5.0, 1.0]),
        "no_answer_scores": np.array([1.0, 4.0]),
        "answerable": np.array([True, False]),
        "truncated": np.array([False, True]),
    }
    there, not_there = Printer(color=False).answer(["Who?", "Where?"], outputs).split("\n\n")
    assert there.splitlines()[1].strip() == "The cat"
    assert "none, or mat" in not_there
    assert "characters 10 to 13" in not_there
    assert "not read" in not_there and "not read" not in there


def test_spans_have_a_line_each():
    outputs = {
        "labels": np.array([[b"PER", b"LOC"], [b"", b""]]),
        "starts": np.array([[0, 13], [0, 0]]),
        "ends": np.array([[3, 17], [0, 0]]),
        "scores": np.array([[0.9, 0.5], [0.0, 0.0]]),
        "num_spans": np.array([2, 0]),
        "truncated": np.array([False, True]),
    }
    told = Printer(color=False).tag(["Ada lives in Rome", "Nobody"], outputs)
    there, not_there = told.split("\n\n")
    assert there.splitlines()[1:] == [
        "   90% PER Ada  characters 0 to 3",
        "   50% LOC Rome  characters 13 to 17",
    ]
    assert "Nothing has a label." in not_there and "not read" in not_there


def test_all_tell_what_was_not_read():
    cut = np.array([True])
    printer = Printer(color=False)
    vectors, labels = np.float32([[1.0, 0.0]]), np.array([[b"good"]])
    for told in (
        printer.embed(["a"], {"embeddings": vectors, "truncated": cut}),
        printer.classify(["a"], {"values": np.array([1.0]), "truncated": cut}),
        printer.classify(
            ["a"], {"labels": labels, "probabilities": np.array([[1.0]]), "truncated": cut}
        ),
    ):
        assert told.count("The text is too long: its end was not read.") == 1

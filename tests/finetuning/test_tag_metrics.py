import pytest

from cocolm_tf.data.tags import chunks
from cocolm_tf.finetuning.tag_metrics import span_scores, span_scores_by_label

LABELS = [chunks(["B-X", "I-X", "O", "B-Y"]), chunks(["O", "B-X", "O"])]


def test_scores_by_hand():
    # Right: one X of two, no Y; found too: one Y with a wrong bound, one Z.
    found = [chunks(["B-X", "I-X", "B-Y", "I-Y"]), chunks(["O", "O", "B-Z"])]
    scores = span_scores(LABELS, found)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(1 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    table = span_scores_by_label(LABELS, found)
    assert table["X"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    assert table["Z"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_the_same_place_in_another_text_is_another_span():
    assert span_scores(LABELS, LABELS[::-1])["f1"] == 0.0
    assert span_scores(LABELS, LABELS) == dict.fromkeys(
        ("f1", "precision", "recall", "macro_f1"), 1.0
    )


def test_nothing_to_find_is_zero():
    assert span_scores([[], []], [[], []])["f1"] == 0.0
    assert span_scores([[]], [chunks(["B-X"])])["macro_f1"] == 0.0
    with pytest.raises(ValueError, match="2 texts, but predictions for 1"):
        span_scores([[], []], [[]])


def test_scores_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    true = [["B-X", "I-X", "O"], ["S-Y", "E-Y", "I-X", "O"]]
    found = [["I-X", "I-X", "B-X"], ["S-Y", "B-Y", "I-X", "O"]]
    scores = span_scores(*([chunks(tags) for tags in rows] for rows in (true, found)))
    assert scores["f1"] == pytest.approx(seqeval.f1_score(true, found))
    assert scores["macro_f1"] == pytest.approx(seqeval.f1_score(true, found, average="macro"))

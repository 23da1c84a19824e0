from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.analysis.detection import UNKNOWN, align
from cocolm_tf.analysis.inputs import CorruptedText, read_corrupted_texts
from cocolm_tf.errors import UserError

IDS = st.lists(st.integers(0, 4), max_size=12)


@pytest.mark.parametrize(
    ("original", "corrupted", "is_replaced", "originals"),
    [
        ([5, 6, 7], [5, 6, 7], [0, 0, 0], [5, 6, 7]),
        ([5, 6, 7], [5, 9, 7], [0, 1, 0], [5, 6, 7]),
        ([5, 6, 7], [5, 6, 9, 7], [0, 0, 1, 0], [5, 6, UNKNOWN, 7]),
        ([5, 6, 7], [5, 7], [0, 0], [5, 7]),
        ([5, 6, 7], [5, 8, 9, 7], [0, 1, 1, 0], [5, UNKNOWN, UNKNOWN, 7]),
        ([], [5], [1], [UNKNOWN]),
    ],
)
def test_tokens_that_were_put_in_are_found(original, corrupted, is_replaced, originals):
    found, stood = align(original, corrupted)
    assert found.tolist() == list(map(bool, is_replaced))
    assert stood.tolist() == originals


@given(IDS, IDS)
def test_what_was_not_put_in_stands_in_the_original_in_its_order(original, corrupted):
    is_replaced, originals = align(original, corrupted)
    kept = [token for token, replaced in zip(corrupted, is_replaced, strict=True) if not replaced]
    rest = iter(original)
    assert all(token in rest for token in kept)
    assert originals[~is_replaced].tolist() == kept
    changed = originals[is_replaced] != [
        t for t, r in zip(corrupted, is_replaced, strict=True) if r
    ]
    assert all(changed)


def test_both_forms_are_read(tmp_path: Path):
    expected = [CorruptedText("A cat.", "A cats.")]
    (tmp_path / "a.tsv").write_text("corrupted\toriginal\nA cats.\tA cat.\n")
    (tmp_path / "a.jsonl").write_text('{"original": "A cat.", "corrupted": "A cats."}\n')
    for name in ("a.tsv", "a.jsonl"):
        assert read_corrupted_texts(str(tmp_path / name)) == expected


def test_bad_rows_are_named(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_text("original\ttext\nA\tB\n")
    with pytest.raises(UserError, match=r"a\.tsv has no column .corrupted."):
        read_corrupted_texts(str(path))
    path.write_text("original\tcorrupted\nA\t \n")
    with pytest.raises(UserError, match=r"a\.tsv:2 has no corrupted: it needs original and"):
        read_corrupted_texts(str(path))
    with pytest.raises(UserError, match=": No such file"):
        read_corrupted_texts(str(path) + "x")

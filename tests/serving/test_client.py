from pathlib import Path

import numpy as np
import pytest

from cocolm_tf import UserError
from cocolm_tf.serving.client import Export, find_version


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

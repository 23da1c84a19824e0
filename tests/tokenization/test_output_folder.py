import pathlib

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.output_folder import check_output_folder, new_folder


def test_appears_when_complete(tmp_path: pathlib.Path):
    path = tmp_path / "parent" / "output"
    with new_folder(path) as folder:
        pathlib.Path(folder, "file").write_text("new")
        assert not path.exists()
    assert (path / "file").read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["output"]


def test_a_failure_leaves_what_was_there(tmp_path: pathlib.Path):
    path = tmp_path / "output"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(KeyboardInterrupt), new_folder(path) as folder:
        pathlib.Path(folder, "file").touch()
        raise KeyboardInterrupt
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["output"]


def test_replaces_what_was_there(tmp_path: pathlib.Path):
    path = tmp_path / "output"
    path.mkdir()
    (path / "old").touch()
    with new_folder(path) as folder:
        pathlib.Path(folder, "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["new"]


def test_check_protects_files(tmp_path: pathlib.Path):
    check_output_folder(tmp_path / "nothing")
    check_output_folder(tmp_path)
    (tmp_path / "file").touch()
    check_output_folder(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="not empty"):
        check_output_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        check_output_folder(tmp_path / "file", overwrite=True)

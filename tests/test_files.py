import errno
import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cocolm_tf import files
from cocolm_tf.errors import UserError, refusal


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """An empty folder of either kind."""
    if request.param == "local":
        yield str(tmp_path)
        return
    path = f"ram://{tmp_path.name}"
    files.make_dirs(path)
    yield path
    files.remove_tree(path)


def test_files_and_folders(folder: str):
    inner = files.join(folder, "inner")
    files.make_dirs(inner)
    files.make_dirs(inner)
    path = files.join(inner, "café.txt")
    assert not files.exists(path)
    files.write_text(path, "one\r\ntwo")
    files.write_text(files.join(inner, "b.txt"), "b")
    assert files.read_text(path) == "one\r\ntwo"
    assert files.size(path) == 8
    assert (files.exists(path), files.is_file(path), files.is_dir(path)) == (True, True, False)
    assert (files.exists(inner), files.is_file(inner), files.is_dir(inner)) == (True, False, True)
    assert files.list_dir(inner) == ["b.txt", "café.txt"]
    assert files.list_dir(files.join(folder, "nothing")) == []
    assert files.glob(files.join(inner, "*.txt")) == [files.join(inner, "b.txt"), path]
    assert files.glob(files.join(inner, "*.csv")) == []
    assert (files.name(path), files.name(inner + "/")) == ("café.txt", "inner")
    files.copy(path, files.join(inner, "b.txt"))
    assert files.read_text(files.join(inner, "b.txt")) == "one\r\ntwo"
    files.write_text(files.join(inner, "b.txt"), "c")
    assert files.read_text(files.join(inner, "b.txt")) == "c"
    files.rename(path, files.join(folder, "c.txt"))
    assert files.list_dir(inner) == ["b.txt"]
    assert files.read_bytes(files.join(folder, "c.txt")) == b"one\r\ntwo"
    files.remove(path)
    files.remove(files.join(folder, "c.txt"))
    files.remove_tree(inner)
    files.remove_tree(inner)
    assert files.list_dir(folder) == []


def test_paths():
    assert files.join("gs://bucket/configs", "../base.yaml") == "gs://bucket/configs/../base.yaml"
    assert files.absolute("gs://bucket/configs/../base.yaml/") == "gs://bucket/base.yaml"
    assert files.normal("file:///tmp/../data/") == "file:///data"
    assert files.normal("configs/./../base.yaml") == "base.yaml"
    assert files.join("configs", "gs://bucket/base.yaml") == "gs://bucket/base.yaml"
    assert files.relative("gs://bucket/run/seed_0", "gs://bucket/run/") == "seed_0"
    # Where it stands for something else, it is no scheme.
    assert not any(map(files.is_remote, ("a=gs://bucket", "/a://b", "C:/a", "a")))


def test_lines_are_added(folder: str):
    path = files.join(folder, "log.txt")
    for line in ("one\n", "zwölf\n"):
        with files.open_append(path) as file:
            file.write(line)
    assert files.read_text(path) == "one\nzwölf\n"
    files.sync(path)
    files.sync(folder)


def test_folders_within_folders(folder: str):
    for name in ("b/c/2", "b/1", "a"):
        files.make_dirs(files.join(folder, *name.split("/")[:-1]))
        files.write_text(files.join(folder, name), name)
    assert list(files.walk(folder)) == ["a", "b/1", "b/c/2"]
    assert list(files.walk(folder, "b/c")) == ["b/c/2"]
    assert list(files.walk(folder, "nothing")) == []
    assert not files.remove_empty(files.join(folder, "b", "c"))
    files.remove(files.join(folder, "b", "c", "2"))
    assert files.remove_empty(files.join(folder, "b", "c"))
    assert not files.remove_empty(files.join(folder, "b", "c"))
    assert files.list_dir(files.join(folder, "b")) == ["1"]


def test_reads_at_any_place(folder: str):
    path = files.join(folder, "numbers")
    content = bytes(range(256)) * 1000
    files.write_bytes(path, content)
    with files.open_read(path) as file:
        assert file.peek(1)[:1] == b"\0"
        assert file.read(3) == b"\0\1\2"
        assert file.seek(-10, io.SEEK_END) == len(content) - 10
        assert file.read(100) == content[-10:]
        file.seek(1000)
        assert (file.tell(), file.read(200_000)) == (1000, content[1000:201_000])


def test_what_is_missing_is_an_os_error(folder: str):
    path = files.join(folder, "nothing")
    for attempt in (files.read_bytes, files.size, lambda path: files.copy(path, path + "2")):
        with pytest.raises(FileNotFoundError) as raised:
            attempt(path)
        assert raised.value.filename == path
    with pytest.raises(FileNotFoundError), files.local_copy(path) as copy:
        files.read_bytes(copy)


def test_a_copy_is_local(folder: str):
    files.make_dirs(files.join(folder, "preset", "assets"))
    files.write_text(files.join(folder, "preset", "config.json"), "{}")
    files.write_text(files.join(folder, "preset", "assets", "words"), "a b")
    with files.local_copy(files.join(folder, "preset")) as copy:
        assert os.path.basename(copy) == "preset"
        assert pathlib.Path(copy, "config.json").read_text() == "{}"
        assert pathlib.Path(copy, "assets", "words").read_text() == "a b"
    assert os.path.exists(copy) == (not files.is_remote(folder))
    with files.local_copy(files.join(folder, "preset", "config.json")) as copy:
        assert pathlib.Path(copy).read_text() == "{}"
    with (
        pytest.raises(UserError, match=f"^{files.join(folder, 'preset')}/config.json: wrong$"),
        files.local_copy(files.join(folder, "preset"), ["config.json"]) as copy,
    ):
        assert files.is_remote(folder) == (os.listdir(copy) == ["config.json"])
        raise UserError(f"{copy}/config.json: wrong")


def test_a_folder_appears_when_complete(folder: str):
    path = files.join(folder, "parent", "output")
    with files.new_folder(path) as new:
        pathlib.Path(new, "inner").mkdir()
        for name in ("manifest.json", "inner/file"):
            pathlib.Path(new, name).write_text("new")
        assert not files.exists(path)
    assert files.list_dir(path) == ["inner", "manifest.json"]
    assert files.read_text(files.join(path, "inner", "file")) == "new"
    assert files.list_dir(files.join(folder, "parent")) == ["output"]
    assert not os.path.exists(new)


def test_a_failure_leaves_what_was_there(folder: str):
    path = files.join(folder, "output")
    files.make_dirs(path)
    files.write_text(files.join(path, "old"), "")
    with pytest.raises(KeyboardInterrupt), files.new_folder(path, overwrite=True) as new:
        pathlib.Path(new, "file").touch()
        raise KeyboardInterrupt
    assert files.list_dir(path) == ["old"]
    assert files.list_dir(folder) == ["output"]


def test_a_folder_is_replaced_only_if_asked(folder: str):
    path = files.join(folder, "output")
    files.make_dirs(path)
    files.write_text(files.join(path, "old"), "")
    with pytest.raises(UserError, match="not empty"), files.new_folder(path):
        pass
    with files.new_folder(path, overwrite=True) as new:
        pathlib.Path(new, "manifest.json").touch()
    assert files.list_dir(path) == ["manifest.json"]


@pytest.mark.parametrize("is_mounted", [False, True])
def test_a_writer_that_is_killed_leaves_nothing_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, is_mounted: bool
):
    path = str(tmp_path / "output") if is_mounted else f"ram://{tmp_path.name}/output"
    if is_mounted:
        _refuse_to_rename_folders(monkeypatch)
    with files.new_folder(path, last="config.json") as new:
        pathlib.Path(new, "config.json").write_text("old")
        pathlib.Path(new, "a").touch()
    before, copied = files.copy, []

    def copy_one(source: str, target: str) -> None:
        if copied:
            raise KeyboardInterrupt
        copied.append(target)
        before(source, target)

    monkeypatch.setattr(files, "copy", copy_one)
    with (
        pytest.raises(KeyboardInterrupt),
        files.new_folder(path, overwrite=True, last="config.json") as new,
    ):
        for name in ("a", "config.json", "z"):
            pathlib.Path(new, name).write_text("new")
    assert files.list_dir(path) == ["a"]


def test_where_folders_cannot_be_renamed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    _refuse_to_rename_folders(monkeypatch)
    for content in ("old", "new"):
        with files.new_folder(tmp_path / "output", overwrite=True) as new:
            pathlib.Path(new, "inner").mkdir()
            pathlib.Path(new, "inner", content).touch()
            pathlib.Path(new, "manifest.json").write_text(content)
        assert files.read_text(tmp_path / "output" / "manifest.json") == content
        assert files.list_dir(tmp_path / "output" / "inner") == [content]
    assert files.list_dir(tmp_path) == ["output"]


def _refuse_to_rename_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bucket that is mounted as a folder does."""
    before = os.replace

    def replace(source: str, target: str) -> None:
        if os.path.isdir(source):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), source)
        before(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_check_protects_files(folder: str):
    files.check_output_folder(files.join(folder, "nothing"))
    files.check_output_folder(folder)
    assert files.list_dir(folder) == []
    files.write_text(files.join(folder, "file"), "")
    files.check_output_folder(folder, overwrite=True)
    with pytest.raises(UserError, match="not empty"):
        files.check_output_folder(folder)
    with pytest.raises(UserError, match="^--output_dir=.*file is a file"):
        files.check_output_folder(files.join(folder, "file"), overwrite=True, flag="--output_dir")


@pytest.mark.parametrize("path", ["s3://bucket/vocabulary", "hf://someone/model", "gs:/bucket/run"])
def test_unknown_schemes(path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write_folder(path: str) -> None:
        with files.new_folder(path):
            pass

    attempts = [lambda path: files.check_writable(path, "--output_dir")]
    if files.is_remote(path):
        attempts += [files.exists, files.read_bytes, files.glob, files.make_dirs, write_folder]
    for attempt in attempts:
        with pytest.raises(UserError, match=path.partition("/")[0] + "//"):
            attempt(path)
    assert not list(tmp_path.iterdir())


def test_local_paths_need_no_tensorflow(tmp_path: pathlib.Path):
    code = (
        "import sys; from cocolm_tf import files\n"
        "files.check_output_folder(sys.argv[1])\n"
        "with files.new_folder(sys.argv[1]) as new: files.write_text(new + '/file', 'text')\n"
        "with files.local_copy(sys.argv[1]) as copy: files.read_text(copy + '/file')\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "new"], check=True)


def test_what_a_store_refuses_is_one_line():
    with pytest.raises(OSError, match="directory") as raised:
        files.make_dirs("ram://refusal/folder")
        files.write_text("ram://refusal/folder", "")
    told = refusal(raised.value)
    assert told is not None
    assert "ram://refusal/folder" in told
    assert "\n" not in told

import bz2
import codecs
import gzip
import io
import lzma
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tensorflow as tf
from absl import logging
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cocolm_tf import text_files
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import BadRecords, cut_at_space, matching_files, read_text, text_lines

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXT = "Crêpes, café.\r\nいろは\u2028\x85\x0b\n\n😀\n"


def with_arrow(codec: str, content: bytes) -> bytes:
    buffer = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(buffer, codec) as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: with_arrow("zstd", content),
    "lz4": lambda content: with_arrow("lz4", content),
}


@pytest.fixture
def file(tmp_path: Path):
    """Writes a file and returns its path."""

    def write(content: bytes, name: str = "a.txt") -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.sampled_from(sorted(MARKS)),
    st.sampled_from([None, *COMPRESS]),
    st.integers(1, 9),
)
def test_lines_are_read_as_written(
    file, monkeypatch, lines, end, ends_with_one, encoding, compression, chunk
):
    """Whatever the ends of lines, the encoding, the compression, and where chunks end."""
    monkeypatch.setattr(text_files, "_HEAD", 64)
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    text = end.join(["begins", *lines]) + (end if ends_with_one else "")
    content = MARKS[encoding] + text.encode(encoding)
    path = file(COMPRESS[compression](content) if compression else content)
    found = list(text_lines(path))
    assert "".join(found) == text == read_text(path)
    expected = (
        ["begins", *lines] if ends_with_one or lines[-1:] != [""] else ["begins", *lines[:-1]]
    )
    assert [line.removesuffix(end) for line in found] == expected


def test_a_line_end_that_two_chunks_share(file, monkeypatch):
    monkeypatch.setattr(text_files, "_HEAD", 4)
    monkeypatch.setattr(text_files, "_CHUNK", 1)
    assert list(text_lines(file(b"a\rb\r\nc\r"))) == ["a\r", "b\r\n", "c\r"]
    assert list(text_lines(file(b"abc\r\nd\re\n"))) == ["abc\r\n", "d\re\n"]
    assert list(text_lines(file(b"abc\rd\n"))) == ["abc\r", "d\n"]


def test_a_carriage_return_in_a_line_is_a_character(file):
    assert list(text_lines(file(b"a\nb\rc\n"))) == ["a\n", "b\rc\n"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "cp932", "gb18030"])
def test_another_encoding_is_named(file, encoding):
    text = "いろは\n" if encoding in ("cp932", "gb18030") else "Crêpes\n"
    assert read_text(file(text.encode(encoding)), encoding) == text
    # A mark is a fact, and a flag may be for other files.
    assert read_text(file(text.encode("utf-16")), encoding) == text
    with pytest.raises(UserError):
        read_text(file(text.encode(encoding) * 20))


@pytest.mark.parametrize("name", ["nonsense", "base64", "utf-8\0"])
def test_an_unknown_encoding_is_named(file, name):
    with pytest.raises(UserError, match="^--encoding=.* is no encoding of text that Python knows"):
        read_text(file(b"a"), name)


@pytest.mark.parametrize(
    ("encoding", "advice"),
    [
        (None, "Convert the file to UTF-8."),
        ("", "If it is in another encoding, name that: --encoding=cp1252, say."),
        ("ascii", "--encoding=ascii is not the right one."),
    ],
)
def test_the_line_and_the_byte_of_another_encoding_are_named(file, monkeypatch, encoding, advice):
    monkeypatch.setattr(text_files, "_HEAD", 4)
    monkeypatch.setattr(text_files, "_CHUNK", 5)
    path = file(b"One.\nTwo.\nThe caf\xe9.\n")
    name = encoding or "utf-8"
    with pytest.raises(UserError) as caught:
        read_text(path, encoding)
    assert (
        str(caught.value)
        == f"{path}:3 is not {name.upper()}: byte 17 of the text is 0xE9. {advice}"
    )


def test_some_bad_lines_may_be_let_pass(file, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
    # A character that replaces another in the file itself is no damage done here.
    path = file(b"fine \xef\xbf\xbd\n" * 98 + b"caf\xe9 \xe9\n" + b"fine\n")
    lines = list(text_lines(path, "", BadRecords(path, 0.01)))
    assert lines[98:] == ["caf\ufffd \ufffd\n", "fine\n"]
    (warning,) = warnings
    assert f"{path}:99 is not UTF-8" in warning and "1 of 100 lines" in warning
    with pytest.raises(UserError, match="1 of 100 lines are bad.*--max_bad_share"):
        list(text_lines(path, "", BadRecords(path, 0.009)))


def test_bad_records_are_those_of_the_share_and_no_more():
    records = BadRecords("a", 0.5)
    records.read = 2
    records.add("a:1 is bad")
    records.finish()
    records.read = 3
    records.lose("a:2 is gone", 3)  # Of six, four.
    with pytest.raises(UserError, match=r"^a:1 is bad, and 4 of 6 lines are bad. --max_bad_share"):
        records.finish()
    for share in (None, 0.0):
        with pytest.raises(UserError, match="^a:1 is bad"):
            BadRecords("a", share).add("a:1 is bad")


@settings(max_examples=100)
@given(st.text("ab \n", max_size=60), st.integers(1, 20))
@example("a a       a", 7)
def test_a_text_is_cut_before_white_space_where_it_has_some(text, longest):
    parts = cut_at_space(text, longest)
    assert all(len(part) <= longest for part in parts)
    # What is lost is white space that would be a part by itself.
    assert "".join("".join(parts).split()) == "".join(text.split())
    end = 0
    for part in parts[:-1]:
        end = text.index(part, end) + len(part)
        assert text[end].isspace() or not any(map(str.isspace, part.strip()))
        assert not part[-1:].isspace()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab ", max_size=30), max_size=6), st.integers(1, 9), st.integers(1, 12))
def test_long_lines_come_in_parts(file, monkeypatch, lines, chunk, longest):
    monkeypatch.setattr(text_files, "_HEAD", 8)
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    path = file("\n".join(lines).encode())
    parts = list(text_lines(path, longest=longest))
    assert all(len(part.removesuffix("\n")) <= longest for part in parts)
    found = "".join(parts).split("\n")
    assert [line.replace(" ", "") for line in found] == [
        line.replace(" ", "") for line in lines or [""]
    ]


def test_a_file_that_is_wrong_throughout_is_not_read_to_its_end(file, monkeypatch):
    monkeypatch.setattr(text_files, "_CHUNK", 1 << 10)
    path = file(b"caf\xe9\n" * 50_000)
    lines = text_lines(path, "", BadRecords(path, 0.1))
    with pytest.raises(UserError):
        for number, _ in enumerate(lines):
            assert number < 40_000


def test_no_damage_is_let_pass_where_characters_have_several_bytes(file):
    path = file(b"\x00\xd8a\x00" * 9)
    with pytest.raises(UserError, match="is not UTF-16-LE"):
        list(text_lines(path, "utf-16-le", BadRecords(path, 1.0)))


def test_utf_16_without_a_mark_is_reported(file):
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        path = file(("Plain café.\n" * 20).encode(encoding))
        with pytest.raises(
            UserError, match=f"looks like {encoding.upper()} .*--encoding={encoding}"
        ):
            read_text(path, "")
    with pytest.raises(UserError, match="--encoding=utf-16-le or --encoding=utf-16-be"):
        read_text(file("a\n".encode("utf-16-le")), "utf-16")


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a text\n" * 99)
    return buffer.getvalue()


def tar_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue()


def parquet_file() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a text"] * 99}), buffer)
    return buffer.getvalue()


NO_TEXTS = [
    (zip_archive(), "a zip archive"),
    (tar_archive(), "a tar archive"),
    (gzip.compress(tar_archive()), "a tar archive"),
    (parquet_file(), "a Parquet file"),
    (gzip.compress(gzip.compress(b"text")), "gzip data inside other compressed data"),
    (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
    (b"\x7fELF\x02\x01\x01\x00", "a program"),
    (np.random.default_rng(0).bytes(9999), "binary data and not text"),
    (bytes(99), "binary data and not text, by its 99 NUL bytes"),
]


# Named by their kinds: archives hold the time, and test processes must agree on names.
@pytest.mark.parametrize(("content", "kind"), NO_TEXTS, ids=[kind for _, kind in NO_TEXTS])
@pytest.mark.parametrize("encoding", [None, ""])
def test_what_is_no_text_is_named(file, content, kind, encoding):
    with pytest.raises(UserError, match=kind) as caught:
        read_text(file(content), encoding)
    assert "\n" not in str(caught.value)


def test_what_only_begins_like_another_file_is_text(file):
    for text in ("PAR1 is a gene.\n", "%PDF- begins a PDF.\n", "BZh is no word.\n", "a\0b, say\n"):
        assert read_text(file(text.encode())) == text


@pytest.mark.parametrize("compression", COMPRESS)
def test_broken_compression_is_named(file, compression):
    whole = COMPRESS[compression](TEXT.encode() * 20_000)
    with pytest.raises(UserError, match=f"a.txt is a broken {compression} file: "):
        read_text(file(whole[:-9]))
    # What comes before the damage is there for those who let the rest go.
    records = BadRecords("", 0.5)
    records.path = file(whole[:-9])
    found = "".join(text_lines(records.path, records=records))
    assert (TEXT * 20_000).startswith(found.rstrip("\ufffd"))
    assert records.bad in (1, 2) and (records.read > 1000 or compression in ("bzip2", "zstd"))
    assert read_text(file(whole + whole)) == TEXT * 40_000
    assert read_text(file(COMPRESS[compression](b""))) == ""


def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="^/nowhere.txt: No such file or directory.$"):
        read_text("/nowhere.txt")
    with pytest.raises(UserError, match=": Is a directory.$"):
        read_text(str(tmp_path))


def test_a_pipe_can_be_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    content = gzip.compress(TEXT.encode())
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    assert read_text(str(tmp_path / "pipe")) == TEXT
    writer.join()


def test_files_that_only_tensorflow_reaches():
    for name, content in (("a,b.txt", TEXT.encode()), ("c.txt", gzip.compress(TEXT.encode()))):
        with tf.io.gfile.GFile(f"ram://text_files/{name}", "wb") as file:
            file.write(content)
    for name in ("a,b.txt", "c.txt"):
        assert read_text(f"ram://text_files/{name}") == TEXT
    assert matching_files("ram://text_files/a,b.txt,ram://text_files/*.txt") == [
        "ram://text_files/a,b.txt",
        "ram://text_files/c.txt",
    ]
    with pytest.raises(UserError, match="^ram://text_files/none.txt: "):
        read_text("ram://text_files/none.txt")
    with pytest.raises(UserError, match="no file matches"):
        matching_files("ram://text_files/*.csv")


def test_patterns(tmp_path: Path):
    names = ["a.txt", "b.txt", "data1", "data[1],v2.txt", "data[1].txt", "x,y.txt"]
    for name in names:
        (tmp_path / name).write_text("text")
    (tmp_path / "folder.txt").mkdir()

    def found(*patterns: str) -> list[str]:
        pattern = ",".join(f" {tmp_path}/{pattern}" for pattern in patterns)
        return [os.path.relpath(path, tmp_path) for path in matching_files(pattern)]

    for name in names:
        assert found(name) == [name]
    assert found("data[1],v2.txt", "a.txt", "x,y.txt") == ["a.txt", "data[1],v2.txt", "x,y.txt"]
    assert found("*.txt", "a*") == [name for name in names if name != "data1"]
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    assert found("link.txt", "./a.txt", f"../{tmp_path.name}/a.txt", "link.*") == ["a.txt"]
    (tmp_path / "link.txt").unlink()
    assert found("x[,]*.txt", "data[[]1].txt") == ["data[1].txt", "x,y.txt"]
    assert found("data[0-9]") == ["data1"]
    for missing in ("c*.txt", "folder*"):
        with pytest.raises(UserError, match="no file matches"):
            found("*.txt", missing)
    with pytest.raises(UserError, match="is no pattern"):
        matching_files(" , ")

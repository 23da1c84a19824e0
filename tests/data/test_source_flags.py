from pathlib import Path

import pytest
from absl import flags

from cocolm_tf.data.source_flags import (
    define_source_flags,
    documents_from_flags,
    source_from_flags,
)
from cocolm_tf.data.sources import DocstringSource, TfdsSource
from cocolm_tf.errors import UserError


def parsed(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    define_source_flags(values)
    values(["program", *arguments])
    return values


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give one of --input, --tfds and --docstrings .none of them was given"),
        (["--input=a", "--docstrings"], "--input and --docstrings was given"),
        (["--docstrings", "--tfds_split=test"], "--tfds_split goes with --tfds, not"),
        (["--tfds=a", "--one_document_per_line"], "--one_document_per_line goes with --input"),
        (["--input=a", "--jsonl_field=b", "--one_document_per_line"], "exclude each other"),
        (["--docstrings", "--encoding=cp1252"], "--encoding goes with --input, not with --docst"),
    ],
)
def test_contradictions_are_refused(arguments: list[str], complaint: str):
    with pytest.raises(UserError, match=complaint):
        documents_from_flags(parsed(*arguments))


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["--input=a"], {"input": "a", "one_document_per_line": False}),
        (
            ["--input=a", "--jsonl_field=b"],
            {"input": "a", "one_document_per_line": False, "jsonl_field": "b"},
        ),
        (
            ["--input=a", "--encoding=cp1252", "--max_bad_share=0.1"],
            {
                "input": "a",
                "one_document_per_line": False,
                "encoding": "cp1252",
                "max_bad_share": 0.1,
            },
        ),
    ],
)
def test_the_description_has_what_decides_the_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], source: dict
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    assert source_from_flags(parsed(*arguments)).describe() == source


def test_text_files(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    assert list(documents_from_flags(parsed(f"--input={path}"))) == ["one\ntwo"]
    arguments = [f"--input={path}", "--one_document_per_line"]
    assert list(documents_from_flags(parsed(*arguments))) == ["one", "two"]


def test_json_lines(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n')
    arguments = [f"--input={path}", "--jsonl_field=body"]
    assert list(documents_from_flags(parsed(*arguments))) == ["one"]


def test_another_encoding_and_damage(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\n")
    assert list(documents_from_flags(parsed(f"--input={path}", "--encoding=cp1252"))) == ["café"]
    found = documents_from_flags(parsed(f"--input={path}", "--max_bad_share=1"))
    assert list(found) == ["caf\ufffd"]
    with pytest.raises(UserError, match="--encoding=cp1252, say; --max_bad_share"):
        list(documents_from_flags(parsed(f"--input={path}")))


def test_the_other_sources(monkeypatch: pytest.MonkeyPatch):
    source = source_from_flags(parsed("--docstrings"))
    assert isinstance(source, DocstringSource) and source.describe() == {"docstrings": True}
    monkeypatch.setattr(TfdsSource, "find", lambda *args, **kwargs: (args, kwargs))
    arguments = ["--tfds=a/b", "--tfds_field=c", "--tfds_split=d"]
    found = source_from_flags(parsed(*arguments))
    assert found == (("a/b",), {"field": "c", "split": "d"})
    source = TfdsSource((), *found[0], **found[1])
    assert source.describe() == {"tfds": "a/b", "tfds_field": "c", "tfds_split": "d"}

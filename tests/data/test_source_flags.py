from pathlib import Path

import pytest
from absl import flags
from in_process import given_flags

from cocolm_tf.data.cleaning import Cleaning, Deduplication
from cocolm_tf.data.source_flags import (
    check_runner,
    cleaning_from_flags,
    define_cleaning_flags,
    define_runner_flag,
    define_source_flags,
    source_from_flags,
)
from cocolm_tf.data.sources import DocstringSource, Source, TfdsSource
from cocolm_tf.errors import UserError


def define_flags() -> None:
    define_source_flags()
    define_cleaning_flags()


def source_of(*arguments: str) -> Source:
    with given_flags(define_flags, *arguments):
        return source_from_flags()


def cleaning_of(*arguments: str) -> tuple[Cleaning | None, Deduplication | None]:
    with given_flags(define_flags, *arguments):
        return cleaning_from_flags()


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
        source_of(*arguments)


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
    assert source_of(*arguments).describe() == source


def test_text_files(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    assert list(source_of(f"--input={path}")) == ["one\ntwo"]
    arguments = [f"--input={path}", "--one_document_per_line"]
    assert list(source_of(*arguments)) == ["one", "two"]


def test_json_lines(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n')
    arguments = [f"--input={path}", "--jsonl_field=body"]
    assert list(source_of(*arguments)) == ["one"]


def test_another_encoding_and_damage(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\n")
    assert list(source_of(f"--input={path}", "--encoding=cp1252")) == ["café"]
    found = source_of(f"--input={path}", "--max_bad_share=1")
    assert list(found) == ["caf\ufffd"]
    with pytest.raises(UserError, match="--encoding=cp1252, say; --max_bad_share"):
        list(source_of(f"--input={path}"))


def test_the_other_sources(monkeypatch: pytest.MonkeyPatch):
    source = source_of("--docstrings")
    assert isinstance(source, DocstringSource) and source.describe() == {"docstrings": True}
    monkeypatch.setattr(TfdsSource, "find", lambda *args, **kwargs: (args, kwargs))
    arguments = ["--tfds=a/b", "--tfds_field=c", "--tfds_split=d"]
    found = source_of(*arguments)
    assert found == (("a/b",), {"field": "c", "split": "d"})
    source = TfdsSource((), *found[0], **found[1])
    assert source.describe() == {"tfds": "a/b", "tfds_field": "c", "tfds_split": "d"}


def test_cleaning_is_off_unless_asked_for():
    assert cleaning_of() == (None, None)
    arguments = ["--min_words=2", "--max_words=9", "--min_letter_share=0.5"]
    cleaning, deduplication = cleaning_of(
        *arguments, "--max_repeated_lines=0.3", "--deduplicate=exact"
    )
    assert cleaning == Cleaning(2, 9, 0.5, 0.3)
    assert deduplication == Deduplication("exact", cleaning=cleaning)
    assert deduplication.describe() == {"deduplicate": "exact"}


def test_near_duplicates_have_a_threshold_and_n_grams():
    pytest.importorskip("datasketch", reason="finds near duplicates")
    arguments = ["--deduplicate=near", "--deduplicate_threshold=0.7", "--deduplicate_ngram=3"]
    cleaning, deduplication = cleaning_of(*arguments)
    assert (cleaning, deduplication) == (None, Deduplication("near", 0.7, 3))
    assert deduplication.describe() == {
        "deduplicate": "near",
        "deduplicate_threshold": 0.7,
        "deduplicate_ngram": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--min_words=9", "--max_words=8"], "--max_words=8 is less than --min_words=9"),
        (["--deduplicate_ngram=3"], "--deduplicate_ngram goes with --deduplicate=near"),
        (
            ["--deduplicate=exact", "--deduplicate_threshold=0.7"],
            "--deduplicate_threshold goes with --deduplicate=near",
        ),
    ],
)
def test_contradictions_of_cleaning_are_refused(arguments: list[str], complaint: str):
    with pytest.raises(UserError, match=complaint):
        cleaning_of(*arguments)


def test_what_comes_after_the_flags_is_for_beam():
    with given_flags(define_runner_flag):
        assert flags.FLAGS.runner == "local"
    check_runner("local", [])
    check_runner("DirectRunner", ["--direct_num_workers=4"])
    with pytest.raises(UserError, match="argument 'again': flags are written --name=value.$"):
        check_runner("DirectRunner", ["again"])
    with pytest.raises(UserError, match="'--a=b': .*; those of Apache Beam go with its --runner"):
        check_runner("local", ["--a=b"])

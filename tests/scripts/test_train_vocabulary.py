import pathlib

import pytest
from programs import Program

train_vocabulary = Program("train_vocabulary.py")


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "corpus.txt"
    path.write_text("The cat sat on the mat.\nIt slept.\n\nThe dog did not like the cat.\n" * 5)
    return path


def test_help_shows_all_flags():
    told = train_vocabulary.help()
    for flag in ("input", "docstrings", "vocabulary_size", "byte_fallback", "num_workers"):
        assert flag in told


def test_mistakes_are_one_line(tmp_path: pathlib.Path, corpus: pathlib.Path):
    flags = ["--vocabulary_size=60", f"--output_dir={tmp_path / 'vocabulary'}"]
    full = ["--vocabulary_size=60", f"--output_dir={tmp_path}", f"--input={corpus}"]
    for arguments, complaint in (
        (flags, "--input"),
        ([*flags, f"--input={tmp_path}/nothing-*"], "nothing-*"),
        (full, "--overwrite"),
        ([*flags, f"--input={corpus}", "extra"], "unexpected argument"),
    ):
        (said,) = train_vocabulary.mistakes(*arguments)
        assert complaint in said


@pytest.mark.slow
def test_writes_a_vocabulary_and_says_where(tmp_path: pathlib.Path, corpus: pathlib.Path):
    output = tmp_path / "vocabulary"
    flags = [f"--input={corpus}", f"--output_dir={output}", "--lowercase"]
    assert "more than" in train_vocabulary.mistakes(*flags, "--vocabulary_size=5000")[-1]
    assert not output.exists()
    result = train_vocabulary(*flags, "--vocabulary_size=60")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(output)
    assert (
        len((output / "assets/tokenizer/dict.txt").read_text(encoding="utf-8").splitlines()) == 55
    )

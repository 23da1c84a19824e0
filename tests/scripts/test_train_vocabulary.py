import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "train_vocabulary.py"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, check=False
    )


def last_error(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "corpus.txt"
    path.write_text("The cat sat on the mat.\nIt slept.\n\nThe dog did not like the cat.\n" * 5)
    return path


def test_help_shows_all_flags():
    result = run("--help")
    for flag in ("input", "docstrings", "vocabulary_size", "lowercase", "output_dir", "overwrite"):
        assert flag in result.stdout


def test_mistakes_are_one_line(tmp_path: pathlib.Path, corpus: pathlib.Path):
    flags = ["--vocabulary_size=60", f"--output_dir={tmp_path / 'vocabulary'}"]
    assert "--input" in last_error(run(*flags))
    assert "nothing-*" in last_error(run(*flags, f"--input={tmp_path}/nothing-*"))
    full = ["--vocabulary_size=60", f"--output_dir={tmp_path}", f"--input={corpus}"]
    assert "--overwrite" in last_error(run(*full))
    assert "unexpected argument" in last_error(run(*flags, f"--input={corpus}", "extra"))


@pytest.mark.slow
def test_writes_a_vocabulary_and_says_where(tmp_path: pathlib.Path, corpus: pathlib.Path):
    output = tmp_path / "vocabulary"
    flags = [f"--input={corpus}", f"--output_dir={output}", "--lowercase"]
    assert "more than" in last_error(run(*flags, "--vocabulary_size=5000"))
    assert not output.exists()
    result = run(*flags, "--vocabulary_size=60")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(output)
    assert len((output / "dict.txt").read_text(encoding="utf-8").splitlines()) == 55

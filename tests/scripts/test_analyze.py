import os
import subprocess
import sys
from pathlib import Path

import pytest

from cocolm_tf.analysis.run_comparison import X_AXES

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "scripts" / "analyze.py")]
LINE = '{"step": %d, "split": "%s", "seconds": %d, "loss": 9.0, "positive_cosine": 0.5}\n'


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A run that still goes on."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("trainer: {batch_size: 8}\n")
    lines = [LINE % (step, "train", step) for step in (5, 10)] + [LINE % (10, "validation", 11)]
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


def test_help_names_every_axis():
    done = run("--help")
    assert done.returncode == 0
    assert "|".join(X_AXES) in done.stdout.replace("\n", "").replace(" ", "")


@pytest.mark.slow
def test_runs_are_compared(model_dir: Path, tmp_path: Path):
    done = run(
        f"--model_dir={model_dir}",
        f"--model_dir=again={model_dir}",
        "--x_axis=hours",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "again" in page
    assert {file.stem for file in (tmp_path / "out").glob("*.svg")} == {"loss", "cosine"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--output_dir"),
        (["--output_dir=out"], "there is nothing to analyze"),
        (["--output_dir=out", "--preset=/nowhere"], "--preset=/nowhere is not a folder."),
        (["--output_dir=out", "--model_dir=a=/nowhere"], "--model_dir=/nowhere is not a folder."),
        (["--output_dir=out", "--preset=."], "--preset needs --pairs, --data or --minimal_pairs"),
        (["--output_dir=out", "--preset=a=.", "--preset=a=.", "--pairs=p"], "two are called 'a'"),
        (["--output_dir=out", "--model_dir=.", "--pairs=p"], "--pairs is what presets are looked"),
        (["--output_dir=out", "--preset=.", "--corruption=none"], "--corruption"),
        (["--output_dir=out", "--texts=1"], "--texts"),
        (["--output_dir=out", "--x_axis=years"], "--x_axis"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "import time:" not in line]
    assert complaint in "\n".join(complaints) + done.stdout
    assert "absl" in done.stderr and "tensorflow" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

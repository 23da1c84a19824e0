import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "scripts" / "export_checkpoints.py")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--model_dir"),
        (["--model_dir=/nowhere"], "--model_dir=/nowhere is not a folder."),
        (["--model_dir=.", "--step=x"], "--step"),
    ],
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    arguments: list[str], complaint: str
):
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "import time:" not in line]
    assert complaint in "\n".join(complaints)
    assert "absl" in done.stderr and "tensorflow" not in done.stderr
    assert "Traceback" not in done.stderr

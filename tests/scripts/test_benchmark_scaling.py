import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "scripts" / "benchmark_scaling.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

TINY = """
model: {vocabulary_size: 97, num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 16}
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
trainer: {batch_size: 2}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_size_is_measured_beside_its_double(config_file: Path):
    done = run(
        f"--config_file={config_file}",
        "--axes=trainer.batch_size",
        "--factors=2",
        "--rounds=2",
        "--warmup_steps=0",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    one, two = result["axes"]["trainer.batch_size"]
    assert (one["value"], two["value"]) == (2, 4)
    assert two["time_growth"]["median"] > 0
    assert any(line.split()[:2] == ["trainer.batch_size", "4"] for line in table)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file=/nowhere.yaml"], "--config_file=/nowhere.yaml does not exist."),
        (["--factors=2,many"], "--factors has 'many'"),
        (["--factors=-1"], "--factors has '-1'"),
        (["--rounds=0"], "--rounds"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    config_file: Path, arguments: list[str], complaint: str
):
    done = run(f"--config_file={config_file}", *arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "import time:" not in line]
    assert complaint in "\n".join(complaints)
    assert "absl" in done.stderr and "tensorflow" not in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_axis():
    from cocolm_tf.benchmarking.scaling import AXES

    told = "".join(run("--help").stdout.split())  # which breaks lines within words
    for axis in AXES:
        assert axis in told

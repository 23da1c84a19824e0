import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_presets import write_tiny_preset

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "scripts" / "benchmark_serving.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_an_export_and_onnx_answer_in_turn(tmp_path: Path):
    at_hand = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    contenders = ["float32", "onnx"] if at_hand else ["float32"]
    done = run(
        f"--preset={write_tiny_preset(tmp_path)}",
        f"--contenders={','.join(contenders)}",
        "--clients=1,3",
        "--rounds=1",
        "--seconds=0.1",
        "--texts=5",
        "--longest=8",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)["signatures"]["embed"]
    assert set(found) == {f"{name}{how}" for name in contenders for how in ("", " batched")}
    for name, by_clients in found.items():
        assert set(by_clients) == {"1", "3"}
        for one in by_clients.values():
            assert one["requests_per_second"] > 0
            assert one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
            assert ("throughput" in one) == at_hand
        assert len([line for line in table if line.startswith(f"{name}  ")]) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "there is nothing to measure: give --preset, --classifier or both."),
        (["--preset=x", "--clients=1,0"], "--clients=1,0 must be positive numbers."),
        (["--preset=x", "--contenders=torch"], "--contenders has 'torch'"),
        (["--preset=x", "--rounds=0"], "--rounds"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    arguments: list[str], complaint: str
):
    done = run(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "import time:" not in line]
    assert complaint in "\n".join(complaints)
    assert "tensorflow" not in done.stderr and "Traceback" not in done.stderr

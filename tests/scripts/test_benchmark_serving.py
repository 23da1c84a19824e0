import importlib.util
import json
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import write_tiny_preset

benchmark_serving = Program("benchmark_serving.py", timeout=600)


@pytest.mark.slow
def test_an_export_and_onnx_answer_in_turn(tmp_path: Path):
    at_hand = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    contenders = ["float32", "onnx"] if at_hand else ["float32"]
    done = benchmark_serving(
        f"--preset={write_tiny_preset(tmp_path)}",
        f"--contenders={','.join(contenders)}",
        "--clients=1,3",
        "--rounds=1",
        "--seconds=0.1",
        "--texts=5",
        "--longest=8",
        "--threads=2",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)["signatures"]["embed"]
    ways = ("", " batched", ", 1 thread", " batched, 1 thread")
    assert set(found) == {f"{name}{way}" for name in contenders for way in ways}
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
    (said,) = benchmark_serving.mistakes_before_tensorflow(*arguments)
    assert complaint in said

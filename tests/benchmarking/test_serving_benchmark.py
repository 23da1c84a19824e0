"""Clients that ask and wait, and how exports answer them."""

import importlib.util
import threading
import time
from pathlib import Path

import pytest
from benchmarks.serving import measure_load, texts_of_mixed_lengths
from in_one_process import run_benchmark
from programs import Program
from tiny_presets import write_tiny_preset

benchmark_serving = Program("benchmark_serving.py")


def test_clients_wait_for_their_answers():
    found = measure_load(lambda text: time.sleep(0.01), ["a"], clients=1, seconds=0.2)
    # No faster than the answers come; how much slower is the machine's business.
    assert 0 < found["requests_per_second"] <= 100
    assert 10 <= found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]


def test_as_many_ask_at_once_as_there_are_clients():
    together = threading.Barrier(3, timeout=10)
    asked = []

    def ask(text: str) -> None:
        asked.append(text)
        # Passed by no less than three.
        if len(asked) <= 3:
            together.wait()

    measure_load(ask, ["a", "b"], clients=3, seconds=0.05)
    assert set(asked) == {"a", "b"}


def test_a_failure_is_raised():
    def ask(text: str) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        measure_load(ask, ["a"], clients=2, seconds=5.0)


def test_texts_are_short_and_long_alike():
    texts = texts_of_mixed_lengths((str(n) for n in range(50)), count=2000, longest=64)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 1 and max(lengths) in (63, 64)
    # As many below 8 as from there on.
    assert sum(length < 8 for length in lengths) / 2000 == pytest.approx(0.5, abs=0.05)
    words = " ".join(texts).split()
    assert words[:3] == ["0", "1", "2"] and words[50] == "0"
    again = texts_of_mixed_lengths((str(n) for n in range(50)), count=2000, longest=64)
    assert texts == again


@pytest.mark.slow
def test_an_export_and_onnx_answer_in_turn(tmp_path: Path):
    at_hand = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    contenders = ["float32", "onnx"] if at_hand else ["float32"]
    lines, result = run_benchmark(
        "benchmark_serving.py",
        f"--preset={write_tiny_preset(tmp_path)}",
        f"--contenders={','.join(contenders)}",
        "--clients=1,3",
        "--rounds=1",
        "--seconds=0.1",
        "--texts=5",
        "--longest=8",
        "--threads=2",
    )
    found = result["signatures"]["embed"]
    ways = ("", " batched", ", 1 thread", " batched, 1 thread")
    assert set(found) == {f"{name}{way}" for name in contenders for way in ways}
    for name, by_clients in found.items():
        assert set(by_clients) == {"1", "3"}
        for one in by_clients.values():
            assert one["requests_per_second"] > 0
            assert one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
            assert ("throughput" in one) == at_hand
        assert len([line for line in lines if line.startswith(f"{name}; clients: ")]) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "there is nothing to measure: give --preset, --classifier or both."),
        (["--preset=x", "--clients=1,0"], "--clients=1,0 must be positive numbers."),
        (["--preset=x", "--contenders=torch"], "--contenders has 'torch'"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    arguments: list[str], complaint: str
):
    (said,) = benchmark_serving.mistakes_before_tensorflow(*arguments)
    assert complaint in said

import json
from pathlib import Path

import numpy as np
import pytest
from in_one_process import run_benchmark
from programs import Program
from tiny_presets import opinions, write_tiny_preset

benchmark_finetuning = Program("benchmark_finetuning.py", timeout=600)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Those of a small SST-2 and a tiny model."""
    rows = "".join(f"{text}\t{label}\n" for text, label in opinions(40))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    return [
        f"--preset={write_tiny_preset(tmp_path)}",
        "--task=sst2",
        f"--data_dir={tmp_path}",
        "--params_override=trainer.batch_size=16",
    ]


@pytest.mark.slow
def test_every_way_to_step_is_timed(flags):
    lines, result = run_benchmark("benchmark_finetuning.py", *flags, "--batches=3", "--rounds=2")
    # The third batch of an epoch has eight of forty rows.
    assert (result["rows"], result["batches"], result["rounds"]) == (40, 3, 2)
    assert set(result["ways"]) == {"unknown_shapes", "static_shapes"}
    assert result["ways"]["unknown_shapes"]["cpu_speedup"]["median"] == 1
    for name, way in result["ways"].items():
        assert way["examples_per_second"] == 40 / way["seconds"]["median"]
        assert any(line.startswith(name) for line in lines)


def test_batches_are_exported(flags, tmp_path: Path):
    path = tmp_path / "batches.npz"
    done = benchmark_finetuning(*flags, "--batches=2", f"--export={path}")
    assert done.returncode == 0, done.stderr
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    sizes = json.loads(str(arrays.pop("sizes")))
    assert sizes["classes"] == 2 and sizes["optimizer"]["beta_2"] == 0.98
    names = ("token_ids", "padding_mask", "label", "weights")
    assert set(arrays) == {f"batch{number}/{name}" for number in (0, 1) for name in names}
    assert {len(array) for array in arrays.values()} == {16}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset=/nowhere", "--task=sst2"], "--preset=/nowhere is not a preset"),
        (["--preset=p", "--task=sst2", "--config_file=/no.yaml"], "/no.yaml does not exist"),
        (["--task=sst2"], "--preset"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], complaint: str):
    (said,) = benchmark_finetuning.mistakes(*arguments)
    assert complaint in said

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_presets import opinions, write_tiny_preset

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "scripts" / "benchmark_finetuning.py")]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_every_way_to_batch_is_timed(tmp_path: Path):
    preset = write_tiny_preset(tmp_path)
    rows = "".join(f"{text}\t{label}\n" for text, label in opinions(40))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    done = run(
        f"--preset={preset}",
        "--task=sst2",
        f"--data_dir={tmp_path}",
        "--params_override=trainer.batch_size=2",
        "--rows=32",
        "--rounds=2",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert (result["rows"], result["batch_size"], result["rounds"]) == (32, 2, 2)
    assert set(result["ways"]) == {"full_width", "as_they_come", "bucketed"}
    assert result["ways"]["full_width"]["speedup"]["median"] == 1
    for name, way in result["ways"].items():
        assert way["examples_per_second"] == 32 / way["epoch_seconds"]["median"]
        assert any(line.startswith(name) for line in table)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset=/nowhere", "--task=sst2"], "--preset=/nowhere is not a preset"),
        (["--preset=p", "--task=sst2", "--config_file=/no.yaml"], "/no.yaml does not exist"),
        (["--task=sst2"], "--preset"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], complaint: str):
    done = run(*arguments)
    assert done.returncode == 1 and complaint in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""

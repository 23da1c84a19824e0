import json
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

benchmark_finetuning = Program("benchmark_finetuning.py", timeout=600)


@pytest.mark.slow
def test_every_way_to_batch_is_timed(tmp_path: Path):
    preset = write_tiny_preset(tmp_path)
    rows = "".join(f"{text}\t{label}\n" for text, label in opinions(40))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    done = benchmark_finetuning(
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
    (said,) = benchmark_finetuning.mistakes(*arguments)
    assert complaint in said

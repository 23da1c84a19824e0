import json
import os
import signal
import time
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

finetune_glue = Program("finetune_glue.py", timeout=900)

TINY = """
data: {length_buckets: 1}
model: {dropout: 0.0}
optimizer: {learning_rate: 1e-2}
trainer: {batch_size: 8, epochs: 2}
search:
  optimizer.learning_rate: [1e-3, 1e-2]
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_preset(folder)
    (folder / "SST-2").mkdir()
    for name, count, seed in (("train", 48, 1), ("dev", 16, 2)):
        rows = "".join(f"{text}\t{label}\n" for text, label in opinions(count, seed))
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n0\ta good cat\n1\t\n")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def flags(inputs: Path, output_dir: Path) -> list[str]:
    return [
        f"--preset={inputs}/preset",
        "--task=sst2",
        f"--data_dir={inputs}",
        f"--config_file={inputs}/tiny.yaml",
        f"--output_dir={output_dir}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "is_killed", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["whole", "killed"]
)
def test_search_and_seeds(inputs: Path, tmp_path: Path, is_killed: bool):
    arguments = [*flags(inputs, tmp_path), "--search", "--seeds=2", "--processes=2"]
    search, done = tmp_path / "sst2" / "search", {}
    if is_killed:
        process = finetune_glue.start(*arguments, start_new_session=True)
        deadline = time.monotonic() + 600
        while not list(search.glob("*/results.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = {path: path.stat().st_mtime_ns for path in search.glob("*/results.json")}
        assert not (tmp_path / "results.md").exists()

    finished = finetune_glue(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == f"{tmp_path}/results.md"
    for path, written in done.items():
        assert path.stat().st_mtime_ns == written
    results = json.loads((tmp_path / "sst2" / "results.json").read_text())
    assert len(results["search"]["trials"]) == 2 and results["seeds"] == [0, 1]
    best = results["search"]["best"]["optimizer.learning_rate"]
    assert results["config"]["optimizer"]["learning_rate"] == best
    assert "SST-2, seed 1: accuracy " in finished.stderr
    assert "train: 48 rows" in finished.stderr and "0 truncated" in finished.stderr
    assert (tmp_path / "sst2" / "seed_0" / "preset" / "README.md").exists()
    lines = (tmp_path / "submission" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 3
    assert "| SST-2 |" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_a_mistake_that_a_run_finds_is_one_line_and_leaves_nothing(inputs: Path, tmp_path: Path):
    out = tmp_path / "out"
    *_, said = finetune_glue.mistakes(
        *flags(inputs, out), "--params_override=data.sequence_length=25"
    )
    assert said.startswith("error: SST-2, seed 0: sequence_length=25 is more than the model's 24")
    assert not out.exists()


def test_help_is_instant():
    told = finetune_glue.help()
    for flag in ("task", "data_dir", "preset", "seeds", "search", "train_fraction", "processes"):
        assert f"--{flag}" in told or f"--[no]{flag}" in told


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--preset=/nowhere", "error: --preset=/nowhere is not a preset: it has no config.json."),
        ("--task=snli", "--task=snli"),
        ("--config_file=/nowhere.yaml", "error: --config_file=/nowhere.yaml does not exist."),
    ],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    inputs: Path, tmp_path: Path, change: str, complaint: str
):
    (said,) = finetune_glue.mistakes_before_tensorflow(*flags(inputs, tmp_path / "out"), change)
    assert complaint in said
    assert not (tmp_path / "out").exists()

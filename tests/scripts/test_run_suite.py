import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from suite_inputs import NARROW, write_suite_inputs

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "scripts" / "run_suite.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite_inputs(tmp_path_factory.mktemp("inputs"))


def flags(inputs: Path, output_dir: Path) -> list[str]:
    return [
        "--suite=table3",
        f"--config_file={inputs}/tiny.yaml",
        "--tokens=384",
        f"--row_override=electra_auxiliary:{NARROW}",
        f"--train_data={inputs}/data/train",
        f"--validation_data={inputs}/data/validation",
        f"--vocabulary={inputs}/vocabulary",
        "--tasks=sst2",
        f"--data_dir={inputs}",
        f"--finetuning_config_file={inputs}/finetuning.yaml",
        "--seeds=1",
        f"--output_dir={output_dir}",
    ]


def run(*arguments: str, timeout: float = 2400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.slow
def test_every_row_of_table_3_lands_in_the_table_although_it_was_killed(
    inputs: Path, tmp_path: Path
):
    arguments = [*flags(inputs, tmp_path), "--processes=2"]
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # The third row is on its way, and the first is done.
    begun = tmp_path / "pretraining" / "clm_only" / "run" / "checkpoints" / "checkpoint"
    deadline = time.monotonic() + 1800
    while not begun.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pretraining/*/results.json")}
    assert done

    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == f"{tmp_path}/results.md"
    for path, written in done.items():
        assert path.stat().st_mtime_ns == written
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["rows"]) == 11
    page = (tmp_path / "results.md").read_text()
    for row in results["rows"]:
        pretraining = row["pretraining"]
        assert (pretraining["steps"], pretraining["tokens"]) == (6, 384)
        assert pretraining["flops"] > 0 and pretraining["held_out"]["positive_cosine"] <= 1
        assert 0 <= row["average"] <= 1
        assert page.count(f"| {row['title']} |") == 4
    # Frozen is what COCO-LM's auxiliary model was in the end.
    frozen, whole = (
        tmp_path / "pretraining" / name / "run" / "preset" / "auxiliary" / "model.weights.h5"
        for name in ("converged_auxiliary", "coco_lm")
    )
    assert arrays(frozen) == arrays(whole)
    folders = {path.parent.name for path in tmp_path.glob("curves/*/index.html")}
    assert folders == {"pretraining_task", "network_setting", "training_signal", "clm_setup"}


def arrays(path: Path) -> list[bytes]:
    found = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, item: (
                found.append(item[()].tobytes()) if isinstance(item, h5py.Dataset) else None
            )
        )
    assert found
    return sorted(found)


@pytest.mark.slow
def test_what_is_wrong_is_one_line_and_nothing_is_written(inputs: Path, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("rows: {a: {changes: nowhere.yaml}}")
    out = tmp_path / "out"
    for change, complaint in (
        ("--suite=table4", "--suite is one of baselines, figure4, table3, tasks or a YAML file"),
        (f"--suite={tmp_path}/mine.yaml", "rows.a.changes: "),
        ("--row_override=bert:a.b=1", "--row_override=bert:a.b=1: give ROW:OVERRIDE"),
        ("--params_override=model.depth=1", "model.depth does not exist"),
        ("--tasks=sst2,rte", "has no RTE/train.tsv"),
        ("--finetuning_override=data.sequence_length=99", "more than the 16 positions of coco_lm"),
    ):
        done = run(*flags(inputs, out), change)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert complaint in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr and done.stdout == ""
        assert not out.exists()


def test_help_is_instant():
    done = run("--help", timeout=60)
    assert done.returncode == 0
    for flag in ("suite", "tokens", "train_steps", "tasks", "seeds", "processes", "row_override"):
        assert f"--{flag}" in done.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--config_file=/nowhere.yaml", "error: --config_file=/nowhere.yaml does not exist."),
        ("--finetuning_config_file=/no.yaml", "error: --finetuning_config_file=/no.yaml does not"),
        ("--train_steps=5", "error: --train_steps and --tokens say the same in two ways"),
        ("--tokens=-1", "--tokens=-1"),
        ("--processes=0", "--processes=0"),
        ("--output_dir=/dev/null", "error: --output_dir=/dev/null is a file"),
    ],
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    inputs: Path, tmp_path: Path, change: str, complaint: str
):
    done = subprocess.run(
        [*PROGRAM, *flags(inputs, tmp_path / "out"), change],
        env=ENVIRONMENT | {"PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1 and complaint in said[0]
    assert "absl" in done.stderr and "tensorflow" not in done.stderr
    assert not (tmp_path / "out").exists()

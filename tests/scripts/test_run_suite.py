import json
import os
import signal
import time
from pathlib import Path

import h5py
import pytest
from programs import ROOT, Program
from suite_inputs import NARROW, write_suite_inputs

run_suite = Program("run_suite.py", timeout=2400)
# A row as it is, and one with overrides of its own after another.
FEW = f"""
rows:
  coco_lm: {{title: COCO-LM}}
  converged_auxiliary:
    title: w. converged auxiliary
    group: Training signal
    changes: {ROOT}/configs/ablations/converged_auxiliary.yaml
    auxiliary_of: coco_lm
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_suite_inputs(tmp_path_factory.mktemp("inputs"))
    (folder / "few.yaml").write_text(FEW)
    return folder


OF_SUITES = {
    "few": (
        "--suite=few.yaml",
        # What traces the least.
        "--params_override=objective.lm_weight=0,objective.scl_weight=0",
        "--row_override=converged_auxiliary:optimizer.learning_rate=1e-3",
    ),
    "table3": ("--suite=table3", f"--row_override=electra_auxiliary:{NARROW}"),
}


def flags(inputs: Path, output_dir: Path, *suite: str) -> list[str]:
    return [
        *(suite or OF_SUITES["table3"]),
        f"--config_file={inputs}/tiny.yaml",
        "--tokens=384",
        f"--train_data={inputs}/data/train",
        f"--validation_data={inputs}/data/validation",
        f"--vocabulary={inputs}/vocabulary",
        "--tasks=sst2",
        f"--data_dir={inputs}",
        f"--finetuning_config_file={inputs}/finetuning.yaml",
        "--seeds=1",
        f"--output_dir={output_dir}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "killed_in", "groups"),
    [
        ("few", None, {"training_signal"}),
        pytest.param(
            "table3",
            "clm_only",
            {"pretraining_task", "network_setting", "training_signal", "clm_setup"},
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_every_row_lands_in_the_table(
    inputs: Path, tmp_path: Path, monkeypatch, suite: str, killed_in: str | None, groups: set[str]
):
    """Also where the suite was killed in a later row; `test_suite_runner.py` stops small ones."""
    monkeypatch.chdir(inputs)
    arguments = [*flags(inputs, tmp_path, *OF_SUITES[suite]), "--processes=2"]
    done = {}
    if killed_in:
        process = run_suite.start(*arguments, start_new_session=True)
        # That row is on its way, and the first is done.
        begun = tmp_path / "pretraining" / killed_in / "run" / "checkpoints" / "checkpoint"
        deadline = time.monotonic() + 1800
        while not begun.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        results = tmp_path.glob("pretraining/*/results.json")
        done = {path: path.stat().st_mtime_ns for path in results}
        assert done

    finished = run_suite(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == f"{tmp_path}/results.md"
    for path, written in done.items():
        assert path.stat().st_mtime_ns == written
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["rows"]) == (2 if suite == "few" else 11)
    page = (tmp_path / "results.md").read_text()
    for row in results["rows"]:
        pretraining = row["pretraining"]
        assert (pretraining["steps"], pretraining["tokens"]) == (6, 384)
        assert pretraining["flops"] > 0 and pretraining["held_out"]["positive_cosine"] <= 1
        assert 0 <= row["average"] <= 1
        # Scores, spreads, differences from the first row, held-out text, costs.
        assert page.count(f"| {row['title']} |") == (4 if row is results["rows"][0] else 5)
    # Frozen is what COCO-LM's auxiliary model was in the end.
    frozen, whole = (
        tmp_path / "pretraining" / name / "run" / "preset" / "auxiliary" / "model.weights.h5"
        for name in ("converged_auxiliary", "coco_lm")
    )
    assert arrays(frozen) == arrays(whole)
    folders = {path.parent.name for path in tmp_path.glob("curves/*/index.html")}
    assert folders == groups


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
        (f"--suite={tmp_path}/mine.yaml", "rows.a.changes: "),
        ("--finetuning_override=data.sequence_length=99", "more than the 16 positions of coco_lm"),
    ):
        *_, said = run_suite.mistakes(*flags(inputs, out), change)
        assert said.startswith("error: ") and complaint in said
        assert not out.exists()


def test_what_pretraining_takes_is_asked_for_where_a_row_is_pretrained(tmp_path: Path):
    out = tmp_path / "out"
    *_, said = run_suite.mistakes("--suite=table3", f"--output_dir={out}")
    assert said == "error: --config_file is missing: rows of table3 are pretrained."
    assert not out.exists()


def test_help_is_instant():
    told = run_suite.help()
    for flag in ("suite", "tokens", "train_steps", "tasks", "seeds", "processes", "row_override"):
        assert f"--{flag}" in told


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--config_file=/nowhere.yaml", "error: --config_file=/nowhere.yaml does not exist."),
        ("--finetuning_config_file=/no.yaml", "error: --finetuning_config_file=/no.yaml does not"),
        ("--train_steps=5", "error: --train_steps and --tokens say the same in two ways"),
        ("--distribution_strategy=tpu", "--distribution_strategy=tpu and --tpu=ADDRESS go"),
    ],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    inputs: Path, tmp_path: Path, change: str, complaint: str
):
    (said,) = run_suite.mistakes_before_tensorflow(*flags(inputs, tmp_path / "out"), change)
    assert complaint in said
    assert not (tmp_path / "out").exists()

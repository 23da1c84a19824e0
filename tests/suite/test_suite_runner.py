"""The order of a suite's jobs and what becomes of what they find, with jobs that take no time."""

import json
import os
from pathlib import Path

import pytest
from suite_inputs import TINY

from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.suite import runner
from cocolm_tf.suite.plan import Plan, Row, Suite, Task, pretraining_configs
from cocolm_tf.suite.runner import PretrainingInputs, run_suite

# Writes what the processes of `cocolm_tf.suite.job` would, and a line for each that began or ended.
MODULE = """
import json, multiprocessing, os, random, signal, sys, time
from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.jobs import serve, write_json

def tell(line):
    with open(os.environ["SUITE_LOG"], "a") as file:
        file.write(line + "\\n")

def once(name):
    path = os.path.join(os.path.dirname(os.environ["SUITE_LOG"]), name)
    if os.path.exists(path):
        os.remove(path)
        return True
    return False

def do(spec, folder, reporter, **options):
    out = folder.split("/out/")[1]
    tell("begin " + out)
    if options:
        tell(options["distribution_strategy"] + " " + out)
    for name, error in (("mistake", UserError), ("stop", RestartableError)):
        if once(name + "_" + out.replace("/", "_")):
            raise error("told so")
    if once("terminate_" + out.replace("/", "_")):
        os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)
        time.sleep(60)
    if "pretraining" in spec:
        config = spec["pretraining"]["config"]
        donor = config["auxiliary"]["preset"]
        assert not donor or os.path.isdir(donor)
        source = config["trainer"]["decay_from"].rpartition("@")[0]
        assert not source or os.path.isdir(source)
        run = os.path.join(folder, "run")
        os.makedirs(os.path.join(run, "preset", "assets"), exist_ok=True)
        write_json(config, os.path.join(run, "config.yaml"))
        lines = [{"step": step, "split": "train", "seconds": step, "loss": 9 - step / 10,
                  "tokens_per_second": 64.0} for step in (10, 20, 30)]
        with open(os.path.join(run, "metrics.jsonl"), "w") as file:
            file.writelines(json.dumps(line) + "\\n" for line in lines)
        with open(os.path.join(run, "preset", "config.json"), "w") as file:
            file.write("{}")
        results = {"parameters": 3000000, "held_out": {"positive_cosine": 0.9}}
    else:
        assert os.path.isdir(spec["finetuning"]["preset"])
        seed = spec["finetuning"]["seed"]
        score = random.Random(out).random()
        results = {"metric": "accuracy", "score": score, "seconds": 60.0,
                   "dev": {"dev": {"accuracy": score}}}
        if "diverging" in out and seed == 0:
            results = {"diverged": True}
    tell("end " + out)
    return results

if __name__ == "__main__":
    serve(do)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plans a suite of rows."""
    (tmp_path / "suite_jobs_module.py").write_text(MODULE)
    (tmp_path / "tiny.yaml").write_text(TINY + "  train_steps: 30\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SUITE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(runner, "_MODULE", "suite_jobs_module")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_manifest()

    def make(*rows: Row, seeds: int = 1, **changes) -> Plan:
        suite = Suite("mine", rows)
        configs = pretraining_configs(
            suite, str(tmp_path / "tiny.yaml"), str(tmp_path / "out"), **changes
        )
        tasks = [
            Task(name, name.upper(), {"glue": {"task": name}}, FinetuningConfig())
            for name in ("cola", "rte")
        ]
        return Plan(suite, configs, tasks, seeds)

    return make


def write_manifest(vocabulary: str = "a") -> None:
    Manifest("data", 16, 80, vocabulary, {}, ()).save()


ROWS = (
    Row("whole", "Whole"),
    Row("half", "Half", "Group", ("objective.scl_weight=0",)),
    Row("frozen", "Frozen", "Group", auxiliary_of="whole"),
    Row("fresh", "Fresh", random_weights_of="whole"),
)
INPUTS = PretrainingInputs("data", "vocabulary")


def log(tmp_path: Path, what: str = "begin") -> list[str]:
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    return [name for kind, name in lines if kind == what]


def results(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_all_is_pretrained_and_then_fine_tuned_seed_by_seed(make, tmp_path: Path):
    out = str(tmp_path / "out")
    assert run_suite(make(*ROWS, seeds=2), INPUTS, out) == f"{out}/results.md"
    assert log(tmp_path) == [
        *(f"pretraining/{row}" for row in ("whole", "half", "frozen")),
        *(
            f"finetuning/{row}/{task}/seed_{seed}"
            for seed in (0, 1)
            for task in ("cola", "rte")
            for row in ("whole", "half", "frozen", "fresh")
        ),
    ]
    rows = {row["name"]: row for row in results(tmp_path)["rows"]}
    assert rows["fresh"]["pretraining"] is None
    assert rows["whole"]["pretraining"]["tokens"] == 30 * 64
    assert rows["whole"]["pretraining"]["minutes"] == 0.5
    assert rows["half"]["pretraining"]["flops"] < rows["whole"]["pretraining"]["flops"]
    for row in rows.values():
        for task in ("cola", "rte"):
            assert len(row["finetuning"][task]["score"]["values"]) == 2
        assert len(row["averages"]["values"]) == 2
    page = (tmp_path / "out" / "results.md").read_text()
    for title in ("Whole", "Half", "Frozen", "Fresh", "COLA", "RTE", "AVG"):
        assert title in page
    assert (tmp_path / "out" / "curves" / "group" / "index.html").exists()
    specs = [
        json.loads((tmp_path / "out" / "finetuning" / f"{row}/rte/seed_1/job.json").read_text())
        for row in ("whole", "fresh")
    ]
    presets = [spec["finetuning"]["preset"] for spec in specs]
    assert presets == [f"{out}/pretraining/whole/run/preset"] * 2
    assert [spec["finetuning"]["from_scratch"] for spec in specs] == [False, True]


def test_presets_are_fine_tuned_without_any_pretraining(make, tmp_path: Path):
    out, preset = str(tmp_path / "out"), str(tmp_path / "made")
    os.mkdir(preset)
    rows = (Row("made", "Made", preset=preset), Row("fresh", "Fresh", random_weights_of="made"))
    run_suite(make(*rows), None, out)
    assert log(tmp_path) == [
        f"finetuning/{row}/{task}/seed_0" for task in ("cola", "rte") for row in ("made", "fresh")
    ]
    for row, afresh in (("made", False), ("fresh", True)):
        path = tmp_path / "out" / "finetuning" / row / "rte" / "seed_0" / "job.json"
        spec = json.loads(path.read_text())["finetuning"]
        assert (spec["preset"], spec["from_scratch"]) == (preset, afresh)
    assert not (tmp_path / "out" / "curves").exists()
    assert "Made" in (tmp_path / "out" / "results.md").read_text()
    run_suite(make(*rows), None, out)
    assert len(log(tmp_path)) == 4


def test_several_processes_keep_to_what_needs_what(make, tmp_path: Path):
    branch = Row("branch", "Branch", changes=("optimizer.schedule=wsd",), decay_from="whole@20")
    options = {"distribution_strategy": "mirrored"}
    run_suite(make(*ROWS, branch), INPUTS, str(tmp_path / "out"), processes=3, options=options)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3 * (4 + 10)
    assert len(log(tmp_path, "mirrored")) == 4 + 10
    for row in ("frozen", "branch"):
        begun = lines.index(f"begin pretraining/{row}")
        assert lines.index("end pretraining/whole") < begun


def test_what_was_ended_resumes_without_repeating(make, tmp_path: Path):
    out, plan = str(tmp_path / "out"), make(*ROWS)
    (tmp_path / "stop_finetuning_half_rte_seed_0").touch()
    with pytest.raises(RestartableError, match="Half, RTE, seed 0 was stopped: start again"):
        run_suite(plan, INPUTS, out)
    done = log(tmp_path, "end")
    assert "finetuning/half/cola/seed_0" in done and "finetuning/half/rte/seed_0" not in done
    rows = {row["name"]: row for row in results(tmp_path)["rows"]}
    assert rows["whole"]["average"] is not None and rows["half"]["average"] is None
    (tmp_path / "out" / "pretraining" / "half" / "run" / "left").touch()
    run_suite(plan, INPUTS, out)
    ended = log(tmp_path, "end")
    assert len(ended) == len(set(ended)) == 3 + 8
    # A pretraining without results goes on with what there is.
    (tmp_path / "out" / "pretraining" / "half" / "results.json").unlink()
    run_suite(plan, INPUTS, out)
    assert log(tmp_path, "end")[3 + 8 :] == ["pretraining/half"]
    assert (tmp_path / "out" / "pretraining" / "half" / "run" / "left").exists()


def test_sigterm_ends_it_at_once_to_be_resumed(make, tmp_path: Path):
    out, plan = str(tmp_path / "out"), make(*ROWS)
    (tmp_path / "terminate_finetuning_whole_rte_seed_0").touch()
    with pytest.raises(RestartableError, match="stopped by SIGTERM.*start again"):
        run_suite(plan, INPUTS, out, processes=2)
    assert "finetuning/whole/rte/seed_0" not in log(tmp_path, "end")
    run_suite(plan, INPUTS, out, processes=2)
    ended = log(tmp_path, "end")
    assert len(set(ended)) == 3 + 8
    # The other process may have been stopped at its very end, with nothing left but to say so.
    assert len(ended) <= 3 + 8 + 1


def test_more_seeds_and_rows_are_added_to_what_there_is(make, tmp_path: Path):
    run_suite(make(*ROWS[:2]), INPUTS, str(tmp_path / "out"))
    before = set(log(tmp_path))
    run_suite(make(*ROWS, seeds=2), INPUTS, str(tmp_path / "out"))
    after = log(tmp_path)
    assert len(after) == len(set(after)) == 3 + 16 and before < set(after)


def test_a_mistake_ends_the_suite_in_one_line(make, tmp_path: Path):
    (tmp_path / "mistake_pretraining_half").touch()
    with pytest.raises(UserError, match="^Half: told so$"):
        run_suite(make(*ROWS), INPUTS, str(tmp_path / "out"))
    assert "finetuning/half/cola/seed_0" not in log(tmp_path)


def test_another_suite_in_the_folder_is_refused_before_any_work(make, tmp_path: Path):
    run_suite(make(*ROWS[:1]), INPUTS, str(tmp_path / "out"))
    before = log(tmp_path)
    shorter = make(*ROWS, overrides=["trainer.train_steps=20"])
    with pytest.raises(UserError, match=r"train_steps=30, not 20: give another --output_dir"):
        run_suite(shorter, INPUTS, str(tmp_path / "out"))
    make_again = make(*ROWS)
    other = make(*ROWS)
    other.tasks[1].config.trainer.epochs = 9
    with pytest.raises(UserError, match=r"finetuning/whole/rte/seed_0 was made with .*epochs=3"):
        run_suite(other, INPUTS, str(tmp_path / "out"))
    write_manifest("b")
    with pytest.raises(UserError, match="was begun with other content of train_data: give another"):
        run_suite(make_again, INPUTS, str(tmp_path / "out"))
    write_manifest()
    # Also while it is not finished: what there is of it would be gone on with.
    (tmp_path / "out" / "pretraining" / "whole" / "results.json").unlink()
    with pytest.raises(UserError, match=r"train_steps=30, not 20: give another --output_dir"):
        run_suite(shorter, INPUTS, str(tmp_path / "out"))
    assert log(tmp_path) == before


def test_a_fine_tuning_that_diverges_is_counted(make, tmp_path: Path):
    run_suite(make(Row("diverging", "Diverging"), seeds=2), INPUTS, str(tmp_path / "out"))
    (row,) = results(tmp_path)["rows"]
    assert row["finetuning"]["rte"]["diverged"] == 1
    assert row["finetuning"]["rte"]["seeds"] == [1]
    assert len(row["averages"]["values"]) == 1
    assert "1 diverged" in (tmp_path / "out" / "results.md").read_text()

import json
from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import experiment as module
from cocolm_tf.finetuning.classification_run import ClassificationRun
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.experiment import Experiment, run_experiment


class Runner:
    """What `JobRunner` is to an experiment, without processes."""

    done: list[dict] = []
    score = staticmethod(lambda spec: 0.5)

    def __init__(self, module, at_once, total):
        self.total = total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def say(self, text):
        pass

    def run_all(self, jobs):
        return [self.run(job) for job in jobs]

    def run(self, job):
        self.done.append(job.spec)
        score = self.score(job.spec)
        if score is None:
            return {"diverged": True}
        predictions = Path(job.folder, "predictions")
        predictions.mkdir(parents=True, exist_ok=True)
        (predictions / "SST-2.tsv").write_text(f"seed {job.spec['seed']}")
        return {
            "task": "SST-2",
            "score": score,
            "baseline": {"dev": {"accuracy": 0.5, "f1": 0.6}},
            "metric": "accuracy",
            "dev": {"dev": {"accuracy": score, "f1": score / 2}},
            "parameters": 1000,
            "examples_per_second": 10.0 + job.spec["seed"],
            "seconds": 1.0,
            "data": {"train": {"rows": 80}},
            "device": "CPU",
            "versions": {},
        }


@pytest.fixture
def run(tiny_preset, sst2_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs an experiment; takes fields of it and of its runs, and what gives a spec its score."""
    monkeypatch.setattr(module, "JobRunner", Runner)

    def run(score=lambda spec: 0.5, grid=None, seeds=1, **fields):
        monkeypatch.setattr(Runner, "done", [])
        monkeypatch.setattr(Runner, "score", staticmethod(score))
        data = {"glue": {"task": "sst2", "data_dir": sst2_dir}}
        config = FinetuningConfig().as_dict()
        run = ClassificationRun(preset=tiny_preset, config=config, data=data, **fields)
        return run_experiment(Experiment("sst2", run, grid or {}, seeds), str(tmp_path))

    return run


def results(tmp_path: Path, name: str = "sst2") -> dict:
    return json.loads((tmp_path / name / "results.json").read_text())


def test_seeds_and_their_spread(run, tmp_path: Path):
    scores = [0.7, 0.9, 0.6, 0.8, 0.75]
    path = run(lambda spec: scores[spec["seed"]], seeds=5)
    found = results(tmp_path)
    assert found["dev"]["dev"]["accuracy"]["values"] == scores
    assert found["dev"]["dev"]["accuracy"]["median"] == 0.75
    assert (found["best_seed"], found["best_run"]) == (1, "sst2/seed_1")
    assert found["examples_per_second"] == 12.0 and found["seconds"] == 5.0
    assert (tmp_path / "submission" / "SST-2.tsv").read_text() == "seed 1"
    assert path == str(tmp_path / "results.md") and "| 75.0 |" in Path(path).read_text()
    assert all(spec["preset_fingerprint"] for spec in Runner.done)


def test_a_run_knows_what_its_files_held(run, sst2_dir):
    train = Path(sst2_dir, "SST-2", "train.tsv")
    run()
    (before,) = (spec["content_fingerprints"] for spec in Runner.done)
    assert {Path(path).name for path in before} == {"train.tsv", "dev.tsv", "test.tsv"}
    content = train.read_text()
    train.write_text(content + "a good dog\t1\n")
    try:
        run()
    finally:
        train.write_text(content)
    (after,) = (spec["content_fingerprints"] for spec in Runner.done)
    assert {path for path in after if after[path] != before[path]} == {str(train)}


def test_a_search_precedes_the_seeds(run, tmp_path: Path):
    grid = {"optimizer.learning_rate": [1e-5, 2e-5], "trainer.epochs": [2, 4]}

    def score(spec):
        rate = spec["config"]["optimizer"]["learning_rate"]
        if rate == 2e-5 and spec["config"]["trainer"]["epochs"] == 4:
            return None  # It diverged.
        return rate * 1e4 + spec["config"]["trainer"]["epochs"] / 100

    run(score, grid=grid, seeds=2)
    assert len(Runner.done) == 4 + 2
    assert [spec["save_preset"] for spec in Runner.done] == [False] * 4 + [True] * 2
    assert [spec["seed"] for spec in Runner.done] == [0] * 5 + [1]
    found = results(tmp_path)
    assert found["search"]["best"] == {"optimizer.learning_rate": 2e-5, "trainer.epochs": 2}
    assert found["config"]["optimizer"]["learning_rate"] == 2e-5
    assert found["config"]["trainer"]["epochs"] == 2
    trials = found["search"]["trials"]
    assert trials[0]["values"] == found["search"]["best"] and trials[-1]["score"] == -1


def test_fractions_and_starts_have_folders_of_their_own(run, tmp_path: Path):
    run()
    run(train_fraction=0.1)
    run(from_scratch=True)
    assert results(tmp_path, "sst2-0.1")["train_fraction"] == 0.1
    assert results(tmp_path, "sst2-from_scratch")["from_scratch"] is True
    page = (tmp_path / "results.md").read_text()
    assert page.count("0.1 of the training rows") == 2 + 1
    assert page.count("from random weights") == 2 + 1


def test_only_whole_runs_from_the_preset_are_submitted(run, tmp_path: Path):
    run(train_fraction=0.1)
    run(from_scratch=True)
    assert not (tmp_path / "submission").exists()


@pytest.mark.parametrize("kind", ["glue", "table"])
def test_only_tasks_of_glue_have_a_leaderboard(kind):
    run = ClassificationRun(preset="preset", config={}, data={kind: {}})
    assert run.has_leaderboard == (kind == "glue")


def test_a_seed_that_diverged_is_a_mistake(run, tmp_path: Path):
    with pytest.raises(UserError, match="SST-2, seed 1 diverged.*learning_rate"):
        run(lambda spec: None if spec["seed"] else 0.5, seeds=3)
    assert not (tmp_path / "sst2" / "results.json").exists()


def test_a_mistake_in_the_data_is_told_before_anything_is_written(run, tmp_path, monkeypatch):
    data = {"glue": {"task": "rte", "data_dir": str(tmp_path)}}
    experiment = Experiment("rte", ClassificationRun(preset="x", config={}, data=data))
    with pytest.raises(UserError, match="has no RTE/train.tsv"):
        run_experiment(experiment, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()

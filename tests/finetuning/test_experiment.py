import json
from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import experiment as module
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.experiment import Experiment, _stages, run_experiment
from cocolm_tf.finetuning.tasks.classification import ClassificationTask
from cocolm_tf.finetuning.tasks.prompting import PromptingTask


class Runner:
    """What `JobRunner` is to an experiment, without processes.

    `score` says what a run's measurements give; None where it diverges. A run does no measurement
    twice that its checkpoint has: `done` has those that it does.
    """

    def __init__(self, module, at_once, total):
        self.totals.append(total)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def say(self, text):
        pass

    def run_all(self, jobs):
        return [self.run(job) for job in jobs]

    def run(self, job):
        if results := job.results():
            return results
        folder, evaluations = Path(job.folder), job.spec["config"]["trainer"]["epochs"]
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / "state.npz"
        before = int(state.read_text()) if state.exists() else 0
        after = -int(-job.until * evaluations // 1) or evaluations
        self.done.append((job.spec, before, after))
        scores = self.score(job.spec)
        scores = scores if isinstance(scores, list) else [scores] * evaluations
        results = {"diverged": True}
        if scores[0] is not None:
            results = self.results(job.spec, scores[:after]) | {"evaluations": evaluations}
            if job.spec["save_preset"]:
                self.leave(folder, job.spec, results)
        if job.until:
            state.write_text(str(after))
            results["until"] = job.until
        (folder / "job.json").write_text(json.dumps(job.spec))
        (folder / "results.json").write_text(json.dumps(results))
        return results

    def results(self, spec, scores):
        best = max(scores)
        return {
            "task": "SST-2",
            "score": best,
            "epochs": [{"score": score} for score in scores],
            "metric": "accuracy",
            "dev": {"dev": {"accuracy": best, "f1": best / 2}},
            "parameters": 1000,
            "examples_per_second": 10.0 + spec["seed"],
            "seconds": 1.0,
            "data": {"train": {"rows": 80}},
            "device": "CPU",
            "versions": {},
        }

    def leave(self, folder, spec, results):
        results["baseline"] = {"dev": {"accuracy": 0.5, "f1": 0.6}}
        results["label_words"] = ["▁bad", "▁good"]
        (folder / "predictions").mkdir()
        (folder / "predictions" / "SST-2.tsv").write_text(f"seed {spec['seed']}")


@pytest.fixture
def run(tiny_preset, sst2_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs an experiment; takes fields of it and of its task, and what gives a spec its score."""
    monkeypatch.setattr(module, "JobRunner", Runner)
    monkeypatch.setattr(Runner, "totals", [], raising=False)
    monkeypatch.setattr(Runner, "done", [], raising=False)

    def run(score=lambda spec: 0.5, grid=None, seeds=(0,), of=ClassificationTask, **fields):
        Runner.done.clear()
        monkeypatch.setattr(Runner, "score", staticmethod(score), raising=False)
        how = {key: fields.pop(key) for key in ("reduction", "search_each_seed") if key in fields}
        fields = {"data": {"glue": {"task": "sst2", "data_dir": sst2_dir}}} | fields
        config = FinetuningConfig().as_dict()
        task = of(preset=tiny_preset, config=config, **fields)
        return run_experiment(Experiment("sst2", task, grid or {}, seeds, **how), str(tmp_path))

    return run


def specs() -> list[dict]:
    return [spec for spec, *_ in Runner.done]


def results(tmp_path: Path, name: str = "sst2") -> dict:
    return json.loads((tmp_path / name / "results.json").read_text())


def test_seeds_and_their_spread(run, tmp_path: Path):
    scores = [0.7, 0.9, 0.6, 0.8, 0.75]
    path = run(lambda spec: scores[spec["seed"]], seeds=range(5))
    found = results(tmp_path)
    assert found["dev"]["dev"]["accuracy"]["values"] == scores
    assert found["dev"]["dev"]["accuracy"]["median"] == 0.75
    assert (found["best_seed"], found["best_run"]) == (1, "sst2/seed_1")
    assert found["examples_per_second"] == 12.0 and found["seconds"] == 5.0
    assert (tmp_path / "submission" / "SST-2.tsv").read_text() == "seed 1"
    assert path == str(tmp_path / "results.md") and "| 75.0 |" in Path(path).read_text()


def test_a_preset_is_hashed_once_for_all_runs(run, monkeypatch):
    hashed = []
    monkeypatch.setattr(module, "fingerprint", lambda preset: hashed.append(preset) or "hash")
    run(seeds=range(3), grid={"trainer.epochs": [1, 2]})
    assert len(hashed) == 1
    assert {spec["preset_fingerprint"] for spec in specs()} == {"hash"}


def test_the_gpus_are_left_to_the_runs_before_the_data_is_opened(run, monkeypatch):
    """As TFDS would take hold of all of them, so that no run finds memory."""
    order = []
    monkeypatch.setattr(module, "leave_devices", lambda: order.append("left"))
    ordinary = ClassificationTask.read
    monkeypatch.setattr(
        ClassificationTask, "read", lambda task: order.append("read") or ordinary(task)
    )
    run()
    assert order[:2] == ["left", "read"]


def test_a_run_knows_what_its_files_held(run, sst2_dir, tmp_path):
    train = Path(sst2_dir, "SST-2", "train.tsv")
    run()
    (before,) = (spec["content_fingerprints"] for spec in specs())
    assert {Path(path).name for path in before} == {"train.tsv", "dev.tsv", "test.tsv"}
    content = train.read_text()
    train.write_text(content + "a good dog\t1\n")
    try:
        with pytest.raises(UserError, match="was made with other content of .*train.tsv"):
            run()
    finally:
        train.write_text(content)


GRID = {"optimizer.learning_rate": [1e-5, 2e-5], "trainer.epochs": [2, 4]}


def test_a_search_precedes_the_seeds(run, tmp_path: Path):
    def score(spec):
        rate = spec["config"]["optimizer"]["learning_rate"]
        if rate == 2e-5 and spec["config"]["trainer"]["epochs"] == 4:
            return None  # It diverged.
        return rate * 1e4 + spec["config"]["trainer"]["epochs"] / 100

    run(score, grid=GRID, seeds=(0, 1), reduction=1)
    assert len(Runner.done) == 4 + 2
    assert [spec["save_preset"] for spec in specs()] == [False] * 4 + [True] * 2
    assert [spec["seed"] for spec in specs()] == [0] * 5 + [1]
    found = results(tmp_path)
    assert found["search"]["best"] == {"optimizer.learning_rate": 2e-5, "trainer.epochs": 2}
    assert found["config"]["optimizer"]["learning_rate"] == 2e-5
    assert found["config"]["trainer"]["epochs"] == 2
    trials = found["search"]["trials"]
    assert trials[0]["values"] == found["search"]["best"] and trials[-1]["score"] is None


def test_the_best_run_of_a_search_is_not_trained_again(run, tmp_path: Path):
    run(lambda spec: spec["config"]["optimizer"]["learning_rate"], grid=GRID, seeds=(0, 1))
    *_, (first, begun, end), (second, *_) = Runner.done
    assert (first["seed"], second["seed"]) == (0, 1) and begun == end == 2
    assert not list(tmp_path.glob("sst2/search/*/state.npz"))


@pytest.mark.parametrize(
    ("combinations", "evaluations", "reduction", "stages"),
    [
        (8, 10, 3, [(1 / 3, 8), (1.0, 3)]),
        (9, 9, 3, [(1 / 9, 9), (1 / 3, 3), (1.0, 1)]),
        (8, 8, 2, [(1 / 8, 8), (1 / 4, 4), (1 / 2, 2), (1.0, 1)]),
        (8, 2, 3, [(1.0, 8)]),
        (2, 10, 3, [(1.0, 2)]),
        (8, 10, 1, [(1.0, 8)]),
    ],
)
def test_the_stages_of_a_search(combinations, evaluations, reduction, stages):
    assert _stages(combinations, evaluations, reduction) == [
        (pytest.approx(share), count) for share, count in stages
    ]


def test_a_search_continues_with_the_best_of_each_stage(run, tmp_path: Path):
    rates = [1e-5, 2e-5, 3e-5, 4e-5]
    # The first looks best after half of its epochs only.
    scores = {1e-5: [0.9, 0.1], 2e-5: [0.7, 0.8], 3e-5: [0.6, 0.95], 4e-5: [0.5, 0.99]}
    scores[1e-5][1] = 0.2

    def score(spec):
        first, second = scores[spec["config"]["optimizer"]["learning_rate"]]
        return [first, first, second, second]

    grid = {"optimizer.learning_rate": rates, "trainer.epochs": [4]}
    run(score, grid=grid, reduction=2)
    trained = [
        (spec["config"]["optimizer"]["learning_rate"], before, after)
        for spec, before, after in Runner.done
    ]
    assert trained == [
        *((rate, 0, 1) for rate in rates),
        *((rate, 1, 2) for rate in rates[:2]),
        (1e-5, 2, 4),
        (1e-5, 4, 4),
    ]
    assert Runner.totals[-1] == pytest.approx(4 / 4 + 2 / 4 + 1 / 2 + 1)
    found = results(tmp_path)["search"]
    assert [trial["share"] for trial in found["trials"]] == [1.0, 0.5, 0.25, 0.25]
    # Whatever was done when a search was ended, it comes to the same.
    (tmp_path / "sst2" / "results.json").unlink()
    run(score, grid=grid, reduction=2)
    assert results(tmp_path)["search"] == found and not Runner.done


def test_each_split_has_a_search_of_its_own(run, tmp_path: Path):
    dev = {(1e-5, 13): 0.5, (2e-5, 13): 0.7, (1e-5, 21): 0.9, (2e-5, 21): 0.8}
    test = {13: 0.65, 21: 0.61}

    def score(spec):
        return dev[spec["config"]["optimizer"]["learning_rate"], spec["seed"]]

    ordinary = Runner.leave

    def leave(self, folder, spec, found):
        ordinary(self, folder, spec, found)
        found["test"] = {"dev": {"accuracy": test[spec["seed"]]}}

    Runner.leave, how = leave, {"template": "{first} {mask}", "words": [["bad"], ["good"]]}
    try:
        grid = {"optimizer.learning_rate": [1e-5, 2e-5]}
        path = run(score, grid, (13, 21), PromptingTask, reduction=1, search_each_seed=True, **how)
    finally:
        Runner.leave = ordinary
    found = results(tmp_path)
    assert {seed: one["best"] for seed, one in found["search"].items()} == {
        "13": {"optimizer.learning_rate": 2e-5},
        "21": {"optimizer.learning_rate": 1e-5},
    }
    assert found["test"]["dev"]["accuracy"]["values"] == [0.65, 0.61]
    assert found["template"] == "{first} {mask}" and found["shots"] == 16
    assert not (tmp_path / "submission").exists()
    assert "| accuracy | 63.0 (2.0) | 61.0 | 65.0 | 50.0 | 2 | 16 |" in Path(path).read_text()


def test_too_few_examples_are_reported_before_anything_is_written(run, tmp_path: Path):
    how = {"template": "{first} {mask}", "words": [["bad"], ["good"]], "shots": 90}
    with pytest.raises(UserError, match="too few to draw 90 to learn from"):
        run(of=PromptingTask, **how)
    assert not (tmp_path / "sst2").exists()


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


def test_tables_are_not_submitted_where_they_would_be_in_each_others_way(run, tmp_path, write):
    rows = "text,label\n" + "a cat,x\na dog,y\n" * 10
    table = {"train_file": write("a.csv", rows), "text_column": "text", "label_column": "label"}
    run(data={"table": table})
    assert not (tmp_path / "submission").exists()
    assert list(tmp_path.glob("sst2/seed_0/predictions/*"))


@pytest.mark.parametrize("kind", ["glue", "table"])
def test_only_tasks_of_glue_have_a_leaderboard(kind):
    task = ClassificationTask(preset="preset", config={}, data={kind: {}})
    assert task.has_leaderboard == (kind == "glue")


def test_seeds_that_diverged_are_counted_and_the_others_continue(run, tmp_path: Path):
    page = run(lambda spec: None if spec["seed"] == 1 else 0.5, seeds=range(3))
    found = results(tmp_path)
    assert (found["seeds"], found["diverged"]) == ([0, 2], [1])
    assert found["dev"]["dev"]["accuracy"]["values"] == [0.5, 0.5]
    assert "| 2, 1 diverged |" in Path(page).read_text()


def test_seeds_that_all_diverged_are_a_mistake(run, tmp_path: Path):
    with pytest.raises(UserError, match="SST-2: all 3 runs diverged.*learning_rate"):
        run(lambda spec: None, seeds=range(3))
    assert not (tmp_path / "sst2" / "results.json").exists()


def test_a_mistake_in_the_data_is_reported_before_anything_is_written(tmp_path):
    data = {"glue": {"task": "rte", "data_dir": str(tmp_path)}}
    experiment = Experiment("rte", ClassificationTask(preset="x", config={}, data=data))
    with pytest.raises(UserError, match="has no RTE/train.tsv"):
        run_experiment(experiment, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()

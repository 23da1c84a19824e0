import json
from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import prompt_experiment as module
from cocolm_tf.finetuning.prompt_config import PromptConfig
from cocolm_tf.finetuning.prompt_experiment import run_prompt_experiment
from cocolm_tf.finetuning.prompt_run import PromptRun


class Runner:
    """What `JobRunner` is to an experiment, without processes."""

    outcome = staticmethod(lambda spec: (0.5, 0.5))

    def __init__(self, module, at_once, total):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_all(self, jobs):
        return [self.run(job) for job in jobs]

    def run(self, job):
        Path(job.folder, "preset").mkdir(parents=True)
        if self.outcome(job.spec) is None:
            return {"diverged": True}
        dev, test = self.outcome(job.spec)
        return {
            "task": "SST-2",
            "metric": "accuracy",
            "score": dev,
            "baseline": {"dev": {"accuracy": 0.5}},
            "test": {"dev": {"accuracy": test}},
            "label_words": ["▁bad", "▁good"],
            "parameters": 1000,
            "seconds": 1.0,
            "device": "CPU",
            "versions": {},
        }


@pytest.fixture
def run(tiny_preset, sst2_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "JobRunner", Runner)

    def run(outcome, **fields) -> str:
        monkeypatch.setattr(Runner, "outcome", staticmethod(outcome))
        config = PromptConfig()
        config.override({"learning_rates": [3e-6, 4e-6]})
        arguments = {
            "preset": tiny_preset,
            "config": config.as_dict(),
            "task": "sst2",
            "template": "{first} {mask}",
            "words": [["bad"], ["good"]],
            "data_dir": sst2_dir,
        } | fields
        return run_prompt_experiment(PromptRun(**arguments), str(tmp_path / "out"), splits=3)

    return run


def test_the_learning_rate_is_chosen_on_the_few_dev_examples(run, tmp_path: Path):
    dev = {3e-6: [0.5, 0.9, 0.6], 4e-6: [0.7, 0.8, None]}
    test = {3e-6: [0.9, 0.61, 0.63], 4e-6: [0.65, 0.99, None]}

    def outcome(spec):
        rate, seed = spec["learning_rate"], spec["seed"]
        return None if dev[rate][seed] is None else (dev[rate][seed], test[rate][seed])

    path = run(outcome)
    found = json.loads((tmp_path / "out" / "sst2-prompts" / "results.json").read_text())
    assert found["learning_rates"] == [4e-6, 3e-6, 3e-6]
    summary = found["test"]["dev"]["accuracy"]
    assert summary["values"] == [0.65, 0.61, 0.63]
    assert summary["mean"] == pytest.approx(0.63)
    assert "| SST-2 | " in Path(path).read_text()
    assert "| accuracy | 63.0 (1.6) | 61.0 | 65.0 | 50.0 | 3 | 16 |" in Path(path).read_text()
    kept = sorted(
        str(p.parent.relative_to(tmp_path / "out")) for p in tmp_path.glob("out/*/*/*/preset")
    )
    assert kept == found["best_runs"] and len(kept) == 3


def test_a_split_that_diverged_altogether_is_a_mistake(run):
    with pytest.raises(UserError, match="sst2, split 1, .* diverged: .*learning_rates"):
        run(lambda spec: None if spec["seed"] == 1 else (0.5, 0.5))


def test_too_few_examples_are_told_before_anything_is_written(run, tmp_path: Path):
    with pytest.raises(UserError, match="too few to draw 90 to learn from"):
        run(lambda spec: (0.5, 0.5), shots=90)
    assert not (tmp_path / "out").exists()

import json
from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import prompt_experiment as module
from cocolm_tf.finetuning.prompt_config import Prompt, PromptConfig
from cocolm_tf.finetuning.prompt_experiment import run_prompt_experiment


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
            "test": {"dev": {"accuracy": test}},
            "label_words": ["▁bad", "▁good"],
            "parameters": 1000,
            "seconds": 1.0,
            "device": "CPU",
            "versions": {},
        }


@pytest.fixture
def run(tiny_preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "JobRunner", Runner)

    def run(outcome) -> str:
        monkeypatch.setattr(Runner, "outcome", staticmethod(outcome))
        config = PromptConfig()
        config.override({"learning_rates": [3e-6, 4e-6]})
        prompt = Prompt("{first} {mask}", [["bad"], ["good"]])
        return run_prompt_experiment(
            tiny_preset, "sst2", None, config, prompt, 16, 3, str(tmp_path)
        )

    return run


def test_the_learning_rate_is_chosen_on_the_few_dev_examples(run, tmp_path: Path):
    dev = {3e-6: [0.5, 0.9, 0.6], 4e-6: [0.7, 0.8, None]}
    test = {3e-6: [0.9, 0.61, 0.63], 4e-6: [0.65, 0.99, None]}

    def outcome(spec):
        rate, seed = spec["learning_rate"], spec["seed"]
        return None if dev[rate][seed] is None else (dev[rate][seed], test[rate][seed])

    path = run(outcome)
    found = json.loads((tmp_path / "sst2" / "results.json").read_text())
    assert found["learning_rates"] == [4e-6, 3e-6, 3e-6]
    summary = found["test"]["dev"]["accuracy"]
    assert summary["values"] == [0.65, 0.61, 0.63]
    assert summary["mean"] == pytest.approx(0.63)
    assert "| SST-2 | " in Path(path).read_text()
    assert "| accuracy | 63.0 (1.6) | 61.0 | 65.0 | 3 | 16 |" in Path(path).read_text()
    kept = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.glob("*/*/*/preset"))
    assert kept == found["best_runs"] and len(kept) == 3


def test_a_split_that_diverged_altogether_is_a_mistake(run):
    with pytest.raises(UserError, match="sst2, split 1, .* diverged: .*learning_rates"):
        run(lambda spec: None if spec["seed"] == 1 else (0.5, 0.5))

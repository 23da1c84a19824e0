import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf import CocoLMPromptClassifier
from cocolm_tf.data.few_shot import few_shot_split
from cocolm_tf.data.glue import read_glue
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.prompt_config import PromptConfig
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.finetuning.prompting import (
    build_prompt_classifier,
    mean_outputs,
    prompt_batches,
    prompt_tokens,
    run_prompting,
)


class Listener:
    def progress(self, share, note=""):
        pass

    def say(self, text):
        self.said = text


@pytest.fixture
def make(tiny_preset, sst2_dir):
    def make(**changes) -> tuple[PromptRun, PromptConfig]:
        config = PromptConfig()
        config.override({"batch_size": 4, "steps": 20, "validation_interval": 10, "draws": 2})
        config.override({"dropout": 0.0, "demonstrations": False})
        config.override(changes)
        run = PromptRun(
            preset=tiny_preset,
            config=config.as_dict(),
            task="sst2",
            template="{first} {mask} .",
            words=[["bad"], ["good"]],
            data_dir=sst2_dir,
            shots=8,
            learning_rate=1e-2,
        )
        return run, config

    return make


def test_a_run(make, tmp_path: Path):
    run, _ = make()
    listener = Listener()
    spec = json.loads(json.dumps(dataclasses.asdict(run)))
    results = run_prompting(spec, str(tmp_path), listener)
    assert json.loads(json.dumps(results)) == results
    assert set(results["test"]["dev"]) == {"accuracy", "f1"}
    assert [look["score"] for look in results["looks"]].index(results["score"]) + 1 == (
        results["best_step"] // 10
    )
    assert set(results["baseline"]["dev"].values()) <= {0, 0.5, 2 / 3} | {
        results["baseline"]["dev"]["accuracy"]
    }
    assert results["label_words"] == ["▁bad", "▁good"] and results["rows"] == {"dev": 20}
    assert "16 examples to learn from" in listener.said
    loaded = CocoLMPromptClassifier.from_preset(str(tmp_path / "preset"))
    dev = read_glue("sst2", run.data_dir).dev["dev"]
    found = loaded.predict(dev.first, verbose=0).argmax(1)
    assert (found == dev.labels).mean() == pytest.approx(results["test"]["dev"]["accuracy"])
    card = (tmp_path / "preset" / "README.md").read_text()
    assert "8 examples of each class" in card and "`{first} {mask} .`" in card


def test_every_epoch_has_every_example_and_other_demonstrations(make):
    run, config = make(demonstrations=True)
    data = read_glue(run.task, run.data_dir)
    train, _ = few_shot_split(data, run.shots, run.seed)
    classifier = build_prompt_classifier(run, config, data, train)
    batches = prompt_batches(classifier, train, batch_size=5, seed=0).take(8)
    rows = [tuple(ids) for x, _ in batches for ids in np.array(x["token_ids"]).tolist()]
    first, second = rows[:16], rows[16:]
    mask = classifier.mask_token_id

    def prompts(rows) -> list[tuple]:
        return sorted(row[: row.index(mask)] for row in rows)

    assert len(rows) == 32 and prompts(first) == prompts(second)
    assert sorted(first) != sorted(second)


def test_predictions_are_the_mean_over_draws(make):
    run, config = make(demonstrations=True)
    data = read_glue(run.task, run.data_dir)
    train, dev = few_shot_split(data, run.shots, run.seed)
    classifier = build_prompt_classifier(run, config, data, train)
    tokens = [prompt_tokens(classifier, dev, draw) for draw in range(3)]
    found = mean_outputs(classifier, tokens)
    outputs = [classifier(classifier.preprocessor(list(dev.first), draw=draw)) for draw in range(3)]
    np.testing.assert_allclose(found, np.mean(outputs, axis=0), atol=1e-5)
    assert not np.allclose(outputs[0], outputs[1])


def test_a_length_that_the_model_has_not_is_refused(make):
    run, config = make(sequence_length=25)
    data = read_glue(run.task, run.data_dir)
    with pytest.raises(UserError, match="sequence_length=25 is more than the model's 24 positions"):
        build_prompt_classifier(run, config, data, data.train)


def test_a_run_that_diverges_says_so(make, tmp_path: Path):
    run, _ = make()
    spec = dataclasses.asdict(dataclasses.replace(run, learning_rate=1e30))
    assert run_prompting(spec, str(tmp_path), Listener())["diverged"] is True

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from cocolm_tf import CocoLMTextClassifier
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.classification import run_classification
from cocolm_tf.finetuning.classification_run import ClassificationRun
from cocolm_tf.finetuning.config import FinetuningConfig

FAST = {
    "model": {"dropout": 0.0},
    "optimizer": {"learning_rate": 1e-2},
    "trainer": {"batch_size": 8, "epochs": 6},
}


class Listener:
    def __init__(self):
        self.said, self.shares = [], []

    def progress(self, share, note=""):
        self.shares.append(share)

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def run(tiny_preset, sst2_dir, tmp_path: Path):
    """Runs it; takes changes of the configuration, and of the run by keyword."""

    def run(*changes, listener=None, **fields):
        config = FinetuningConfig()
        for change in (FAST, *changes):
            config.override(change)
        data = {"glue": {"task": "sst2", "data_dir": sst2_dir}}
        spec = ClassificationRun(preset=tiny_preset, data=data, config=config.as_dict(), **fields)
        spec = json.loads(json.dumps(dataclasses.asdict(spec)))
        return run_classification(spec, str(tmp_path), listener or Listener())

    return run


def test_it_learns_measures_predicts_and_saves(run, tmp_path: Path):
    listener = Listener()
    results = run(listener=listener)
    assert results["score"] == results["dev"]["dev"]["accuracy"] > 0.8
    scores = [epoch["score"] for epoch in results["epochs"]]
    assert len(scores) == 6 and scores[results["best_epoch"] - 1] == max(scores)
    assert json.loads(json.dumps(results)) == results
    assert listener.shares[-1] == 1.0
    assert "train: 120 rows" in listener.said[0] and "0 truncated" in listener.said[0]

    lines = (tmp_path / "predictions" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 10
    classifier = CocoLMTextClassifier.from_preset(str(tmp_path / "preset"))
    assert classifier.label_names == ["negative", "positive"]
    texts = [row.split("\t")[1] for row in _lines_of(results["data"]["SST-2"]["source"])]
    found = classifier.predict(texts, verbose=0).argmax(1)
    assert [line.split("\t")[1] for line in lines[1:]] == [str(label) for label in found]


def _lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()[1:]


def test_the_model_card_has_metrics_and_settings(run, tmp_path: Path):
    results = run({"trainer": {"epochs": 1}})
    card = (tmp_path / "preset" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    found = {
        result["metrics"][0]["type"]: result["metrics"][0]["value"]
        for result in metadata["model-index"][0]["results"]
    }
    assert found == results["dev"]["dev"]
    assert "| optimizer.learning_rate | 0.01 |" in card and "120 rows of" in card
    assert "negative, positive" in card


def test_the_seed_decides_and_nothing_else(run):
    def outcome(**fields):
        results = run({"trainer": {"epochs": 1}}, save_preset=False, **fields)
        return [epoch["loss"] for epoch in results["epochs"]]

    assert outcome() == outcome() != outcome(seed=1)


def test_a_fraction_of_the_training_rows(run):
    results = run({"trainer": {"epochs": 1}}, save_preset=False, train_fraction=0.25)
    train = results["data"]["train"]
    assert train["rows"] == 30 and min(train["labels"].values()) >= 12
    assert results["steps_per_epoch"] == 4


def test_from_scratch_ignores_the_weights(run):
    changes = {"trainer": {"epochs": 1}, "optimizer": {"learning_rate": 1e-9}}
    # The preset's own random weights are those of another seed.
    results = [run(changes, from_scratch=value, seed=9) for value in (False, True)]
    assert results[0]["epochs"][0]["loss"] != results[1]["epochs"][0]["loss"]
    assert results[0]["parameters"] == results[1]["parameters"]


def test_other_ways_to_batch_and_to_learn(run):
    plain = run({"trainer": {"epochs": 1}}, save_preset=False)
    equal = run({"trainer": {"epochs": 1}, "data": {"length_buckets": 0}}, save_preset=False)
    assert plain["steps_per_epoch"] == equal["steps_per_epoch"] == 15
    changes = {"model": {"lora_rank": 2}, "optimizer": {"layer_decay": 0.8, "clip_norm": 1.0}}
    assert run(changes, save_preset=False)["epochs"][-1]["loss"] < 0.7


def test_a_run_that_diverges_says_so(run, tmp_path: Path):
    results = run({"optimizer": {"learning_rate": 1e30, "warmup_fraction": 0.0}})
    assert results["diverged"] is True and "score" not in results
    assert not (tmp_path / "preset").exists()


def test_a_length_that_the_model_has_not_is_refused(run):
    with pytest.raises(UserError, match="sequence_length=25 is more than the model's 24 positions"):
        run({"data": {"sequence_length": 25}})


def test_texts_longer_than_the_model_are_cut_and_counted(run):
    results = run({"trainer": {"epochs": 1}, "data": {"sequence_length": 6}}, save_preset=False)
    tokens = results["data"]["train"]["tokens"]
    assert tokens["longest"] == 6 and tokens["truncated"] > 80


def test_a_regression(tiny_preset, write, tmp_path: Path):
    rows = "".join(f"a cat {'good ' * number}\t{number}\n" for number in range(6)) * 8
    table = {
        "train_file": write("rows.tsv", "text\tscore\n" + rows),
        "test_file": write("new.tsv", "text\na cat good\na cat good good good good good\n"),
        "text_column": "text",
        "label_column": "score",
        "regression": True,
    }
    config = FinetuningConfig()
    config.override(FAST | {"trainer": {"batch_size": 8, "epochs": 8}})
    spec = ClassificationRun(preset=tiny_preset, data={"table": table}, config=config.as_dict())
    results = run_classification(dataclasses.asdict(spec), str(tmp_path), Listener())
    assert results["metric"] == "spearman" and results["score"] > 0.7
    lines = (tmp_path / "predictions" / "test.tsv").read_text().splitlines()[1:]
    low, high = (float(line.split("\t")[1]) for line in lines)
    assert low < high and np.isfinite([low, high]).all()

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from scipy.special import softmax
from tiny_presets import opinions

from cocolm_tf import CocoLMTextClassifier, files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig, from_dict
from cocolm_tf.finetuning.predictions import leave_predictions
from cocolm_tf.finetuning.run import Training, run_task
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.classification import (
    ClassificationTask,
    build_classifier,
    smoothed_loss,
    weights_of_classes,
)

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


@pytest.fixture(scope="module")
def spec_of(tiny_preset, sst2_dir):
    """Makes specs; takes changes of the configuration, and of the run by keyword."""

    def spec_of(*changes, **fields):
        config = FinetuningConfig()
        for change in (FAST, *changes):
            config.override(change)
        data = {"glue": {"task": "sst2", "data_dir": sst2_dir}}
        fields = {"preset": tiny_preset, "data": data} | fields
        task = ClassificationTask(config=config.as_dict(), **fields)
        return json.loads(json.dumps(task.spec()))

    return spec_of


@pytest.fixture
def run(spec_of, tmp_path: Path):
    def run(*changes, **fields):
        return run_task(spec_of(*changes, **fields), str(tmp_path), Listener())

    return run


@pytest.fixture(scope="module")
def done(spec_of, tmp_path_factory) -> tuple[dict, Path, Listener]:
    """A run's results, its folder and what it told."""
    folder, listener = tmp_path_factory.mktemp("done"), Listener()
    return run_task(spec_of(), str(folder), listener), folder, listener


def test_it_learns_measures_predicts_and_saves(done):
    results, folder, listener = done
    assert results["score"] == results["dev"]["dev"]["accuracy"] > 0.8
    scores = [epoch["score"] for epoch in results["epochs"]]
    assert len(scores) == 6 and scores[results["best_epoch"] - 1] == max(scores)
    assert json.loads(json.dumps(results)) == results
    assert listener.shares[-1] == 1.0
    assert "train: 120 rows" in listener.said[0] and "0 truncated" in listener.said[0]
    labels = list(results["data"]["dev"]["labels"].values())
    assert results["baseline"]["dev"]["accuracy"] in [count / 20 for count in labels]

    assessment = results["assessment"]["dev"]
    assert sum(map(sum, assessment["confusion"])) == 20
    assert all((folder / path).is_file() for path in assessment["figures"])
    assert len((folder / "outputs" / "dev.csv").read_text().splitlines()) == 21

    lines = (folder / "predictions" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 10
    classifier = CocoLMTextClassifier.from_preset(str(folder / "preset"))
    assert classifier.label_names == ["negative", "positive"]
    texts = [row.split("\t")[1] for row in _lines_of(results["data"]["SST-2"]["source"])]
    found = classifier.predict(texts, verbose=0).argmax(1)
    assert [line.split("\t")[1] for line in lines[1:]] == [str(label) for label in found]


def _lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()[1:]


def test_all_of_a_run_may_be_on_a_store(spec_of, tiny_preset, sst2_dir, tmp_path: Path, to_store):
    spec = spec_of({"trainer": {"epochs": 1}}, preset=to_store(tiny_preset))
    spec["data"]["glue"]["data_dir"] = to_store(sst2_dir)
    folder = to_store(tmp_path / "run")
    run_task(spec, folder, Listener())
    left = {"predictions", "outputs", "figures", "preset", "metrics.jsonl", "tensorboard"}
    assert left == set(files.list_dir(folder))
    classifier = CocoLMTextClassifier.from_preset(f"{folder}/preset")
    with files.local_copy(folder) as copy:
        same = CocoLMTextClassifier.from_preset(f"{copy}/preset")
    for one, other in zip(classifier.weights, same.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_model_card_has_metrics_and_settings(done):
    results, folder, _ = done
    card = (folder / "preset" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    found = {
        result["metrics"][0]["type"]: result["metrics"][0]["value"]
        for result in metadata["model-index"][0]["results"]
    }
    assert found == results["dev"]["dev"]
    assert "| optimizer.learning_rate | 0.01 |" in card and "120 rows of" in card
    assert "negative, positive" in card
    assert f"scores accuracy {results['baseline']['dev']['accuracy']:.4f} (dev)" in card


def test_the_same_run_has_the_same_outcome(done, run):
    again = run(save_preset=False)
    assert [epoch["loss"] for epoch in again["epochs"]] == [
        epoch["loss"] for epoch in done[0]["epochs"]
    ]


def test_a_run_that_was_ended_within_an_epoch_has_the_same_outcome(done, run, monkeypatch):
    ordinary = Training.on_train_batch_begin

    def end_at_step_20(training, batch, logs=None):
        ordinary(training, batch, logs)
        if training._step == 20:
            raise KeyboardInterrupt

    # A checkpoint before every step; the run has 15 an epoch.
    often = {"trainer": {"checkpoint_minutes": 0.0}}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "on_train_batch_begin", end_at_step_20)
        run(often, save_preset=False)
    steps = []

    def watch(training, batch, logs=None):
        steps.append(training._begun + batch)

    monkeypatch.setattr(Training, "on_train_batch_begin", watch)
    resumed = run(often, save_preset=False)
    assert steps == list(range(20, 90))
    for one, other in zip(resumed["epochs"], done[0]["epochs"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["dev"] == other["dev"]


def test_the_seed_and_the_start_decide_the_weights(spec_of):
    def weights(**fields) -> tuple[np.ndarray, np.ndarray]:
        task = task_of(spec_of(**fields))
        model = build_classifier(task, from_dict(task.config, "the run"), task.read())
        return np.array(model.pooled_dense.kernel), np.array(model.backbone.blocks[0].query.kernel)

    (head, encoder), (same_head, _), (other_head, same_encoder), (_, other_encoder) = (
        weights(),
        weights(),
        weights(seed=1),
        # Seed 0 would draw the weights that the tiny preset was built with.
        weights(from_scratch=True, seed=2),
    )
    np.testing.assert_array_equal(head, same_head)
    np.testing.assert_array_equal(encoder, same_encoder)
    assert not np.allclose(head, other_head) and not np.allclose(encoder, other_encoder)


def test_a_fraction_of_the_rows_cut_to_a_length(run):
    changes = {"trainer": {"epochs": 1}, "data": {"sequence_length": 6}}
    results = run(changes, save_preset=False, train_fraction=0.25)
    train = results["data"]["train"]
    assert train["rows"] == 30 and min(train["labels"].values()) >= 12
    assert results["steps_per_epoch"] == 4
    assert train["tokens"]["longest"] == 6 and train["tokens"]["truncated"] > 20


def test_other_ways_to_batch_and_to_learn(run, tmp_path):
    results = run(
        {"data": {"length_buckets": 0}, "model": {"lora_rank": 2}},
        {"optimizer": {"layer_decay": 0.8, "clip_norm": 1.0}},
        {"trainer": {"label_smoothing": 0.1}},
        metric="f1",
        class_weights="balanced",
        save_preset=False,
    )
    assert results["metric"] == "f1" and results["score"] == results["dev"]["dev"]["f1"]
    assert list(results["dev"]["dev"]) == ["f1", "accuracy"]
    # What nobody asks for is not predicted.
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
    assert results["steps_per_epoch"] == 15
    assert results["epochs"][-1]["loss"] < 0.7


def test_a_run_that_diverges_says_so(run, tmp_path: Path):
    results = run({"optimizer": {"learning_rate": 1e30, "warmup_fraction": 0.0}})
    assert results["diverged"] is True and "score" not in results
    assert not (tmp_path / "preset").exists()


def test_a_length_that_the_model_has_not_is_refused(run):
    with pytest.raises(UserError, match="sequence_length=25 is more than the model's 24 positions"):
        run({"data": {"sequence_length": 25}})


DATA = TaskData("T", ("a", "b=c"), Examples(["x"] * 4, labels=np.int32([0, 0, 0, 1])), {}, {})


@pytest.mark.parametrize(
    ("text", "weights"),
    [("", None), ("balanced", [2 / 3, 2]), ("b=c=3", [2 / 3, 2]), ("a=0", [0, 4]), ("a=1", [1, 1])],
)
def test_classes_count_as_they_are_told(text, weights):
    found = weights_of_classes(text, DATA)
    assert (found is None) == (weights is None)
    if weights:
        np.testing.assert_allclose(found, weights, rtol=1e-6)
        assert found[DATA.train.labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("text", ["c=2", "a", "a=x", "a=-1", "a=0,b=c=0"])
def test_weights_of_no_class_are_named(text):
    with pytest.raises(UserError, match="--class_weights"):
        weights_of_classes(text, DATA)


def test_labels_that_are_not_quite_sure():
    loss = smoothed_loss(0.2, DATA)["loss"]
    logits = np.float32([[2.0, -1.0], [0.5, 0.0]])
    shares = np.float32([[0.9, 0.1], [0.1, 0.9]])
    expected = -(shares * np.log(softmax(logits, axis=1))).sum(axis=1)
    np.testing.assert_allclose(loss(tf.constant([0, 1]), tf.constant(logits)), expected, rtol=1e-5)
    assert smoothed_loss(0.0, DATA) == {}


def test_a_run_may_start_from_a_model_of_another_task(run, fine_tuned):
    """As RTE, MRPC and STS-B do from one of MNLI: the encoder is taken, the head is new."""
    results = run({"trainer": {"epochs": 1}}, preset=fine_tuned, save_preset=False)
    # An epoch does for what the encoder knows.
    assert results["score"] > 0.9


def test_seeds_are_measured_together(tmp_path, spec_of):
    task = task_of(spec_of())
    data = task.read()
    shares = {
        part: np.random.default_rng(0).dirichlet([1, 1], (2, len(examples)))
        for part, examples in {**data.dev, **data.test}.items()
    }
    runs = [str(tmp_path / f"seed_{number}") for number in range(2)]
    for number, folder in enumerate(runs):
        leave_predictions(folder, {part: of[number] for part, of in shares.items()}, data)
    found = task.ensemble(runs, str(tmp_path / "ensemble"))
    right = shares["dev"].mean(axis=0).argmax(axis=1) == data.dev["dev"].labels
    assert found["dev"]["dev"]["accuracy"] == right.mean()
    lines = (tmp_path / "ensemble" / "predictions" / "SST-2.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in lines] == [
        str(label) for label in shares["SST-2"].mean(axis=0).argmax(axis=1)
    ]


def test_a_regression(run, write, tmp_path: Path):
    """Of numbers far from what a new head says."""
    rows = "".join(f"a cat {'good ' * number}\t{number + 1000}\n" for number in range(6)) * 8
    table = {
        "train_file": write("rows.tsv", "text\tscore\n" + rows),
        "test_file": write("new.tsv", "text\na cat good\na cat good good good good good\n"),
        "text_column": "text",
        "label_column": "score",
        "regression": True,
    }
    results = run({"trainer": {"epochs": 8}}, data={"table": table})
    assert results["metric"] == "spearman" and results["score"] > 0.7
    guess = results["baseline"]["dev"]
    assert (guess["spearman"], guess["pearson"]) == (0, 0) and guess["mae"] > 1
    lines = (tmp_path / "predictions" / "test.tsv").read_text().splitlines()[1:]
    low, high = (float(line.split("\t")[1]) for line in lines)
    assert low < high
    errors = results["dev"]["dev"]
    assert errors["mae"] <= errors["rmse"] < 2
    loaded = CocoLMTextClassifier.from_preset(str(tmp_path / "preset"))
    found = loaded.predict(["a cat good", "a cat good good good good good"], verbose=0)
    np.testing.assert_allclose(found[:, 0], [low, high], atol=1e-2)


def test_several_labels_a_text(tiny_preset, tmp_path: Path):
    rows = []
    for text, label in opinions(80, seed=4):
        labels = [("bad", "good")[label], *(["cat"] if "cat" in text.split() else [])]
        rows.append(f"{text}\t{'|'.join(labels)}\n")
    (tmp_path / "t.tsv").write_text("text\ttopics\n" + "".join(rows))
    path = str(tmp_path / "t.tsv")
    table = {"train_file": path, "dev_file": path, "test_file": path, "label_separator": "|"}
    table |= {"text_column": "text", "label_column": "topics"}
    config = FinetuningConfig()
    config.override(FAST)
    task = ClassificationTask(
        preset=tiny_preset,
        config=config.as_dict(),
        data={"table": table},
        tune_thresholds=True,
        metric="macro_f1",
    )
    (tmp_path / "run").mkdir()
    results = run_task(task.spec(), str(tmp_path / "run"), Listener())
    assert json.loads(json.dumps(results)) == results
    assert list(results["dev"]["dev"]) == ["macro_f1", "micro_f1", "exact_match"]
    assert results["score"] == results["dev"]["dev"]["macro_f1"] > 0.6
    assert results["tuned"]["dev"]["macro_f1"] >= results["score"]
    classifier = CocoLMTextClassifier.from_preset(str(tmp_path / "run" / "preset"))
    assert classifier.thresholds == pytest.approx(results["thresholds"])
    lines = (tmp_path / "run" / "predictions" / "test.tsv").read_text().splitlines()[1:]
    texts = [row.split("\t")[0] for row in rows]
    found = classifier.assigned(classifier.predict(texts, verbose=0))
    names = np.array(classifier.label_names)
    assert [line.split("\t")[1] for line in lines] == ["|".join(names[row]) for row in found]

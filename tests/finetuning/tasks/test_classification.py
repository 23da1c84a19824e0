import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from scipy.special import softmax
from superglue_data import write_superglue
from tiny_presets import opinions

from cocolm_tf import CocoLMTextClassifier, files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.superglue import SUPERGLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import predictions as predictions_module
from cocolm_tf.finetuning import run as run_module
from cocolm_tf.finetuning.batches import Tokens
from cocolm_tf.finetuning.config import FinetuningConfig, from_dict
from cocolm_tf.finetuning.predictions import save_predictions
from cocolm_tf.finetuning.run import Training
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.classification import (
    ClassificationTask,
    SuperGlueClassificationTask,
    build_classifier,
    data_lines,
    describe_data,
    smoothed_loss,
    weights_of_classes,
)

FAST = {
    "data": {"length_buckets": 1},
    "model": {"dropout": 0.0},
    "optimizer": {"learning_rate": 1e-2},
    "trainer": {"batch_size": 8, "epochs": 4},
}
SHORT = {"trainer": {"epochs": 1}}


@pytest.fixture(scope="module")
def task(tiny_preset, sst2_dir):
    """Makes tasks; takes changes of the configuration, and fields by keyword."""

    def task(*changes, of=ClassificationTask, **fields) -> ClassificationTask:
        config = FinetuningConfig()
        for change in (FAST, *changes):
            config.override(change)
        data = {"glue": {"task": "sst2", "data_dir": sst2_dir}}
        fields = {"preset": tiny_preset, "data": data} | fields
        return of(config=config.as_dict(), **fields)

    return task


@pytest.fixture
def run(task, do_task, tmp_path: Path):
    return lambda *changes, **fields: do_task(task(*changes, **fields), tmp_path)[0]


@pytest.fixture(scope="module")
def done(task, do_task, tmp_path_factory) -> tuple:
    """A run's results, what it told, and its folder."""
    folder = tmp_path_factory.mktemp("done")
    return *do_task(task(), folder), folder


def test_it_learns_measures_predicts_and_saves(done):
    results, listener, folder = done
    assert results["score"] == results["dev"]["dev"]["accuracy"] > 0.8
    scores = [epoch["score"] for epoch in results["epochs"]]
    assert len(scores) == 4 and scores[results["best_epoch"] - 1] == max(scores)
    assert listener.heard[-1][0] == 1.0
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
    rows = Path(results["data"]["SST-2"]["source"]).read_text().splitlines()[1:]
    found = classifier.predict([row.split("\t")[1] for row in rows], verbose=0).argmax(1)
    assert [line.split("\t")[1] for line in lines[1:]] == [str(label) for label in found]

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


def test_all_of_a_run_may_be_on_a_store(task, do_task, tiny_preset, sst2_dir, tmp_path, to_store):
    data = {"glue": {"task": "sst2", "data_dir": to_store(sst2_dir)}}
    folder = to_store(tmp_path / "run")
    do_task(task(SHORT, preset=to_store(tiny_preset), data=data), folder)
    left = {"predictions", "outputs", "figures", "preset", "metrics.jsonl", "tensorboard"}
    assert left == set(files.list_dir(folder))
    classifier = CocoLMTextClassifier.from_preset(f"{folder}/preset")
    with files.local_copy(folder) as copy:
        same = CocoLMTextClassifier.from_preset(f"{copy}/preset")
    for one, other in zip(classifier.weights, same.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_that_was_ended_within_an_epoch_has_the_same_outcome(done, run, monkeypatch):
    ordinary = Training.on_train_batch_begin

    def save_at_step_20_and_end(training, batch, logs=None):
        step = training._interval_begin + batch
        training._saved -= 1e9 if step == 20 else 0
        ordinary(training, batch, logs)
        if step == 20:
            raise KeyboardInterrupt

    # A run has 15 steps an epoch.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "on_train_batch_begin", save_at_step_20_and_end)
        run(save_preset=False)
    steps = []

    def watch(training, batch, logs=None):
        steps.append(training._interval_begin + batch)

    monkeypatch.setattr(Training, "on_train_batch_begin", watch)
    resumed = run(save_preset=False)
    assert steps == list(range(20, 60))
    for one, other in zip(resumed["epochs"], done[0]["epochs"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["dev"] == other["dev"]


def test_a_run_on_several_devices(done, task, do_task, tmp_path, monkeypatch, mirrored_strategy):
    monkeypatch.setattr(run_module, "make_strategy", lambda *_: mirrored_strategy)
    where = {"distribution_strategy": "mirrored"}
    first, _ = do_task(task(save_preset=False), tmp_path, until=1 / 4, **where)
    assert len(first["epochs"]) == 1 and (tmp_path / "state.npz").exists()
    second, _ = do_task(task(save_preset=False), tmp_path, until=2 / 4, **where)
    for one, other in zip(second["epochs"], done[0]["epochs"][:2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["dev"] == other["dev"]


def test_the_seed_and_the_start_decide_the_weights(task):
    def weights(**fields) -> tuple[np.ndarray, np.ndarray]:
        made = task(**fields)
        model = build_classifier(made, from_dict(made.config, "the run"), made.read())
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


def test_other_ways_to_batch_and_to_learn(run, tmp_path):
    results = run(
        SHORT,
        {"data": {"length_buckets": 8, "sequence_length": 12}, "model": {"lora_rank": 2}},
        {"optimizer": {"layer_decay": 0.8, "clip_norm": 1.0}},
        {"trainer": {"label_smoothing": 0.1}},
        metric="f1",
        class_weights="balanced",
        train_fraction=0.25,
        save_preset=False,
    )
    assert results["metric"] == "f1" and results["score"] == results["dev"]["dev"]["f1"]
    assert list(results["dev"]["dev"]) == ["f1", "accuracy"]
    # What nobody asks for is not predicted.
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
    train = results["data"]["train"]
    assert train["rows"] == 30 and min(train["labels"].values()) >= 12
    assert train["tokens"]["longest"] == 12 and train["tokens"]["truncated"] > 0
    assert results["steps_per_epoch"] == 4


def test_a_run_that_diverges_says_so(run, tmp_path: Path):
    results = run(SHORT, {"optimizer": {"learning_rate": 1e30, "warmup_fraction": 0.0}})
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
def test_classes_count_as_asked(text, weights):
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
    results = run(SHORT, preset=fine_tuned, save_preset=False)
    # An epoch does for what the encoder knows.
    assert results["score"] > 0.9


def test_seeds_are_measured_together(tmp_path, task, monkeypatch):
    monkeypatch.setattr(predictions_module, "draw_assessment", lambda *_: [])
    made = task()
    data = made.read()
    shares = {
        part: np.random.default_rng(0).dirichlet([1, 1], (2, len(examples)))
        for part, examples in {**data.dev, **data.test}.items()
    }
    runs = [str(tmp_path / f"seed_{number}") for number in range(2)]
    for number, folder in enumerate(runs):
        save_predictions(folder, {part: of[number] for part, of in shares.items()}, data)
    found = made.ensemble(runs, str(tmp_path / "ensemble"))
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


def test_several_labels_a_text(run, write, tmp_path: Path):
    rows = []
    for text, label in opinions(80, seed=4):
        labels = [("bad", "good")[label], *(["cat"] if "cat" in text.split() else [])]
        rows.append(f"{text}\t{'|'.join(labels)}\n")
    path = write("t.tsv", "text\ttopics\n" + "".join(rows))
    table = {"train_file": path, "dev_file": path, "test_file": path, "label_separator": "|"}
    table |= {"text_column": "text", "label_column": "topics"}
    results = run(data={"table": table}, tune_thresholds=True, metric="macro_f1")
    assert list(results["dev"]["dev"]) == ["macro_f1", "micro_f1", "exact_match"]
    assert results["score"] == results["dev"]["dev"]["macro_f1"] > 0.5
    assert results["tuned"]["dev"]["macro_f1"] >= results["score"]
    classifier = CocoLMTextClassifier.from_preset(str(tmp_path / "preset"))
    assert classifier.thresholds == pytest.approx(results["thresholds"])
    lines = (tmp_path / "predictions" / "test.tsv").read_text().splitlines()[1:]
    texts = [row.split("\t")[0] for row in rows]
    found = classifier.assigned(classifier.predict(texts, verbose=0))
    names = np.array(classifier.label_names)
    assert [line.split("\t")[1] for line in lines] == ["|".join(names[row]) for row in found]


# --- What is told of the data ---


def test_rows_labels_lengths_and_what_was_cut_or_left_out():
    train = Examples(
        ["a"] * 1500, None, np.int32([0] * 500 + [1] * 1000), "x.tsv", ["line 3 is bad"]
    )
    data = TaskData("mine", ["no", "yes"], train, {"dev": train.select([0, 1])}, {})
    tokens = Tokens(np.zeros(0), np.full(1500, 7), 64, 1)
    report = describe_data(data, train, {"train": tokens})
    assert report["train"] == {
        "rows": 1500,
        "source": "x.tsv",
        "left_out": ["line 3 is bad"],
        "labels": {"no": 500, "yes": 1000},
        "tokens": {"median": 7, "percentile_95": 7, "longest": 7, "truncated": 1},
    }
    assert data_lines("mine", report).splitlines() == [
        "mine:",
        "  train: 1,500 rows of x.tsv; labels: no 500 (33.3%), yes 1,000 (66.7%); tokens: median "
        "7, 95% up to 7, longest 7; 1 truncated",
        "    left out: line 3 is bad",
        "  dev: 2 rows of x.tsv; labels: no 2 (100.0%), yes 0 (0.0%)",
        "    left out: line 3 is bad",
    ]


def test_numbers_and_texts_without_labels():
    train = Examples(["a", "b"], None, np.float32([1, 4]), "x")
    data = TaskData("mine", None, train, {}, {"test": Examples(["a"], source="y")})
    lines = data_lines("mine", describe_data(data, train, {})).splitlines()
    assert lines[1:] == [
        "  train: 2 rows of x; labels: mean 2.50, from 1 to 4",
        "  test: 1 rows of y",
    ]


# --- SuperGLUE ---


@pytest.fixture(scope="module")
def superglue(task, tmp_path_factory: pytest.TempPathFactory):
    """Makes tasks of SuperGLUE by their names."""
    folder = write_superglue(tmp_path_factory.mktemp("superglue"), repeat=4)

    def superglue(name: str, **fields) -> SuperGlueClassificationTask:
        data = {"superglue": {"task": name, "data_dir": folder}}
        made = task(SHORT, of=SuperGlueClassificationTask, data=data, **fields)
        return task_of(json.loads(json.dumps(made.spec())))

    return superglue


def test_a_run_chooses_among_candidates(superglue, do_task, tmp_path):
    results, _ = do_task(superglue("copa"), tmp_path)
    assert (results["task"], results["metric"]) == ("COPA", "accuracy")
    # One choice of three is the first.
    assert results["baseline"]["dev"]["accuracy"] == pytest.approx(2 / 3)
    assert results["dev"]["dev"]["accuracy"] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    lines = (tmp_path / "predictions" / "COPA.jsonl").read_text().splitlines()
    assert [json.loads(line)["idx"] for line in lines] == [0, 1, 2]
    assert {json.loads(line)["label"] for line in lines} <= {0, 1}
    assert "aps/super_glue" in (tmp_path / "preset" / "README.md").read_text()


@pytest.mark.parametrize("name", ["cb", "multirc", "record", "rte", "wsc"])
def test_every_task_is_measured_and_predicted(superglue, tmp_path, monkeypatch, name):
    monkeypatch.setattr(predictions_module, "draw_assessment", lambda *_: [])
    made, folder = superglue(name), str(tmp_path)
    data = made.read()
    draw = np.random.default_rng(0)
    shares = {
        part: draw.dirichlet(np.ones(data.num_classes), len(examples))
        for part, examples in {**data.dev, **data.test}.items()
    }
    scores = made.evaluated(data, "dev", made.predicted(data, "dev", shares["dev"]))
    assert tuple(scores) == SUPERGLUE_TASKS[name].metrics
    assert all(0 <= value <= 1 for value in scores.values())
    made.save_predictions(folder, shares, data)
    title = SUPERGLUE_TASKS[name].title
    (first, *_) = (tmp_path / "predictions" / f"{title}.jsonl").read_text().splitlines()
    assert "idx" in json.loads(first)
    assert (tmp_path / "predictions" / "AX-b.jsonl").exists() == (name == "rte")


def test_a_fraction_has_whole_questions(superglue):
    some = superglue("copa", train_fraction=0.5, seed=1)
    data = some.read()
    # The same idx is the same question, however often the file has it.
    kept = some.sample(data)
    groups = data.rows["train"].groups
    assert len(np.unique(groups[kept])) == 2
    assert set(kept) == set(np.flatnonzero(np.isin(groups, groups[kept])))


def test_a_metric_of_another_task(superglue):
    cb = superglue("cb", metric="accuracy")
    assert cb.check() == "CB"
    with pytest.raises(UserError, match="--metric=f1a: that of CB is one of macro_f1, accuracy"):
        dataclasses.replace(cb, metric="f1a").check()

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tiny_presets import BAD, GOOD, WORDS

from cocolm_tf import CocoLMTokenClassifier
from cocolm_tf.data.tags import read_tagged_texts
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.tokens import TokensTask

FAST = {
    "data": {"length_buckets": 1},
    "model": {"dropout": 0.0},
    "optimizer": {"learning_rate": 1e-2},
    "trainer": {"batch_size": 8, "epochs": 4},
}


def sentences(count: int, seed: int) -> list[list[tuple[str, str]]]:
    """Words with the tags of the one opinion among them."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = [(word, "O") for word in draw.choices(WORDS.split(), k=draw.randrange(2, 12))]
        label, opinions = draw.choice((("GOOD", GOOD), ("BAD", BAD)))
        words.insert(draw.randrange(len(words)), (draw.choice(opinions), f"B-{label}"))
        found.append(words)
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    for name, count, seed in (("train", 120, 1), ("dev", 20, 2), ("test", 10, 3)):
        blocks = ["".join(f"{w} {t}\n" for w, t in words) for words in sentences(count, seed)]
        (folder / f"{name}.conll").write_text("\n".join(blocks))
    return folder


@pytest.fixture(scope="module")
def spec_of(tiny_preset, inputs):
    def spec_of(data: dict | None = None, config: dict | None = None, **fields):
        settings = FinetuningConfig()
        for change in (FAST, config or {}):
            settings.override(change)
        paths = {f"{part}_file": str(inputs / f"{part}.conll") for part in ("train", "dev", "test")}
        task = TokensTask(
            preset=tiny_preset, config=settings.as_dict(), data=data or paths, **fields
        )
        return json.loads(json.dumps(task.spec()))

    return spec_of


@pytest.fixture(scope="module")
def done(spec_of, do_task, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("done")
    return do_task(task_of(spec_of()), folder)[0], folder


def test_it_learns_measures_predicts_and_saves(done, inputs):
    results, folder = done
    assert (results["task"], results["metric"]) == ("train", "f1")
    assert results["score"] == results["dev"]["dev"]["f1"] > 0.7
    assert set(results["dev"]["dev"]) == {"f1", "precision", "recall", "macro_f1", "accuracy"}
    assert results["baseline"]["dev"]["f1"] == 0.0 < results["baseline"]["dev"]["accuracy"]
    assert sum(row["support"] for row in results["by_label"]["dev"].values()) == 20
    assert results["data"]["train"]["labels"].keys() == {"BAD", "GOOD"}
    assert results["data"]["train"]["rows"] == 120
    # What is written is read again, and is what the preset predicts.
    found = read_tagged_texts(str(folder / "predictions" / "test.conll"))
    given = read_tagged_texts(str(inputs / "test.conll"))
    assert found.texts == given.texts
    tagger = CocoLMTokenClassifier.from_preset(str(folder / "preset"))
    assert tagger.predict(given.texts) == found.labels
    assert 0 < results["test"]["test"]["f1"] <= 1
    assert "Its labels: BAD, GOOD." in (folder / "preset" / "README.md").read_text()


def test_texts_with_spans(spec_of, do_task, tmp_path: Path):
    rows = [
        {"text": "a good cat", "spans": [[2, 6, "GOOD"]]},
        {"text": "an awful dog, rain", "spans": [[3, 8, "BAD"], [6 + 8, 15, "BAD"]]},
    ] * 6
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train_file": str(path), "dev_file": str(path), "test_file": str(path)}
    spec = spec_of(data | {"scheme": "BIOES"}, {"trainer": {"epochs": 1}}, metric="recall")
    task = task_of(spec)
    assert task.check() == "notes"
    prepared = task.prepare(FinetuningConfig())
    # "awful" up to "l" is widened to the word, and "r" to "rain": neither can be found.
    assert prepared.report["train"]["inexact"] == 6
    assert "6 spans that do not begin and end where words do" in prepared.summary
    assert prepared.metric == "recall"
    (tmp_path / "run").mkdir()
    results, _ = do_task(task, tmp_path / "run")
    written = [
        json.loads(line)
        for line in (tmp_path / "run" / "predictions" / "dev.jsonl").read_text().splitlines()
    ]
    assert [row["text"] for row in written] == [row["text"] for row in rows]
    for row in written:
        for span in row["spans"]:
            assert span["text"] == row["text"][span["start"] : span["end"]]
    assert results["metric"] == "recall"


def test_parts_of_speech_are_tags_of_single_words(spec_of, tmp_path: Path):
    path = tmp_path / "pos.conll"
    path.write_text("the DET\ncat NOUN\n\na DET\ndog NOUN\nsaw VERB\n")
    data = {"train_file": str(path), "dev_file": str(path), "scheme": "none"}
    prepared = task_of(spec_of(data)).prepare(FinetuningConfig())
    prepared.model.compile()
    scores = prepared.measure()["dev"]
    assert list(scores) == ["accuracy", "macro_f1"]
    guesses = prepared._scores("dev", prepared._guesses("dev"))
    assert guesses["accuracy"] == pytest.approx(2 / 5)
    assert prepared.report["train"]["labels"] == {"DET": 2, "NOUN": 2, "VERB": 1}


def test_part_of_the_training_texts(spec_of):
    prepared = task_of(spec_of(train_fraction=0.25, seed=3)).prepare(FinetuningConfig())
    assert prepared.report["train"]["rows"] == 30


def test_outputs_that_are_not_finite_are_reported(spec_of):
    prepared = task_of(spec_of()).prepare(FinetuningConfig())
    prepared.model.tag_logits.bias.assign(np.full(5, np.nan))
    with pytest.raises(FloatingPointError):
        prepared.measure()


def test_mistakes(spec_of):
    with pytest.raises(UserError, match="--metric=rmse: that of train is one of f1, precision"):
        task_of(spec_of(metric="rmse")).check()
    config = FinetuningConfig()
    config.override({"trainer": {"label_smoothing": 0.1}})
    with pytest.raises(UserError, match=r"trainer\.label_smoothing must be 0"):
        task_of(spec_of()).prepare(config)

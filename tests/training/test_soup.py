import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_presets import write_tiny_preset

from cocolm_tf.analysis import soups
from cocolm_tf.analysis.soups import held_out_score
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.tasks.classification import ClassificationTask
from cocolm_tf.training.preset import HEADS_FILENAME, read_backbone
from cocolm_tf.training.soup import Score, average_presets


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_tiny_preset(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def presets(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same three times, but for values that tell them apart: 1, 10 and 100 in all weights."""
    folder, made = tmp_path_factory.mktemp("presets"), []
    for name, value in (("a", 1), ("b", 10), ("c", 100)):
        preset = folder / name
        shutil.copytree(source, preset)
        for part in (preset, preset / "auxiliary"):
            backbone = read_backbone(str(part))
            for variable in backbone.trainable_variables:
                variable.assign(np.full(variable.shape, value + variable.shape[0]))
            backbone.save_weights(part / "model.weights.h5")
        with np.load(source / HEADS_FILENAME) as heads:
            np.savez(
                preset / HEADS_FILENAME, **{n: np.full_like(x, value) for n, x in heads.items()}
            )
        made.append(str(preset))
    return made


def values(preset: str | Path) -> set[float]:
    """The one value of each weight, less what told the weights apart."""
    preset, found = Path(preset), set()
    for part in (preset, preset / "auxiliary"):
        for variable in read_backbone(str(part)).trainable_variables:
            found |= set(np.unique(variable.numpy() - variable.shape[0]).round(3).tolist())
    with np.load(preset / HEADS_FILENAME) as heads:
        for array in heads.values():
            assert array.dtype == np.float32
            found |= set(np.unique(array).round(3).tolist())
    return found


def test_every_weight_is_the_mean(presets: list[str], tmp_path: Path):
    soup = average_presets(presets, str(tmp_path / "soup"))
    assert values(tmp_path / "soup") == {37}
    assert soup.weights == dict.fromkeys(presets, pytest.approx(1 / 3))
    assert soup.scores == {} and soup.score is None
    names = {path.name for path in (tmp_path / "soup").iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "auxiliary", HEADS_FILENAME} <= names
    assert list(tmp_path.iterdir()) == [tmp_path / "soup"]


def test_shares_are_in_any_unit(presets: list[str], tmp_path: Path):
    average_presets(presets[:2], str(tmp_path / "soup"), weights=[6, 2])
    assert values(tmp_path / "soup") == {3.25}


def test_a_mean_is_taken_in_float64(presets: list[str], tmp_path: Path):
    """Where float32 would lose the small ones one by one."""
    folders = []
    for name, value in (("big", 2.0**24), ("one", 1), ("two", 1)):
        folder = tmp_path / name
        shutil.copytree(presets[0], folder)
        with np.load(folder / HEADS_FILENAME) as heads:
            arrays = {n: np.full_like(x, value) for n, x in heads.items()}
        np.savez(folder / HEADS_FILENAME, **arrays)
        folders.append(str(folder))
    average_presets(folders, str(tmp_path / "soup"))
    with np.load(tmp_path / "soup" / HEADS_FILENAME) as heads:
        assert heads["copy_head.kernel"][0] == np.float32((2.0**24 + 2) / 3)


def test_a_greedy_soup_takes_what_does_not_make_it_worse(presets: list[str], tmp_path: Path):
    """And its card names the presets with their scores beside its own."""
    a, b, c = presets
    distance = Score("distance", "some data", lambda preset: abs(min(values(preset)) - 7))
    soup = average_presets(presets, str(tmp_path / "soup"), greedy=True, score=distance)
    # The mean of 10 and 1, 5.5, is nearer to 7 than 10 is; with 100 it is not.
    assert soup.weights == {a: 0.5, b: 0.5}
    assert soup.scores == {a: 6, b: 3, c: 93} and soup.score == 1.5
    assert values(tmp_path / "soup") == {5.5}
    assert list(tmp_path.iterdir()) == [tmp_path / "soup"]
    card = (tmp_path / "soup" / "README.md").read_text()
    for line in (
        f"| {a} | 0.5000 | 6.0000 |",
        f"| {c} | 0.0000 | 93.0000 |",
        "| this soup |  | 1.5000 |",
        "| some data | distance | 1.5000 |",
    ):
        assert line in card


@pytest.mark.parametrize(("higher_is_better", "order"), [(False, "bac"), (True, "cab")])
def test_scores_know_which_is_better(higher_is_better: bool, order: str):
    score = Score("loss", "data", of=float, higher_is_better=higher_is_better)
    assert "".join(score.better_first({"a": 2.0, "b": 1.0, "c": 3.0})) == order
    assert score.falls(1.0, 2.0) == higher_is_better
    assert not score.falls(1.0, 1.0)


def test_what_not_all_have_is_left_out(presets: list[str], tmp_path: Path):
    shutil.copytree(presets[1], tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "auxiliary")
    with np.load(tmp_path / "less" / HEADS_FILENAME) as heads:
        few = {name: heads[name] for name in heads if name.startswith("copy")}
    np.savez(tmp_path / "less" / HEADS_FILENAME, **few)
    average_presets([presets[0], str(tmp_path / "less")], str(tmp_path / "soup"))
    assert not (tmp_path / "soup" / "auxiliary").exists()
    assert set(np.load(tmp_path / "soup" / HEADS_FILENAME)) == {"copy_head.kernel"}


def refused(presets: list[str], output: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        average_presets(presets, str(output), **options)
    assert not output.exists()
    return str(caught.value)


def test_what_cannot_be_averaged_is_refused_by_name(presets: list[str], tmp_path: Path):
    soup = tmp_path / "soup"
    assert "at least two" in refused(presets[:1], soup)
    assert "at least two" in refused([presets[0], presets[0]], soup)
    assert "2 numbers for 3 presets" in refused(presets, soup, weights=[1, 2])
    assert "more than 0" in refused(presets, soup, weights=[1, 2, 0])
    complaint = refused([presets[0], str(tmp_path)], soup)
    assert complaint == f"--preset={tmp_path} is not a preset: it has no config.json."
    other = shutil.copytree(presets[1], tmp_path / "other")
    (other / "task.json").write_text("{}")
    assert f"--preset={other} is of a fine-tuned model" in refused([presets[0], str(other)], soup)
    os.remove(other / "task.json")
    config = (other / "auxiliary" / "config.json").read_text()
    config = config.replace('"num_layers": 1', '"num_layers": 2')
    (other / "auxiliary" / "config.json").write_text(config)
    complaint = refused([presets[0], str(other)], soup)
    assert f"{other}/auxiliary has num_layers=2, {presets[0]}/auxiliary has 1" in complaint
    shutil.rmtree(other)
    shutil.copytree(presets[1], other)
    with np.load(other / HEADS_FILENAME) as heads:
        np.savez(other / HEADS_FILENAME, **(dict(heads) | {"copy_head.kernel": np.zeros(3)}))
    complaint = refused([presets[0], str(other)], soup)
    assert f"--preset={other} has copy_head.kernel of the shape (3,)" in complaint


def test_another_vocabulary_is_refused(presets: list[str], tmp_path: Path):
    other = shutil.copytree(presets[1], tmp_path / "other")
    config = other / "tokenizer.json"
    config.write_text(config.read_text().replace('"lowercase": false', '"lowercase": true'))
    complaint = refused([presets[0], str(other)], tmp_path / "soup")
    assert complaint == f"--preset={other} has another vocabulary than {presets[0]}."


def test_held_out_losses_are_of_the_same_corruptions(finished, corpus, tmp_path: Path):
    good, noisy = str(finished.model_dir / "preset"), tmp_path / "noisy"
    shutil.copytree(good, noisy)
    for part in (noisy, noisy / "auxiliary"):
        backbone = read_backbone(str(part))
        rng = np.random.default_rng(0)
        for variable in backbone.trainable_variables:
            variable.assign(variable.numpy() + rng.normal(0, 0.5, variable.shape))
        backbone.save_weights(part / "model.weights.h5")
    score = held_out_score([good, str(noisy)], corpus.validation, batches=4, batch_size=4)
    losses = [score.of(good), score.of(str(noisy)), score.of(good)]
    assert losses[0] == losses[2] < losses[1]
    assert score.name == "50 copy loss + lm loss" and not score.higher_is_better
    # The main model and its heads alone make the difference.
    shutil.rmtree(noisy / "auxiliary")
    assert score.of(str(noisy)) == pytest.approx(losses[1])


def test_held_out_text_must_fit(finished, corpus, source: Path):
    with pytest.raises(UserError, match="another vocabulary than"):
        held_out_score([str(source)] * 2, corpus.validation, 4, 4)


def test_a_fine_tuned_score_is_that_of_the_dev_set(monkeypatch: pytest.MonkeyPatch):
    specs = []
    scores = iter([{"score": 0.7}, {"diverged": True}])
    monkeypatch.setattr(ClassificationTask, "check", lambda run: "RTE")
    monkeypatch.setattr(soups, "run_task", lambda spec, *_: specs.append(spec) or next(scores))
    score = soups.fine_tuned_score({"a": 1}, {"glue": {"task": "rte"}}, seed=3)
    assert score.of("one") == 0.7 and score.higher_is_better
    assert specs[0]["preset"] == "one" and specs[0]["seed"] == 3 and not specs[0]["save_preset"]
    with pytest.raises(UserError, match="fine-tuning two on RTE diverged"):
        score.of("two")

"""Scores as fine-tuning and suites write them, and their curves over what was varied."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cocolm_tf.analysis.runs import Run, read_run
from cocolm_tf.analysis.scores import (
    Score,
    crop_curves,
    few_shot_curves,
    match_scores,
    pretraining_curves,
    prompt_curves,
    read_scores,
)
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.report import summarize
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.training.config import PretrainingConfig

EXPERIMENT = {
    "task": "MNLI",
    "model": "runs/first/preset",
    "preset_fingerprint": "abc",
    "train_fraction": 0.1,
    "from_scratch": False,
    "metric": "accuracy",
    "dev": {
        "matched": {"accuracy": summarize([0.5, 0.75]), "f1": summarize([0.0, 0.0])},
        "mismatched": {"accuracy": summarize([0.25, 0.5])},
    },
}


def write(folder: Path, results: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_each_part_of_a_fine_tuning_is_a_score(tmp_path: Path):
    matched, mismatched = read_scores(write(tmp_path, {"experiments": [EXPERIMENT]}))
    assert matched == Score(
        "first", "MNLI matched", "accuracy", (0.5, 0.75), 0.1, fingerprint="abc"
    )
    assert mismatched.task == "MNLI mismatched" and mismatched.mean == 0.375


def test_learning_by_prompts_is_a_score(tmp_path: Path):
    experiment = {key: EXPERIMENT[key] for key in ("model", "preset_fingerprint", "metric")}
    experiment |= {"task": "RTE", "shots": 16, "test": {"dev": {"accuracy": summarize([0.5])}}}
    (score,) = read_scores(write(tmp_path, {"experiments": [experiment]}))
    assert (score.task, score.shots, score.train_fraction) == ("RTE", 16, 1.0)


def test_the_rows_of_a_suite_know_their_runs(tmp_path: Path, model_dir: Path):
    shutil.copytree(model_dir, tmp_path / "pretraining" / "crop_80" / "run")
    found = {"metric": "accuracy", "dev": {"dev": {"accuracy": summarize([0.5, 0.75])}}}
    rows = [
        {"name": "crop_80", "title": "80%", "finetuning": {"rte": found}},
        {"name": "scratch", "title": "afresh", "random_weights_of": "crop_80", "finetuning": {}},
        {"name": "later", "title": "later", "finetuning": {"rte": {"diverged": 2, "seeds": []}}},
    ]
    results = {"suite": "figure4", "tasks": [{"name": "rte", "title": "RTE"}], "rows": rows}
    (score,) = read_scores(write(tmp_path, results))
    assert (score.model, score.task, score.values) == ("80%", "RTE", (0.5, 0.75))
    assert (score.run.name, score.step) == ("80%", 40)


def test_scores_are_placed_by_what_was_fine_tuned(finished_run: Path, tmp_path: Path):
    exported = finished_run / "presets" / "step_20"
    shutil.copytree(finished_run / "preset", exported)
    (exported / "config.json").write_text((exported / "config.json").read_text() + "\n")
    run = read_run("COCO-LM", str(finished_run))
    scores = [
        Score("preset", "RTE", "accuracy", (0.5,), fingerprint=fingerprint(str(preset)))
        for preset in (finished_run / "preset", exported)
    ]
    scores.append(Score("other", "RTE", "accuracy", (0.5,), fingerprint="abc"))
    last, before, other = match_scores(scores, {}, {str(finished_run): run})
    assert (last.model, last.run, last.step) == ("COCO-LM", run, 40)
    assert (before.model, before.run, before.step) == ("COCO-LM", run, 20)
    assert other == scores[2]
    (named, *_) = match_scores(scores, {"mine": str(finished_run / "preset")}, {})
    assert named == dataclasses.replace(scores[0], model="mine")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"has no results\.json: give the --output_dir"),
        ("nonsense", r"results\.json is not what a fine-tuning or a suite writes"),
        ("[]", "must have `experiments` or `rows`"),
        ("{}", "must have `experiments` or `rows`"),
        ('{"experiments": [{"task": "RTE"}]}', "is not what a fine-tuning"),
        ('{"experiments": []}', "has no scores yet"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, content: str | None, complaint: str):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_scores(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


SCORE = Score("COCO-LM", "RTE", "accuracy", (0.5, 0.75, 0.625))


@pytest.fixture
def run(model_dir: Path) -> Run:
    return read_run("COCO-LM", str(model_dir))


def with_crop(run: Run, fraction: float, **model: int) -> Run:
    config = PretrainingConfig()
    config.override(run.config.as_dict() | {"data": {"crop_fraction": fraction}, "model": model})
    return dataclasses.replace(run, name=f"{fraction:.0%}", config=config)


def test_scores_stand_where_pretraining_was(run: Run):
    scores = [dataclasses.replace(SCORE, run=run, step=step) for step in (40, 20)]
    left_out = [
        SCORE,
        dataclasses.replace(scores[0], train_fraction=0.1),
        dataclasses.replace(scores[0], from_scratch=True),
        dataclasses.replace(scores[0], shots=16),
    ]
    points = pretraining_curves([*scores, *left_out], "tokens")
    tokens = 4 * 24
    assert points.values.tolist() == [
        ["RTE, accuracy", "COCO-LM", step * tokens, 0.625, 0.5, 0.75] for step in (40, 20)
    ]
    assert pretraining_curves(scores[:1], "tokens").empty
    other = dataclasses.replace(scores[0], run=dataclasses.replace(run, name="other"))
    assert pretraining_curves([*scores, other], "steps")["line"].tolist()[2:] == ["other"]
    hours = pretraining_curves(scores, "hours")["x"]
    assert (3600 * hours).tolist() == pytest.approx([4, 2])  # as logged


def test_few_shot_curves_need_several_fractions():
    few = dataclasses.replace(SCORE, train_fraction=0.01, values=(0.5,))
    alone = dataclasses.replace(few, task="CoLA")
    scratch = [dataclasses.replace(score, from_scratch=True) for score in (SCORE, few)]
    points = few_shot_curves([SCORE, few, alone, *scratch])
    assert points[["line", "x", "low"]].values.tolist() == [
        [line, x, 0.5] for line in ("COCO-LM", "COCO-LM, from scratch") for x in (1, 0.01)
    ]
    assert set(points["panel"]) == {"RTE, accuracy"}


def test_prompts_have_curves_of_their_own():
    scores = [dataclasses.replace(SCORE, shots=shots) for shots in (32, 16)]
    assert few_shot_curves(scores).empty
    assert prompt_curves([SCORE, *scores])["x"].tolist() == [32, 16]


def test_crops_join_runs_that_are_alike_in_everything_else(run: Run):
    runs = [with_crop(run, 0.9), with_crop(run, 0.7), with_crop(run, 0.7, num_layers=2)]
    scores = [dataclasses.replace(SCORE, run=of, step=40) for of in runs]
    points = crop_curves(scores)
    assert points["line"].tolist() == ["90%"] * 2 and points["x"].tolist() == [0.9, 0.7]
    assert crop_curves([scores[0], scores[2]]).empty

import dataclasses
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.charts import draw_scores, linear_axis, log_axis, percent_axis
from cocolm_tf.analysis.runs import Run, read_run
from cocolm_tf.analysis.scores import (
    Point,
    Score,
    crop_curves,
    few_shot_curves,
    pretraining_curves,
    prompt_curves,
)
from cocolm_tf.training.config import PretrainingConfig

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
    curves = pretraining_curves([*scores, *left_out], "tokens")
    tokens = 4 * 24
    assert curves == {
        "RTE, accuracy": {
            "COCO-LM": [Point(20 * tokens, 0.625, 0.5, 0.75), Point(40 * tokens, 0.625, 0.5, 0.75)]
        }
    }
    assert not pretraining_curves(scores[:1], "tokens")
    other = dataclasses.replace(scores[0], run=dataclasses.replace(run, name="other"))
    assert len(pretraining_curves([*scores, other], "steps")["RTE, accuracy"]["other"]) == 1
    hours = pretraining_curves(scores, "hours")["RTE, accuracy"]["COCO-LM"]
    assert [3600 * point.x for point in hours] == pytest.approx([2, 4])  # as logged


def test_hours_between_two_lines_of_the_log(run: Run):
    assert 3600 * run.at(25, "hours") == pytest.approx(2.5)
    assert run.at(25, "steps") == 25


def test_few_shot_curves_need_several_fractions():
    few = dataclasses.replace(SCORE, train_fraction=0.01, values=(0.5,))
    alone = dataclasses.replace(few, task="CoLA")
    scratch = [dataclasses.replace(score, from_scratch=True) for score in (SCORE, few)]
    curves = few_shot_curves([SCORE, few, alone, *scratch])
    points = [Point(0.01, 0.5, 0.5, 0.5), Point(1.0, 0.625, 0.5, 0.75)]
    lines = {"COCO-LM": points, "COCO-LM, from scratch": points}
    assert curves == {"RTE, accuracy": lines}


def test_prompts_have_curves_of_their_own():
    scores = [dataclasses.replace(SCORE, shots=shots) for shots in (32, 16)]
    assert not few_shot_curves(scores)
    (points,) = prompt_curves([SCORE, *scores])["RTE, accuracy"].values()
    assert [point.x for point in points] == [16, 32]


def test_crops_join_runs_that_are_alike_in_everything_else(run: Run):
    runs = [with_crop(run, 0.9), with_crop(run, 0.7), with_crop(run, 0.7, num_layers=2)]
    scores = [dataclasses.replace(SCORE, run=of, step=40) for of in runs]
    ((name, points),) = crop_curves(scores)["RTE, accuracy"].items()
    assert name == "90%" and [point.x for point in points] == [0.7, 0.9]
    assert not crop_curves([scores[0], scores[2]])


def test_error_bars_mark_the_least_and_the_greatest():
    curves = {"RTE, accuracy": {"one": [Point(1, 0.6, 0.5, 0.65), Point(2, 0.7, 0.7, 0.7)]}}
    for set_places in (linear_axis, log_axis("{:g}".format), percent_axis):
        figure = draw_scores(curves, "step", set_places)
        figure.canvas.draw()
        (axes,) = figure.axes
        line, _, (bars,) = axes.containers[0].lines
        assert line.get_xydata().tolist() == [[1, 0.6], [2, 0.7]]
        segments = [segment.tolist() for segment in bars.get_segments()]
        assert segments[0] == [[1, pytest.approx(0.5)], [1, pytest.approx(0.65)]]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one"]
        plt.close(figure)

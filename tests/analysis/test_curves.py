import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from cocolm_tf.analysis.curves import (
    BLUE,
    ORANGE,
    PLOTS,
    Metrics,
    Plot,
    draw,
    plots_of,
    read_metrics,
)
from cocolm_tf.errors import UserError

PAIR = Plot("pair", "A pair", "share", {"a": "first", "b": "second"})


def metrics_of(train: list[dict], validation: list[dict] | None = None) -> Metrics:
    return Metrics({"train": train, "validation": validation or []})


def test_it_reads_series_by_split(model_dir: Path):
    metrics = read_metrics(str(model_dir))
    assert metrics.series("train", "learning_rate") == ([10, 20, 30, 40], [0.25] * 4)
    assert metrics.series("validation", "loss") == ([20, 40], [0.55, 0.525])
    assert metrics.series("validation", "learning_rate") == ([], [])
    assert metrics.last_step == 40


def test_the_line_being_written_is_left_out(model_dir: Path):
    with open(model_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "split": "train", "lo')
    assert read_metrics(str(model_dir)).last_step == 40


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has no lines yet"),
        ('{"step": 1, "spl', "has no lines yet"),
        ("{}\n", "line 1"),
        ('{"step": 1, "split": "train"}\nnonsense\n', "line 2"),
        ('{"step": 1, "split": "test"}\n', "line 1"),
        ('{"step": "x", "split": "train"}\n', "line 1"),
        ("[1]\n", "line 1"),
    ],
)
def test_a_broken_log_is_named(tmp_path: Path, content: str, complaint: str):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_metrics(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_a_log_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        read_metrics(str(tmp_path))


def test_not_a_number_is_read(tmp_path: Path):
    line = {"step": 1, "split": "train", "seconds": 1.0, "loss": float("nan")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert np.isnan(read_metrics(str(tmp_path)).series("train", "loss")[1][0])


@given(attempts=st.lists(st.lists(st.floats(0, 1e4), min_size=1, max_size=4), min_size=1))
def test_the_time_of_a_run_is_that_of_its_attempts(attempts: list[list[float]]):
    attempts = [sorted(attempt) for attempt in attempts]
    # An attempt shows as one only where its clock is behind the last one's.
    for before, after in reversed(list(itertools.pairwise(attempts))):
        before[-1] = max(before[-1], after[0] + 1)
    seconds = [second for attempt in attempts for second in attempt]
    lines = [{"step": step, "seconds": second} for step, second in enumerate(seconds)]
    expected = sum(attempt[-1] for attempt in attempts)
    assert metrics_of(lines).seconds == pytest.approx(expected)


def test_the_final_line_is_a_validation_if_there_is_one():
    train, validation = [{"step": 9, "loss": 1.0}], [{"step": 8, "loss": 2.0}]
    assert metrics_of(train, validation).final() == ("validation", validation[0])
    assert metrics_of(train).final() == ("train", train[0])


def test_a_full_log_fills_every_plot(model_dir: Path):
    assert plots_of(read_metrics(str(model_dir))) == list(PLOTS)


def test_what_was_not_logged_is_not_plotted():
    plots = plots_of(metrics_of([{"step": 1, "loss": 1.0, "positive_cosine": 0.5}]))
    assert [plot.name for plot in plots] == ["loss", "cosine"]
    assert plots[1].curves == {"positive_cosine": "positive"}


def test_names_of_files_differ():
    assert len({plot.name for plot in PLOTS}) == len(PLOTS)


def test_every_value_is_drawn():
    train = [{"step": step, "a": step / 10, "b": 1 - step / 10} for step in range(1, 6)]
    validation = [{"step": 5, "a": 0.4, "b": 0.6}]
    figure = draw(PAIR, metrics_of(train, validation))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    drawn = [(line.get_color(), *map(list, line.get_data())) for line in lines]
    plt.close(figure)
    assert drawn == [
        (ORANGE, [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5]),
        (ORANGE, [5], [0.4]),
        (BLUE, [1, 2, 3, 4, 5], [0.9, 0.8, 0.7, 0.6, 0.5]),
        (BLUE, [5], [0.6]),
    ]


@settings(deadline=None, max_examples=25)
@given(
    ends=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=2),
    start=st.floats(-1e3, 1e3),
)
def test_labels_do_not_overlap(ends: list[float], start: float):
    train = [
        {"step": 1, "a": start, "b": start},
        {"step": 2, "a": ends[0], "b": ends[1]},
    ]
    figure = draw(PAIR, metrics_of(train))
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    heights = {text.get_text(): (text.xy[1] - low) / (high - low) for text in axes.texts}
    plt.close(figure)
    assert abs(heights["first"] - heights["second"]) > 0.079
    assert all(0 <= height <= 1 for height in heights.values())
    if abs(ends[0] - ends[1]) > 1e-3 * (high - low):
        assert (ends[0] > ends[1]) == (heights["first"] > heights["second"])


@pytest.mark.parametrize("scale", ["", "percent", "powers", "prefixes"])
@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [float("nan")], [1e-9, 1e9], [-1.0, 0.5]])
def test_odd_values_can_be_drawn(scale: str, values: list[float]):
    train = [{"step": step, "a": value, "b": value} for step, value in enumerate(values)]
    figure = draw(dataclasses.replace(PAIR, scale=scale), metrics_of(train))
    figure.canvas.draw()
    plt.close(figure)

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from cocolm_tf.analysis.curves import PLOTS, Plot, draw, plots_of
from cocolm_tf.analysis.figures import BLUE, ORANGE
from cocolm_tf.analysis.metrics_log import Metrics, read_metrics

PAIR = Plot("pair", "A pair", "share", {"a": "first", "b": "second"})


def metrics_of(train: list[dict], validation: list[dict] | None = None) -> Metrics:
    return Metrics({"train": train, "validation": validation or []})


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


@settings(max_examples=25)
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

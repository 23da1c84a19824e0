"""What each figure draws, and the files and elements of pages that figures become."""

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.figures import (
    BLUE,
    FAINT_INK,
    GRID,
    INK,
    MARKED_PAIRS,
    ORANGE,
    PALETTE,
    PLOTS,
    RANDOM,
    SIMILAR,
    Plot,
    draw_by_frequency,
    draw_calibration,
    draw_curves,
    draw_distributions,
    draw_map,
    draw_minimal_pairs,
    draw_scores,
    inline_svg,
    new_figure,
    new_panels,
    plots_of,
    save_figure,
    styled,
    styles_of,
)
from cocolm_tf.analysis.runs import X_AXES, Run, read_run
from cocolm_tf.training.config import PretrainingConfig

GENERATOR = np.random.default_rng(0)
PAIR = Plot("pair", "A pair", "share", {"a": "first", "b": "second"})


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def labels_of(legend: plt.Artist) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_panels_are_named_and_share_their_axes(count: int, rows: int):
    titles = [f"panel {number}" for number in range(count)]
    with styled():
        figure, panels = new_panels(titles, "across", "up")
    assert [axes.get_title(loc="left") for axes in panels] == titles
    assert len(figure.axes) == count
    grid = panels[0].get_subplotspec().get_gridspec()
    assert grid.nrows == rows
    panels[0].set_xlim(3, 7)
    assert all(axes.get_xlim() == (3, 7) for axes in panels)
    assert sum(bool(axes.get_ylabel()) for axes in panels) == rows
    assert sum(bool(axes.get_xlabel()) for axes in panels) == grid.ncols


def test_the_same_figure_is_the_same_file(tmp_path: Path):
    written = []
    for name in ("one", "two"):
        with styled():
            figure, axes = new_figure("Title", "across", "up")
        axes.plot([1, 2], [3, 4], color=PALETTE[0])
        (tmp_path / name).mkdir()
        save_figure(figure, str(tmp_path / name), "figure", ["png", "svg"])
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == ["figure.png", "figure.svg"]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_no_two_of_many_look_the_same():
    assert len(set(PALETTE)) == len(PALETTE) == 6
    names = [f"preset {number}" for number in range(20)]
    styles = styles_of(names)
    assert list(styles) == names
    assert [style.color for style in styles.values()][:6] == list(PALETTE)
    for shape in ("marker", "hatch"):
        assert len({(style.color, getattr(style, shape)) for style in styles.values()}) == 20


def test_a_figure_on_a_page_has_the_page_s_colors_and_width(config: PretrainingConfig):
    lines = [
        {"step": step, "seconds": 1.0, "copy_accuracy_replaced": 0.5, "copy_accuracy_original": 0.6}
        for step in (1, 2)
    ]
    plot = next(plot for plot in PLOTS if plot.name == "copy_accuracy")
    svg = inline_svg(draw_curves(plot, [run_of("one", lines, lines, config)]), plot.name)
    for color, name in zip(
        (BLUE, ORANGE, INK, FAINT_INK, GRID),
        ("blue", "orange", "ink", "faint", "line"),
        strict=True,
    ):
        assert color not in svg and f"var(--{name})" in svg
    root = ET.fromstring(svg)
    assert root.get("width") is None and root.get("viewBox") and "max-width" in root.get("style")
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    shown = {"Copy head's accuracy", "replaced", "original", "training", "validation", "step"}
    assert shown <= texts


# --- Presets ---


def test_each_model_has_a_panel_with_both_kinds_of_cosines():
    cosines = {
        name: {RANDOM: GENERATOR.normal(0.1, 0.1, 500), SIMILAR: GENERATOR.normal(0.8, 0.05, 200)}
        for name in ("first", "second")
    }
    figure = draw_distributions(cosines)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
    for axes, kinds in zip(figure.axes, cosines.values(), strict=True):
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert [curve.get_color() for curve in curves] == [BLUE, ORANGE]
        for curve, values in zip(curves, kinds.values(), strict=True):
            x, y = curve.get_data()
            area = np.sum(y) * (x[1] - x[0])
            assert area == pytest.approx(1, abs=0.05)
            assert np.sum(x * y) * (x[1] - x[0]) / area == pytest.approx(values.mean(), abs=0.02)
        means = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
        assert means == pytest.approx([kinds[RANDOM].mean(), kinds[SIMILAR].mean()])
        # Both histograms are seen whole.
        assert axes.get_ylim()[1] >= max(patch.get_height() for patch in axes.patches)
    assert labels_of(figure.legends[0]) == [RANDOM, SIMILAR]


@pytest.mark.parametrize("values", [[1.0], [-1.0, 1.0], [0.3, 0.3 + 1e-12]])
def test_odd_cosines_can_be_drawn(values: list[float]):
    figure = draw_distributions({"odd": {RANDOM: np.array(values), SIMILAR: np.array(values)}})
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert -1 <= low < high <= 1


@pytest.mark.parametrize("pairs", [2, 60])
def test_the_same_pairs_are_marked_in_every_panel(pairs: int):
    places = {name: GENERATOR.uniform(size=[2 * pairs, 2]) for name in ("first", "second")}
    figure = draw_map(places)
    marked = []
    for axes, of_model in zip(figure.axes, places.values(), strict=True):
        assert len(axes.lines) == min(MARKED_PAIRS, pairs)
        ends = [np.transpose(line.get_data()) for line in axes.lines]
        marked.append([int(np.flatnonzero((of_model == end[0]).all(axis=1))[0]) for end in ends])
        for pair, end in zip(marked[-1], ends, strict=True):
            assert np.array_equal(end[1], of_model[pair + pairs])
    assert marked[0] == marked[1]
    styles = {
        (marks.get_facecolor().tobytes(), marks.get_paths()[0].vertices.tobytes())
        for marks in figure.axes[0].collections[1:]
    }
    assert len(styles) == min(MARKED_PAIRS, pairs)  # no two are marked alike


def test_the_reliability_diagram_shows_each_bin(found: Detections):
    figure = draw_calibration({"one": found.calibration(), "two": found.calibration()})
    for axes in figure.axes:
        _, curve = axes.lines
        assert curve.get_xdata() == pytest.approx([0.05, 0.25, 0.75, 0.95])
        assert curve.get_ydata() == pytest.approx([0, 1, 0.5, 1])
        # Of two, one, two tokens and one: by their areas.
        assert axes.collections[0].get_sizes() == pytest.approx([160, 80, 160, 80])


def test_a_bar_stands_for_each_frequency_and_preset(found: Detections):
    figure = draw_by_frequency({"one": found.by_frequency(), "two": {}})
    recall, corrected, _ = figure.axes
    assert [bar.get_height() for bar in recall.containers[0]] == [1, 1, 0]
    assert [bar.get_height() for bar in corrected.containers[0]] == [1, 0, 0]
    assert len(recall.containers) == 2
    assert labels_of(figure.legends[0]) == ["one", "two"]
    figure.draw_without_rendering()


def test_a_dot_stands_for_each_category_method_and_preset():
    results = {
        "one": {"all": {"masked": 0.5, "detection": 0.6}, "x": {"masked": 0.7, "detection": 0.8}},
        "two": {"all": {"masked": 0.9}, "x": {"masked": 1.0}},
    }
    figure = draw_minimal_pairs(results)
    masked, detection = figure.axes
    drawn = [dots.get_offsets().tolist() for dots in masked.collections]
    assert drawn == [[[0.5, 0], [0.7, 1]], [[0.9, 0], [1.0, 1]]]
    assert [dots.get_offsets().tolist() for dots in detection.collections] == [[[0.6, 0], [0.8, 1]]]
    assert [label.get_text() for label in masked.get_yticklabels()] == ["all", "x"]


@pytest.mark.parametrize("axis", [(), ("{:g}".format, True), ("{:.0%}".format,)])
def test_error_bars_mark_the_least_score_and_the_greatest(axis: tuple):
    rows = [("RTE", "one", 2, 0.7, 0.7, 0.7), ("RTE", "one", 1, 0.6, 0.5, 0.65)]
    points = pd.DataFrame(rows, columns=["panel", "line", "x", "mean", "low", "high"])
    figure = draw_scores(points, "step", *axis)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_xydata().tolist() == [[1, 0.6], [2, 0.7]]
    segments = [segment.tolist() for segment in bars.get_segments()]
    assert segments[0] == [[1, pytest.approx(0.5)], [1, pytest.approx(0.65)]]
    assert labels_of(figure.legends[0]) == ["one"]


# --- Curves ---


def run_of(name: str, train: list[dict], validation: list[dict], config: PretrainingConfig) -> Run:
    lines = [("train", line) for line in train] + [("validation", line) for line in validation]
    log = pd.DataFrame([{"seconds": 1.0, **line, "split": split} for split, line in lines])
    return Run(name, log, config)


def test_a_plot_is_made_for_what_any_run_has(model_dir: Path, config: PretrainingConfig):
    assert plots_of(read_run("one", str(model_dir))) == list(PLOTS)
    assert len({plot.name for plot in PLOTS}) == len(PLOTS)
    one = run_of("one", [{"step": 1, "loss": 1.0}], [], config)
    plots = plots_of(one, run_of("two", [{"step": 1, "positive_cosine": 1.0}], [], config))
    assert [plot.name for plot in plots] == ["loss", "cosine"]
    assert plots[1].curves == {"positive_cosine": "positive"}


def test_training_and_validation_of_one_run_are_drawn(config: PretrainingConfig):
    train = [{"step": step, "a": step / 10, "b": 1 - step / 10} for step in range(1, 6)]
    run = run_of("one", train, [{"step": 5, "a": 0.4, "b": 0.6}], config)
    figure = draw_curves(PAIR, [run])
    drawn = [(line.get_color(), *map(list, line.get_data())) for line in figure.axes[0].lines]
    assert drawn == [
        (BLUE, [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5]),
        (BLUE, [5], [0.4]),
        (ORANGE, [1, 2, 3, 4, 5], [0.9, 0.8, 0.7, 0.6, 0.5]),
        (ORANGE, [5], [0.6]),
    ]
    (legend,) = figure.legends
    assert labels_of(legend) == ["first", "second", "training", "validation"]


def test_each_of_several_runs_has_a_color_and_each_curve_a_line(config: PretrainingConfig):
    train = [{"step": step, "a": step / 10, "b": 0.9} for step in (1, 2)]
    runs = [
        run_of("one", train, [{"step": 2, "a": 0.7}], config),
        run_of("two", train, [], config),
        run_of("without", [{"step": 1}], [], config),
    ]
    figure = draw_curves(PAIR, runs)
    lines = figure.axes[0].lines
    drawn = [(line.get_color(), line.is_dashed(), *map(list, line.get_data())) for line in lines]
    assert drawn == [
        (PALETTE[0], False, [2], [0.7]),  # validation before training
        (PALETTE[0], True, [1, 2], [0.9, 0.9]),
        (PALETTE[1], False, [1, 2], [0.1, 0.2]),
        (PALETTE[1], True, [1, 2], [0.9, 0.9]),
    ]
    assert [labels_of(legend) for legend in figure.legends] == [["one", "two"], ["first", "second"]]


@pytest.mark.parametrize("scale", ["", "percent", "powers", "prefixes"])
def test_odd_values_can_be_drawn(scale: str, config: PretrainingConfig):
    for values in ([0.0], [0.0, 0.0], [float("nan")], [1e-9, 1e9], [-1.0, 0.5]):
        train = [{"step": step, "a": value, "b": value} for step, value in enumerate(values)]
        run = run_of("one", train, [], config)
        draw_curves(dataclasses.replace(PAIR, scale=scale), [run]).draw_without_rendering()


@pytest.mark.parametrize("x_axis", X_AXES)
def test_a_real_log_can_be_drawn_over_every_axis(model_dir: Path, x_axis: str):
    runs = [read_run("one", str(model_dir)), read_run("other", str(model_dir))]
    for plot in PLOTS[:: 4 if x_axis != "steps" else 1]:
        figure = draw_curves(plot, runs, x_axis)
        figure.draw_without_rendering()
        assert figure.axes[0].get_xlabel() == X_AXES[x_axis]
        assert all(np.isfinite(line.get_xdata()).all() for line in figure.axes[0].lines)

"""All figures of analysis, in one style, and their files."""

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # before pyplot, which otherwise looks for a screen

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)
from scipy import stats

from cocolm_tf import files
from cocolm_tf.analysis.glossary import (
    DETECTION_METRICS,
    FREQUENCY_TITLES,
    METRICS,
    STEP_METRICS,
)
from cocolm_tf.analysis.runs import TRAINING, VALIDATION, X_AXES, Run

# --- The common style ---

# The colors of everything that a figure draws; a page replaces them by its own.
INK, FAINT_INK, GRID = "#24292f", "#6e7781", "#e4e7eb"
BLUE, ORANGE = "#2f6db5", "#d4680f"
GREEN, PURPLE, RED, TEAL = "#2a7f4f", "#7b52b9", "#b8324a", "#1c8391"
# The colors of series, in order; where they repeat, shapes differ.
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL)
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
_HATCHES = ("", "///", "...", "xxx", "---", "+++", "ooo", "***")
DOTTED = (0, (2, 2))
# The names of the colors as CSS variables, which templates/page.html sets.
COLOR_NAMES = {
    INK: "ink",
    FAINT_INK: "faint",
    GRID: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    RED: "red",
    TEAL: "teal",
}
_REM_PER_INCH = 6.4
# Inches of a column of a legend.
_LEGEND_COLUMN = 1.7
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT_INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": FAINT_INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "grid.color": GRID,
    "legend.columnspacing": 1.4,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "xaxis.labellocation": "left",
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
}


def styled() -> contextlib.AbstractContextManager:
    """Applies the common style to what is drawn within, or by the function that it decorates."""
    return plt.rc_context(_STYLE)


class Style(NamedTuple):
    """The style of one series: of a line or dots, or of bars."""

    color: str
    marker: str
    hatch: str


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: a color, and another shape where the colors begin again."""
    shapes = itertools.cycle(zip(_SHAPES, _HATCHES, strict=True))
    found = (Style(color, *shape) for shape in shapes for color in PALETTE)
    return dict(zip(names, found, strict=False))


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Makes a figure of one panel."""
    figure, (axes,) = new_panels([title], x_label, y_label, height=3.3)
    return figure, axes


def new_panels(
    titles: Sequence[str], x_label: str, y_label: str, height: float = 2.9, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels side by side, up to three in a row, on common axes."""
    columns = 2 if len(titles) == 4 else min(3, len(titles))
    rows = -(-len(titles) // columns)
    size = (max(5.4, 3.6 * columns), height * rows)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=share_y, squeeze=False
    )
    panels = list(grid.flat)
    for axes in panels[len(titles) :]:
        axes.remove()
    panels = panels[: len(titles)]
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.set_title(title)
        # What has nothing below it has no neighbor to share its labels with.
        is_lowest = number + columns >= len(titles)
        axes.tick_params(labelbottom=is_lowest)
        if is_lowest:
            axes.set_xlabel(x_label)
        if number % columns == 0:
            axes.set_ylabel(y_label)
    return figure, panels


def add_legend(figure: Figure, handles: Mapping[str, Artist], loc: str = "lower left") -> None:
    """Puts a legend outside of all panels, in as many columns as there is room for."""
    columns = max(1, int(figure.get_figwidth() / _LEGEND_COLUMN))
    figure.legend(handles.values(), handles.keys(), loc=f"outside {loc}", ncols=columns)


def _line(color: str = FAINT_INK, **style: object) -> Line2D:
    """A line for a legend."""
    return Line2D([], [], color=color, **style)


def _percent(share: float, _: int) -> str:
    """Formats a tick."""
    return f"{100 * share:g}%"


def save_figure(figure: Figure, output_dir: str, name: str, formats: Sequence[str]) -> None:
    """Writes a figure, each file atomically."""
    for kind in formats:
        image = io.BytesIO()
        # Without a date and with names that do not change, the same figure is the same file.
        with plt.rc_context({"svg.hashsalt": name}):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(image, format=kind, dpi=150, metadata=metadata)
        files.write_bytes(files.join(output_dir, f"{name}.{kind}"), image.getvalue())


def inline_svg(figure: Figure, name: str) -> str:
    """Draws a figure as an element of a page, in the page's colors."""
    file = io.StringIO()
    # Text stays text, and each figure has names of its own for what it refers to.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in COLOR_NAMES.items():
        svg = svg.replace(color, f"var(--{variable})")
    # The page decides the size. Letters are as large in all figures where it has the room.
    element, rest = svg.split(">", 1)
    element = re.sub(r' (?:width|height)="[^"]*"', "", element)
    return f'{element} style="max-width: {_REM_PER_INCH * figure.get_figwidth():.1f}rem">{rest}'


# --- Presets ---

# The kinds of pairs, and their colors.
RANDOM, SIMILAR = "random pairs", "similar pairs"
_COLORS = {RANDOM: BLUE, SIMILAR: ORANGE}
_BINS = 40
# The narrowest range of cosines to show, so as not to exaggerate differences.
_NARROWEST = 0.2
# The percentage of cosines that may be outside at either end.
_OUTLIERS = 0.5

# How many pairs a map marks, each by a shape and a color.
_MARKS = "o^sDPv"
MARKED_PAIRS = len(_MARKS) * 2

# Square points of the largest dot of a reliability diagram, and of the least that can be seen.
_LARGEST_DOT, _LEAST_DOT = 160.0, 4.0
# The share of a group's width that its bars take.
_FILLED = 0.8
# Inches of height of a category of minimal pairs, and of the margins.
_ROW, _AROUND = 0.26, 1.3


@styled()
def draw_distributions(cosines: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws the cosines of `RANDOM` and `SIMILAR` pairs, a panel a model (figures 1 and 5)."""
    groups = [values for kinds in cosines.values() for values in kinds.values()]
    # Outliers would leave the others no room.
    low = min(np.percentile(values, _OUTLIERS) for values in groups)
    high = max(np.percentile(values, 100 - _OUTLIERS) for values in groups)
    margin = max(0.03 * (high - low), (_NARROWEST - (high - low)) / 2)
    low, high = max(-1.0, low - margin), min(1.0, high + margin)
    edges, grid = np.linspace(low, high, _BINS + 1), np.linspace(low, high, 400)
    figure, panels = new_panels(list(cosines), "cosine of sentence vectors", "density")
    for axes, kinds in zip(panels, cosines.values(), strict=True):
        for kind, values in kinds.items():
            color = _COLORS[kind]
            axes.hist(values, edges, density=True, color=color, alpha=0.3, edgecolor="none")
            if np.ptp(values) > 1e-6:  # there is no density of a single value
                axes.plot(grid, stats.gaussian_kde(values)(grid), color=color, linewidth=1.6)
            axes.axvline(values.mean(), color=color, linewidth=1, linestyle=DOTTED)
    # All panels share these.
    panels[0].set_xlim(low, high)
    panels[0].set_ylim(0, None)
    handles = {kind: _line(color, linewidth=1.6) for kind, color in _COLORS.items()}
    add_legend(figure, handles, "upper right")
    return figure


@styled()
def draw_map(places: Mapping[str, np.ndarray], seed: int = 0) -> Figure:
    """Draws maps of pairs, a panel a model; some pairs are marked, alike in shape and color."""
    # Of each model [2N, 2]: the first sentences' places, then those of their partners.
    count = len(next(iter(places.values()))) // 2
    generator = np.random.default_rng(seed)
    marked = generator.choice(count, min(MARKED_PAIRS, count), replace=False)
    figure, panels = new_panels(list(places), "", "", height=3.6)
    for axes, of_model in zip(panels, places.values(), strict=True):
        axes.scatter(*of_model.T, s=6, color=FAINT_INK, alpha=0.35, linewidths=0)
        for number, pair in enumerate(marked):
            color = PALETTE[number % len(PALETTE)]
            shape = _MARKS[(number + number // len(PALETTE)) % len(_MARKS)]
            ends = of_model[[pair, pair + count]].T
            axes.plot(*ends, color=color, linewidth=0.8, alpha=0.6)
            axes.scatter(*ends, s=42, color=color, marker=shape, linewidths=0, zorder=3)
        # Coordinates of t-SNE have no meaning of their own.
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        axes.set_aspect("equal")
        axes.margins(0.04)
    return figure


@styled()
def draw_calibration(calibrations: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the copy head's reliability diagram, a panel a preset."""
    figure, panels = new_panels(list(calibrations), "said to be replaced", "replaced", height=3.4)
    for axes, bins in zip(panels, calibrations.values(), strict=True):
        axes.plot([0, 1], [0, 1], color=FAINT_INK, linewidth=0.8, linestyle=DOTTED)
        axes.plot(bins["said"], bins["replaced"], color=BLUE, linewidth=1.2)
        areas = np.maximum(_LARGEST_DOT * bins["tokens"] / bins["tokens"].max(), _LEAST_DOT)
        dots = {"s": areas, "color": BLUE, "linewidths": 0, "alpha": 0.75}
        axes.scatter(bins["said"], bins["replaced"], **dots)
        axes.set_aspect("equal")
    panels[0].set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    panels[0].xaxis.set_major_formatter(_percent)
    panels[0].yaxis.set_major_formatter(_percent)
    return figure


@styled()
def draw_by_frequency(measures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draws detection by the frequency of the original token, bars of a color for each preset."""
    titles = {"recall": "Found"}
    titles |= {key: DETECTION_METRICS[key][0] for key in ("corrected_at_1", "corrected_at_5")}
    width = _FILLED / len(measures)
    fills = {
        name: {"facecolor": style.color, "hatch": style.hatch, "edgecolor": GRID, "linewidth": 0}
        for name, style in styles_of(measures).items()
    }
    figure, panels = new_panels(
        list(titles.values()), "original token, by its frequency", "share of replaced tokens"
    )
    for axes, key in zip(panels, titles, strict=True):
        for number, (name, by_frequency) in enumerate(measures.items()):
            heights = [
                by_frequency.get(frequency, {}).get(key, np.nan) for frequency in FREQUENCY_TITLES
            ]
            places = np.arange(len(heights)) + (number + 0.5) * width - _FILLED / 2
            axes.bar(places, heights, width * 0.92, **fills[name])
        axes.set_xticks(range(len(FREQUENCY_TITLES)), FREQUENCY_TITLES.values(), fontsize=8.5)
        axes.set_xlim(-0.5, len(FREQUENCY_TITLES) - 0.5)
        axes.tick_params(bottom=False)
    panels[0].yaxis.set_major_formatter(_percent)
    panels[0].set_ylim(0, None)
    add_legend(figure, {name: Patch(**fill) for name, fill in fills.items()})
    return figure


@styled()
def draw_minimal_pairs(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draws the accuracy on minimal pairs: a panel for each scoring method, a row a category."""
    categories = list(next(iter(results.values())))
    methods = list(dict.fromkeys(name for of in results.values() for name in of[categories[0]]))
    heights = range(len(categories))
    marks = {
        name: {"color": style.color, "marker": style.marker}
        for name, style in styles_of(results).items()
    }
    figure, panels = new_panels(
        methods,
        "accuracy",
        "",
        height=_AROUND + _ROW * len(categories),
    )
    for axes, method in zip(panels, methods, strict=True):
        axes.axvline(0.5, color=FAINT_INK, linewidth=0.9, linestyle=DOTTED)  # chance
        for name, shares in results.items():
            if method in shares[categories[0]]:
                found = [shares[category][method] for category in categories]
                axes.scatter(found, heights, s=34, linewidths=0, alpha=0.85, **marks[name])
    panels[0].set_yticks(heights, categories)
    panels[0].set_ylim(len(categories) - 0.5, -0.5)
    panels[0].xaxis.set_major_formatter(_percent)
    dot = {"linestyle": "", "markersize": 6}
    add_legend(figure, {name: _line(**mark, **dot) for name, mark in marks.items()})
    return figure


@styled()
def draw_scores(
    points: pd.DataFrame,
    x_label: str,
    x_format: Callable[[float], str] | None = None,
    log_scale: bool = False,
) -> Figure:
    """Draws means over what was varied, with bars from the least score to the greatest."""
    # With `x_format`, the horizontal axis has its ticks at the points alone; without, it is linear
    # from zero.
    line_styles = {
        name: {"color": style.color, "marker": style.marker, "linewidth": 1.4, "markersize": 4.5}
        for name, style in styles_of(points["line"].unique()).items()
    }
    by_panel = dict(list(points.groupby("panel", sort=False)))
    figure, panels = new_panels(list(by_panel), x_label, "score", height=3.1, share_y=False)
    for axes, of_panel in zip(panels, by_panel.values(), strict=True):
        for name, line in of_panel.sort_values("x").groupby("line", sort=False):
            spread = [line["mean"] - line["low"], line["high"] - line["mean"]]
            bars = {"yerr": spread, "elinewidth": 0.9, "capsize": 2.5}
            axes.errorbar(line["x"], line["mean"], **bars, **line_styles[name])
        axes.yaxis.set_major_formatter(_percent)
    x_axis = panels[0].xaxis
    if log_scale:
        panels[0].set_xscale("log")
    if x_format:
        x_axis.set_major_locator(FixedLocator(sorted(set(points["x"]))))
        x_axis.set_minor_locator(NullLocator())
        x_axis.set_major_formatter(lambda x, _: x_format(x))
    else:
        panels[0].set_xlim(0, 1.05 * points["x"].max() or None)
        x_axis.set_major_locator(MaxNLocator(5))
        x_axis.set_major_formatter(EngFormatter(sep=""))
    add_legend(figure, {name: _line(**style) for name, style in line_styles.items()})
    return figure


# --- Curves of training ---

_PERCENT, _POWERS, _PREFIXES = "percent", "powers", "prefixes"
# Training and validation of one run.
_SPLITS = {
    TRAINING: {"linewidth": 0.9, "alpha": 0.6},
    VALIDATION: {"linewidth": 1.8, "marker": "o", "markersize": 3.5},
}
# The lines of a plot's two curves, where colors are runs.
_DASHES = ("-", (0, (4, 1.6)))


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure to draw."""

    name: str  # of its file
    title: str  # what it shows
    unit: str  # of the vertical axis
    curves: dict[str, str]  # the metrics it shows, with what to call each; one or two
    scale: str = ""  # `percent`, `powers` (logarithmic), `prefixes` (k, M) or nothing special
    note: str = ""  # a sentence on what to look for


def _of(name: str, unit: str, scale: str = "") -> Plot:
    """A plot of one metric."""
    title, _, note = (METRICS | STEP_METRICS)[name]
    return Plot(name, title, unit, {name: title}, scale, note)


PLOTS = (
    _of("loss", "nats"),
    _of("mlm_loss", "nats per masked token"),
    _of("copy_loss", "nats per token"),
    _of("lm_loss", "nats per masked token"),
    _of("scl_loss", "nats per sequence"),
    Plot(
        "copy_accuracy",
        "Copy head's accuracy",
        "share of the tokens",
        {"copy_accuracy_replaced": "replaced", "copy_accuracy_original": "original"},
        _PERCENT,
        "How many replaced tokens are flagged, and how many original ones are not: paper, "
        "figure 8.",
    ),
    Plot(
        "lm_accuracy",
        "Corrective LM's accuracy",
        "share of the masked tokens",
        {"lm_accuracy_replaced": "replaced", "lm_accuracy_original": "original"},
        _PERCENT,
        "How often its best guess is the original token, where the input was replaced and where "
        "it was not: paper, figure 8.",
    ),
    _of("mlm_accuracy", "share of the masked tokens", _PERCENT),
    Plot(
        "cosine",
        "Cosine of sequence pairs",
        "mean cosine",
        {"positive_cosine": "positive", "negative_cosine": "negative"},
        note="Two views of one text, and views of different texts: paper, figures 7a and 7b.",
    ),
    _of("learning_rate", "step size"),
    _of("gradient_norm", "global norm", _POWERS),
    Plot(
        "throughput",
        "Throughput",
        "tokens per second",
        {"tokens_per_second": "tokens per second"},
        _PREFIXES,
        "Tokens of the text, over all devices.",
    ),
)


def plots_of(*runs: Run) -> list[Plot]:
    """The plots for which runs have metrics: an objective without a task has none of its."""
    logged = {name for run in runs for name in run.log}
    plots = []
    for plot in PLOTS:
        curves = {name: label for name, label in plot.curves.items() if name in logged}
        if curves:
            plots.append(dataclasses.replace(plot, curves=curves))
    return plots


@styled()
def draw_curves(plot: Plot, runs: Sequence[Run], x_axis: str = "steps") -> Figure:
    """Draws one plot: of one run, training and validation; of several, a color for each run."""
    # Of several runs validation is drawn, and training of one that does not validate. A second
    # curve of the plot has a color of its own beside the first one of one run, or else is dashed.
    if len(runs) > len(PALETTE):
        raise ValueError(f"{len(runs)} runs are more than there are colors: {len(PALETTE)}.")
    is_alone = len(runs) == 1
    figure, axes = new_figure(plot.title, X_AXES[x_axis], plot.unit)
    of_runs, of_curves, of_splits = {}, {}, {}
    for run_number, run in enumerate(runs):
        for number, (name, label) in enumerate(plot.curves.items()):
            color = PALETTE[number if is_alone else run_number]
            dashes = "-" if is_alone else _DASHES[number]
            split_series = {split: run.series(split, name, x_axis) for split in _SPLITS}
            drawn = [split for split, values in split_series.items() if len(values)]
            for split in drawn if is_alone else drawn[-1:]:
                values = split_series[split]
                style = _SPLITS[split] if is_alone and len(drawn) > 1 else {"linewidth": 1.6}
                if len(values) == 1:
                    style = style | {"marker": "."}  # a line needs two points to be seen
                # Dots of many validations would merge.
                every = max(1, len(values) // 20)
                axes.plot(
                    values.index, values, color=color, linestyle=dashes, markevery=every, **style
                )
                of_runs[run.name] = _line(color, linewidth=2)
                of_curves[label] = _line(color if is_alone else FAINT_INK, linestyle=dashes)
                of_splits["training" if split == TRAINING else split] = _line(**_SPLITS[split])
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=x_axis == "steps"))
    _set_scale(axes, plot.scale)
    if not is_alone:
        add_legend(figure, of_runs)
        if len(plot.curves) > 1:
            add_legend(figure, of_curves, "upper right")
    elif len(of_curves) > 1 or len(of_splits) > 1:
        several = [handles for handles in (of_curves, of_splits) if len(handles) > 1]
        add_legend(figure, {label: line for handles in several for label, line in handles.items()})
    return figure


def _set_scale(axes: Axes, scale: str) -> None:
    if scale == _PERCENT:
        axes.yaxis.set_major_formatter(_percent)
        # The full scale, unless the curves would be flat on it.
        axes.set_ylim(0, 1.02 if axes.get_ylim()[1] > 0.4 else None)
    elif scale == _PREFIXES:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(0, None)
    elif scale == _POWERS and all((line.get_ydata() > 0).all() for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())

"""The figures of presets side by side: cosines, maps, detection, judgements, scores."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)
from scipy import stats

from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.figures import (
    BLUE,
    DOTTED,
    FAINT_INK,
    GRID,
    ORANGE,
    PALETTE,
    Style,
    add_legend,
    new_panels,
    styled,
    styles_of,
)
from cocolm_tf.analysis.glossary import DETECTION_METRICS, FREQUENCY_TITLES
from cocolm_tf.analysis.scores import Curves, Point

# The kinds of pairs, and their colors.
RANDOM, SIMILAR = "random pairs", "similar pairs"
_COLORS = {RANDOM: BLUE, SIMILAR: ORANGE}
_BINS = 40
# The narrowest range of cosines to show, so as not to exaggerate differences.
_NARROWEST = 0.2
# The percentage of cosines that may be outside at either end.
_OUTLIERS = 0.5

# How many pairs a map marks, each by a shape and a color.
_SHAPES = "o^sDPv"
MARKED_PAIRS = len(_SHAPES) * 2

# Square points of the largest dot of a reliability diagram, and of the least that can be seen.
_LARGEST_DOT, _LEAST_DOT = 160.0, 4.0
_FREQUENCY_METRICS = ("recall", "corrected_at_1", "corrected_at_5")
# The share of a group's width that its bars take.
_FILLED = 0.8
# Inches of height of a category of minimal pairs, and of the margins.
_LINE, _AROUND = 0.26, 1.3


def draw_distributions(cosines: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws the cosines of `RANDOM` and `SIMILAR` pairs, a panel a model (figures 1 and 5)."""
    groups = [values for kinds in cosines.values() for values in kinds.values()]
    # Outliers would leave the others no room.
    low = min(np.percentile(values, _OUTLIERS) for values in groups)
    high = max(np.percentile(values, 100 - _OUTLIERS) for values in groups)
    margin = max(0.03 * (high - low), (_NARROWEST - (high - low)) / 2)
    low, high = max(-1.0, low - margin), min(1.0, high + margin)
    with styled():
        figure, panels = new_panels(list(cosines), "cosine of sentence vectors", "density")
        for axes, kinds in zip(panels, cosines.values(), strict=True):
            for kind, values in kinds.items():
                _draw_kind(axes, _COLORS[kind], values, low, high)
        # All panels share these.
        panels[0].set_xlim(low, high)
        panels[0].set_ylim(0, None)
        handles = [Line2D([], [], color=color, linewidth=1.6) for color in _COLORS.values()]
        add_legend(figure, handles, _COLORS, "upper right")
    return figure


def _draw_kind(axes: Axes, color: str, values: np.ndarray, low: float, high: float) -> None:
    edges = np.linspace(low, high, _BINS + 1)
    axes.hist(values, edges, density=True, color=color, alpha=0.3, edgecolor="none")
    if np.ptp(values) > 1e-6:  # there is no density of a single value
        grid = np.linspace(low, high, 400)
        axes.plot(grid, stats.gaussian_kde(values)(grid), color=color, linewidth=1.6)
    axes.axvline(values.mean(), color=color, linewidth=1, linestyle=DOTTED)


def draw_map(places: Mapping[str, np.ndarray], seed: int = 0) -> Figure:
    """Draws maps of pairs, a panel a model; some pairs are marked, alike in shape and color."""
    # Of each model [2N, 2]: the first sentences' places, then those of their partners.
    count = len(next(iter(places.values()))) // 2
    generator = np.random.default_rng(seed)
    marked = generator.choice(count, min(MARKED_PAIRS, count), replace=False)
    with styled():
        figure, panels = new_panels(list(places), "", "", height=3.6)
        for axes, of_model in zip(panels, places.values(), strict=True):
            axes.scatter(*of_model.T, s=6, color=FAINT_INK, alpha=0.35, linewidths=0)
            for number, pair in enumerate(marked):
                color = PALETTE[number % len(PALETTE)]
                shape = _SHAPES[(number + number // len(PALETTE)) % len(_SHAPES)]
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


def draw_calibration(detections: Mapping[str, Detections]) -> Figure:
    """Draws the copy head's reliability diagram, a panel a preset."""
    with styled():
        figure, panels = new_panels(list(detections), "said to be replaced", "replaced", height=3.4)
        for axes, found in zip(panels, detections.values(), strict=True):
            said, so, counts = zip(*found.calibration(), strict=True)
            axes.plot([0, 1], [0, 1], color=FAINT_INK, linewidth=0.8, linestyle=DOTTED)
            axes.plot(said, so, color=BLUE, linewidth=1.2)
            areas = _LARGEST_DOT * np.array(counts) / max(counts)
            areas = np.maximum(areas, _LEAST_DOT)
            axes.scatter(said, so, s=areas, color=BLUE, linewidths=0, alpha=0.75)
            axes.set_aspect("equal")
        panels[0].set_xlim(-0.03, 1.03)
        panels[0].set_ylim(-0.03, 1.03)
        panels[0].xaxis.set_major_formatter(PercentFormatter(1))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def draw_by_frequency(measures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draws detection by the frequency of the original token, bars of a color for each preset."""
    width = _FILLED / len(measures)
    titles = {"recall": "Found"} | {
        key: DETECTION_METRICS[key][0] for key in _FREQUENCY_METRICS[1:]
    }
    styles = styles_of(measures)
    with styled():
        figure, panels = new_panels(
            list(titles.values()), "original token, by its frequency", "share of replaced tokens"
        )
        for axes, key in zip(panels, titles, strict=True):
            for number, (name, by_frequency) in enumerate(measures.items()):
                heights = [
                    by_frequency.get(frequency, {}).get(key, np.nan)
                    for frequency in FREQUENCY_TITLES
                ]
                shift = (number + 0.5) * width - _FILLED / 2
                places = np.arange(len(heights)) + shift
                axes.bar(places, heights, width * 0.92, **_filled(styles[name]))
            axes.set_xticks(range(len(FREQUENCY_TITLES)), FREQUENCY_TITLES.values(), fontsize=8.5)
            axes.tick_params(bottom=False)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylim(0, None)
        add_legend(figure, [Patch(**_filled(style)) for style in styles.values()], styles)
    return figure


def _filled(style: Style) -> dict[str, object]:
    return {"facecolor": style.color, "hatch": style.hatch, "edgecolor": GRID, "linewidth": 0}


def draw_judgements(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draws the accuracy on minimal pairs: a panel for each way to judge, a line a category."""
    categories = list(next(iter(results.values())))
    ways = list(dict.fromkeys(way for of in results.values() for way in of[categories[0]]))
    heights, styles = range(len(categories)), styles_of(results)
    with styled():
        figure, panels = new_panels(
            ways, "pairs judged right", "", height=_AROUND + _LINE * len(categories)
        )
        for axes, way in zip(panels, ways, strict=True):
            axes.axvline(0.5, color=FAINT_INK, linewidth=0.9, linestyle=DOTTED)  # chance
            for name, shares in results.items():
                if way in shares[categories[0]]:
                    found = [shares[category][way] for category in categories]
                    dots = {"color": styles[name].color, "marker": styles[name].marker}
                    axes.scatter(found, heights, s=34, linewidths=0, alpha=0.85, **dots)
        panels[0].set_yticks(heights, categories)
        panels[0].set_ylim(len(categories) - 0.5, -0.5)
        panels[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles = [
            Line2D([], [], color=style.color, marker=style.marker, linestyle="", markersize=6)
            for style in styles.values()
        ]
        add_legend(figure, handles, styles)
    return figure


def draw_scores(
    curves: Curves, x_label: str, set_places: Callable[[Axes, list[float]], None]
) -> Figure:
    """Draws scores over what was varied, a panel a task; `set_places` makes the horizontal axis."""
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    styles = {
        name: {"color": style.color, "marker": style.marker, "linewidth": 1.4, "markersize": 4.5}
        for name, style in styles_of(names).items()
    }
    with styled():
        figure, panels = new_panels(list(curves), x_label, "score", height=3.1, share_y=False)
        for axes, lines in zip(panels, curves.values(), strict=True):
            for name, points in lines.items():
                _draw_line(axes, points, styles[name])
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        places = sorted({p.x for lines in curves.values() for line in lines.values() for p in line})
        set_places(panels[0], places)
        add_legend(figure, [Line2D([], [], **style) for style in styles.values()], styles)
    return figure


def _draw_line(axes: Axes, points: Sequence[Point], style: Mapping[str, object]) -> None:
    """Draws means, and bars from the least to the greatest."""
    spread = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    places, means = [p.x for p in points], [p.mean for p in points]
    axes.errorbar(places, means, yerr=spread, elinewidth=0.9, capsize=2.5, **style)


def linear_axis(axes: Axes, places: list[float]) -> None:
    """Sets a linear horizontal axis from zero."""
    axes.set_xlim(0, 1.05 * max(places) or None)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def log_axis(form: Callable[[float], str]) -> Callable[[Axes, list[float]], None]:
    """Sets a logarithmic horizontal axis with ticks at the given places."""

    def set_places(axes: Axes, places: list[float]) -> None:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: form(x))
        axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)

    return set_places


def percent_axis(axes: Axes, places: list[float]) -> None:
    """Sets a horizontal axis of percentages with ticks at the given places."""
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(places[0] - 0.03, places[-1] + 0.03)

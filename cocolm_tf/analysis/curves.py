"""The curves of training: which metrics each plot shows, of one run or of several together."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from cocolm_tf.analysis.figures import (
    BLUE,
    FAINT_INK,
    ORANGE,
    PALETTE,
    add_legend,
    new_figure,
    styled,
)
from cocolm_tf.analysis.glossary import METRICS, STEP_METRICS
from cocolm_tf.analysis.metrics_log import TRAINING, VALIDATION, Metrics
from cocolm_tf.analysis.runs import X_AXES, Run

_PERCENT, _POWERS, _PREFIXES = "percent", "powers", "prefixes"
# The lines of a plot's two curves, where colors are runs.
_LINES = ("-", (0, (4, 1.6)))

# A curve's label, color and last value.
End = tuple[str, str, float]


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


def plots_of(*runs: Metrics) -> list[Plot]:
    """The plots for which runs have metrics: an objective without a task has none of its."""
    logged = {
        name for run in runs for lines in run.lines.values() for line in lines for name in line
    }
    plots = []
    for plot in PLOTS:
        curves = {name: label for name, label in plot.curves.items() if name in logged}
        if curves:
            plots.append(dataclasses.replace(plot, curves=curves))
    return plots


def set_scale(axes: Axes, plot: Plot, runs: Sequence[Metrics]) -> None:
    """Sets the vertical axis's scale of a plot."""
    if plot.scale == _PERCENT:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        # The full scale, unless the curves would be flat on it.
        axes.set_ylim(0, 1.02 if axes.get_ylim()[1] > 0.4 else None)
    elif plot.scale == _PREFIXES:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(0, None)
    elif plot.scale == _POWERS and _all_positive(plot, runs):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _all_positive(plot: Plot, runs: Sequence[Metrics]) -> bool:
    return all(
        value > 0
        for metrics in runs
        for name in plot.curves
        for value in metrics.series(TRAINING, name)[1]
    )


def draw(plot: Plot, metrics: Metrics) -> Figure:
    """Draws one plot: training as a thin line, validation as a line with dots."""
    with styled():
        figure, axes = new_figure(plot.title, "step", plot.unit)
        splits = [split for split in (TRAINING, VALIDATION) if _has(metrics, split, plot)]
        axes.margins(x=0.01)
        ends = _draw_curves(axes, plot, metrics)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        set_scale(axes, plot, [metrics])
        if len(plot.curves) > 1:
            _label_ends(axes, ends)
        if len(splits) > 1:
            _label_splits(axes)
    return figure


def _draw_curves(axes: Axes, plot: Plot, metrics: Metrics) -> list[End]:
    colors = (ORANGE, BLUE) if len(plot.curves) > 1 else (BLUE,)
    ends = []
    for (name, label), color in zip(plot.curves.items(), colors, strict=True):
        training, validation = (metrics.series(split, name) for split in (TRAINING, VALIDATION))
        prominence = (0.9, 0.5) if validation[0] else (1.4, 0.9)
        few = "." if len(training[0]) == 1 else ""  # a line needs two points to be seen
        width, alpha = prominence
        axes.plot(*training, color=color, linewidth=width, alpha=alpha, marker=few)
        # Dots of many validations would merge.
        every = max(1, len(validation[0]) // 20)
        axes.plot(
            *validation, color=color, linewidth=1.8, marker="o", markersize=3.5, markevery=every
        )
        _, values = validation if validation[0] else training
        ends.append((label, color, values[-1]))
    return ends


def _has(metrics: Metrics, split: str, plot: Plot) -> bool:
    return any(metrics.series(split, name)[0] for name in plot.curves)


def _label_ends(axes: Axes, ends: Sequence[End], gap: float = 0.08) -> None:
    """Labels two curves beside their ends, at least `gap` of the axis's height apart."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    lower, upper = sorted(ends, key=lambda end: end[2])
    heights = [(value - low) / (high - low) for _, _, value in (lower, upper)]
    if not all(map(math.isfinite, heights)):
        heights = [0.0, 1.0]
    middle = min(max(sum(heights) / 2, gap / 2), 1 - gap / 2)
    if heights[1] - heights[0] < gap:
        heights = [middle - gap / 2, middle + gap / 2]
    for (label, color, _), height in zip((lower, upper), heights, strict=True):
        axes.annotate(
            label,
            (right, low + height * (high - low)),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def _label_splits(axes: Axes) -> None:
    """Explains the splits on the line of the horizontal axis's name, where there is room."""
    lines = [
        Line2D([], [], color=FAINT_INK, linewidth=0.9, alpha=0.7),
        Line2D([], [], color=FAINT_INK, linewidth=1.8, marker="o", markersize=3.5),
    ]
    axes.legend(
        lines,
        ["training", "validation"],
        loc="upper right",
        bbox_to_anchor=(1.0, -0.1),
        ncols=2,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
        fontsize=8.5,
        labelcolor=FAINT_INK,
    )


def draw_runs(plot: Plot, runs: Sequence[Run], x_axis: str = "steps") -> Figure:
    """Draws one plot of several runs, a color each."""
    # Validation is drawn, and training of a run that does not validate. A second curve of the plot
    # is dashed.
    if len(runs) > len(PALETTE):
        raise ValueError(f"{len(runs)} runs are more than there are colors: {len(PALETTE)}.")
    with styled():
        figure, axes = new_figure(plot.title, X_AXES[x_axis], plot.unit)
        drawn = {}
        for run, color in zip(runs, PALETTE, strict=False):
            for name, line in zip(plot.curves, _LINES, strict=False):
                if _draw_curve(axes, run, name, x_axis, {"color": color, "linestyle": line}):
                    drawn[run.name] = color
        axes.margins(x=0.01)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        set_scale(axes, plot, [run.metrics for run in runs])
        _add_run_legend(figure, plot, drawn)
    return figure


def _draw_curve(axes: Axes, run: Run, name: str, x_axis: str, style: Mapping[str, object]) -> bool:
    """Draws a curve; whether there was something to draw."""
    for split in (VALIDATION, TRAINING):
        places, values = run.series(split, name, x_axis)
        if len(places):
            marker = "." if len(places) == 1 else ""  # a line needs two points to be seen
            axes.plot(places, values, linewidth=1.6, marker=marker, **style)
            return True
    return False


def _add_run_legend(figure: Figure, plot: Plot, colors: Mapping[str, str]) -> None:
    """Adds legends: runs by color, below the plot; curves by line style, above it, if several."""
    handles = [Line2D([], [], color=color, linewidth=2) for color in colors.values()]
    add_legend(figure, handles, colors)
    if len(plot.curves) > 1:
        handles = [
            Line2D([], [], color=FAINT_INK, linewidth=1.6, linestyle=line) for line in _LINES
        ]
        add_legend(figure, handles, plot.curves.values(), "upper right")

"""The curves of a run, drawn over its steps."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from cocolm_tf.analysis.figures import BLUE, FAINT_INK, ORANGE, new_figure, styled
from cocolm_tf.analysis.metrics_log import TRAINING, VALIDATION, Metrics
from cocolm_tf.analysis.plots import Plot, set_scale

# A curve's label, color and last value.
End = tuple[str, str, float]


def draw(plot: Plot, metrics: Metrics) -> Figure:
    """Draws one plot: training as a thin line, validation as a line with dots.

    Args:
        plot: what to draw.
        metrics: of the run.

    Returns:
        The figure. Close it (`pyplot.close`) when it is saved.

    Example:
    ```python
    draw(PLOTS[0], read_metrics("runs/first")).savefig("/tmp/loss.png")
    ```
    """
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
            _explain_splits(axes)
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
        # Many validations would make dots into a band.
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
    """Names two curves beside their ends, `gap` of the axis's height apart at the least."""
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


def _explain_splits(axes: Axes) -> None:
    """On the line of the horizontal axis's name, where there is room."""
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

"""The curves of a run: its metrics, read from the log and drawn over its steps."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from cocolm_tf.analysis.figures import BLUE, FAINT_INK, ORANGE, new_figure, styled
from cocolm_tf.errors import UserError

METRICS_FILENAME = "metrics.jsonl"
TRAINING, VALIDATION = "train", "validation"

# A curve's label, color and last value.
End = tuple[str, str, float]

_PERCENT, _POWERS, _PREFIXES = "percent", "powers", "prefixes"


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a run has logged.

    Args:
        lines: from each split, `train` and `validation`, its lines in the order of their steps.

    Example:
    ```python
    metrics = Metrics({"train": [{"step": 100, "loss": 9.0}], "validation": []})
    metrics.series("train", "loss")  # ([100], [9.0])
    ```
    """

    lines: dict[str, list[dict[str, float]]]

    def series(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """The steps at which a metric was logged, and its values there."""
        found = [(line["step"], line[name]) for line in self.lines[split] if name in line]
        return [step for step, _ in found], [value for _, value in found]

    def final(self) -> tuple[str, dict[str, float]]:
        """The last validation line, or the last training line of a run without validation.

        Returns:
            The split and the line.
        """
        split = VALIDATION if self.lines[VALIDATION] else TRAINING
        return split, self.lines[split][-1]

    @property
    def last_step(self) -> int:
        """The last step that anything was logged at."""
        return max(lines[-1]["step"] for lines in self.lines.values() if lines)

    @property
    def seconds(self) -> float:
        """How long the run took, in seconds, the attempts of a resumed one added up."""
        return max(times[-1] for split in self.lines if len(times := self.elapsed(split)))

    def elapsed(self, split: str) -> np.ndarray:
        """When each line of a split was logged, in seconds since the run began.

        The attempts of a resumed run are added up.
        """
        logged = sorted((line for lines in self.lines.values() for line in lines), key=_order)
        total = before = 0.0
        times = {}
        for line in logged:
            # Each attempt counts from 0.
            total += line["seconds"] - (before if line["seconds"] >= before else 0.0)
            before = line["seconds"]
            times[id(line)] = total
        return np.array([times[id(line)] for line in self.lines[split]])


def read_metrics(model_dir: str) -> Metrics:
    """Reads the log of a run, which may still be going on.

    Args:
        model_dir: the run's folder, with its `metrics.jsonl`.

    Returns:
        The metrics.

    Raises:
        UserError: if the folder has no log, or one without lines, or with a broken one.

    Example:
    ```python
    steps, losses = read_metrics("runs/first").series("validation", "loss")
    ```
    """
    path = os.path.join(model_dir, METRICS_FILENAME)
    if not os.path.isfile(path):
        raise UserError(
            f"{model_dir} has no {METRICS_FILENAME}: give the --model_dir of a pretraining run."
        )
    lines: dict[str, list[dict[str, float]]] = {TRAINING: [], VALIDATION: []}
    with open(path) as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith("\n"):
                break  # it is being written
            try:
                line = json.loads(text)
                # null stands for what was not finite.
                values = {name: value for name, value in line.items() if value is not None}
                lines[line["split"]].append(values | {"step": int(line["step"])})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}, is not a line of metrics: it must be a JSON object "
                    "with step, split (train or validation) and numbers."
                ) from error
    if not any(lines.values()):
        raise UserError(f"{path} has no lines yet: wait for the run's first log_interval.")
    for of_split in lines.values():
        of_split.sort(key=lambda line: line["step"])
    return Metrics(lines)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure to draw.

    Args:
        name: of its file.
        title: what it shows.
        unit: of the vertical axis.
        curves: the metrics it shows, with what to call each; one or two.
        scale: `percent`, `powers` (logarithmic), `prefixes` (k, M) or nothing special.
        note: a sentence on what to look for.

    Example:
    ```python
    Plot("loss", "Total loss", "nats", {"loss": "total"})
    ```
    """

    name: str
    title: str
    unit: str
    curves: dict[str, str]
    scale: str = ""
    note: str = ""


PLOTS = (
    Plot(
        "loss",
        "Total loss",
        "nats",
        {"loss": "total"},
        note="The weighted sum of the four losses below; what training minimizes.",
    ),
    Plot(
        "mlm_loss",
        "Masked LM loss",
        "nats per masked token",
        {"mlm_loss": "masked LM"},
        note="The auxiliary model's cross entropy. A uniform guess has log(vocabulary size).",
    ),
    Plot(
        "copy_loss",
        "Copy loss",
        "nats per token",
        {"copy_loss": "copy"},
        note="Binary cross entropy of telling original from replaced tokens. It may rise while "
        "the auxiliary model learns to fool the main one.",
    ),
    Plot(
        "lm_loss",
        "Corrective LM loss",
        "nats per masked token",
        {"lm_loss": "corrective LM"},
        note="The main model's cross entropy of the original tokens, copied or corrected.",
    ),
    Plot(
        "scl_loss",
        "Contrastive loss",
        "nats per sequence",
        {"scl_loss": "contrastive"},
        note="Cross entropy of finding a sequence's other view in the batch.",
    ),
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
    Plot(
        "mlm_accuracy",
        "Masked LM's accuracy",
        "share of the masked tokens",
        {"mlm_accuracy": "masked LM"},
        _PERCENT,
        "How often the auxiliary model's best guess is right.",
    ),
    Plot(
        "cosine",
        "Cosine of sequence pairs",
        "mean cosine",
        {"positive_cosine": "positive", "negative_cosine": "negative"},
        note="Two views of one text, and views of different texts: paper, figures 7a and 7b.",
    ),
    Plot(
        "learning_rate",
        "Learning rate",
        "step size",
        {"learning_rate": "learning rate"},
        note="Linear warm-up, then linear decay.",
    ),
    Plot(
        "gradient_norm",
        "Gradient norm",
        "global norm",
        {"gradient_norm": "gradient norm"},
        _POWERS,
        "Before clipping.",
    ),
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
    """The plots that runs have something for: an objective without a task has none of its.

    Args:
        *runs: what each logged.

    Returns:
        Plots in the order of `PLOTS`, without the curves that no run has values of.

    Example:
    ```python
    [plot.name for plot in plots_of(read_metrics("runs/first"))]
    ```
    """
    logged = {
        name for run in runs for lines in run.lines.values() for line in lines for name in line
    }
    plots = []
    for plot in PLOTS:
        curves = {name: label for name, label in plot.curves.items() if name in logged}
        if curves:
            plots.append(dataclasses.replace(plot, curves=curves))
    return plots


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


def set_scale(axes: Axes, plot: Plot, runs: Sequence[Metrics]) -> None:
    """Gives the vertical axis the scale that a plot asks for.

    Args:
        axes: with everything drawn.
        plot: what is drawn.
        runs: of what.

    Example:
    ```python
    set_scale(figure.axes[0], PLOTS[0], [read_metrics("runs/first")])
    ```
    """
    if plot.scale == _PERCENT:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        # All of the scale, unless nothing would be seen on it.
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


def _order(line: dict[str, float]) -> tuple[int, float]:
    return line["step"], line["seconds"]

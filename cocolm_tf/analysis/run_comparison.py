"""The curves of several runs on common axes (paper, figures 3, 7 and 8)."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from cocolm_tf import files
from cocolm_tf.analysis.figures import FAINT_INK, PALETTE, legend_below, new_figure, styled
from cocolm_tf.analysis.metrics_log import TRAINING, VALIDATION, Metrics, read_metrics
from cocolm_tf.analysis.plots import Plot, set_scale
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig, load_config
from cocolm_tf.training.flops import pretraining_flops
from cocolm_tf.training.stages import Total, tokens_per_step

# What runs are compared by, and the name of that axis.
X_AXES = {"steps": "step", "tokens": "tokens read", "flops": "model FLOPs", "hours": "hours"}

# The second curve of a plot beside the first.
_LINES = ("-", (0, (4, 1.6)))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to compare.

    Args:
        name: what to call it.
        metrics: what it logged.
        config: what it is of.

    Example:
    ```python
    read_run("COCO-LM", "runs/first").abscissa("train", "tokens")
    ```
    """

    name: str
    metrics: Metrics
    config: PretrainingConfig

    def abscissa(self, split: str, x_axis: str) -> np.ndarray:
        """Where each of its lines stands on an axis of `X_AXES`.

        Args:
            split: `train` or `validation`.
            x_axis: what is counted since the run began.

        Returns:
            [N] float64, one for each line of the split.
        """
        if x_axis == "hours":
            return self.metrics.elapsed(split) / 3600
        total = self._total(x_axis)
        return np.array([total(line["step"]) for line in self.metrics.lines[split]], np.float64)

    def at(self, step: int, x_axis: str) -> float:
        """Where a step stands on an axis of `X_AXES`; hours are those of the log around it."""
        if x_axis != "hours":
            return self._total(x_axis)(step)
        steps, hours = (
            np.concatenate([self.abscissa(split, axis) for split in self.metrics.lines])
            for axis in ("steps", "hours")
        )
        order = np.argsort(steps, kind="stable")
        return float(np.interp(step, [0, *steps[order]], [0, *hours[order]]))

    def series(self, split: str, name: str, x_axis: str) -> tuple[np.ndarray, np.ndarray]:
        """Where a metric was logged on an axis of `X_AXES`, and its values there."""
        lines = self.metrics.lines[split]
        has = np.array([name in line for line in lines], bool)
        values = np.array([line[name] for line in lines if name in line], np.float64)
        return self.abscissa(split, x_axis)[has], values

    def _total(self, x_axis: str) -> Total:
        of_step = {
            "tokens": tokens_per_step,
            "flops": lambda config: sum(pretraining_flops(config).values()),
        }
        return Total(self.config, of_step.get(x_axis, lambda _: 1))


def read_run(name: str, model_dir: str) -> Run:
    """Reads what is compared of a run, which may still be going on.

    Args:
        name: what to call it.
        model_dir: its folder.

    Returns:
        The run.

    Raises:
        UserError: if the folder is not that of a run.

    Example:
    ```python
    read_run("COCO-LM", "runs/first")
    ```
    """
    metrics = read_metrics(model_dir)
    config_file = os.path.join(model_dir, "config.yaml")
    if not files.is_file(config_file):
        raise UserError(f"{model_dir} has no config.yaml: give the --model_dir of a run.")
    return Run(name, metrics, load_config(config_file))


def draw_runs(plot: Plot, runs: Sequence[Run], x_axis: str = "steps") -> Figure:
    """Draws one plot of several runs, a color each.

    Validation is drawn, and training of a run that does not validate. A second curve of the plot
    is dashed.

    Args:
        plot: one of `plots_of`.
        runs: at most as many as there are colors.
        x_axis: one of `X_AXES`.

    Returns:
        The figure. Close it (`pyplot.close`) when it is saved.

    Example:
    ```python
    runs = [read_run("COCO-LM", "runs/first"), read_run("without SCL", "runs/second")]
    draw_runs(PLOTS[0], runs, "tokens")
    ```
    """
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
        _explain(figure, plot, drawn)
    return figure


def _draw_curve(axes: Axes, run: Run, name: str, x_axis: str, style: Mapping[str, object]) -> bool:
    """Whether there was something to draw."""
    for split in (VALIDATION, TRAINING):
        places, values = run.series(split, name, x_axis)
        if len(places):
            marker = "." if len(places) == 1 else ""  # a line needs two points to be seen
            axes.plot(places, values, linewidth=1.6, marker=marker, **style)
            return True
    return False


def _explain(figure: Figure, plot: Plot, colors: Mapping[str, str]) -> None:
    """Colors are runs, below the plot; lines are curves, above it, where there are two."""
    handles = [Line2D([], [], color=color, linewidth=2) for color in colors.values()]
    legend_below(figure, handles, list(colors))
    if len(plot.curves) > 1:
        handles = [
            Line2D([], [], color=FAINT_INK, linewidth=1.6, linestyle=line) for line in _LINES
        ]
        labels = list(plot.curves.values())
        style = {"frameon": False, "fontsize": 8.5, "handlelength": 2.2, "columnspacing": 1.4}
        figure.legend(handles, labels, loc="outside upper right", ncols=2, **style)

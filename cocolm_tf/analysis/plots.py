"""The plots of training: which metrics each shows, and on what scale."""

import dataclasses
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

from cocolm_tf.analysis.metrics_log import TRAINING, Metrics

_PERCENT, _POWERS, _PREFIXES = "percent", "powers", "prefixes"


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

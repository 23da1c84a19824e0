"""Histograms and density curves of cosines, a panel a model (paper, figures 1 and 5)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from cocolm_tf.analysis.figures import BLUE, ORANGE, new_panels, styled

# The kinds of pairs, and their colors.
RANDOM, SIMILAR = "random pairs", "similar pairs"
_COLORS = {RANDOM: BLUE, SIMILAR: ORANGE}

_BINS = 40
# The narrowest stretch of cosines that is shown: no difference is to be made out of nothing.
_NARROWEST = 0.2
# The percentage of them that may lie outside at either end.
_OUTLIERS = 0.5


def draw_distributions(cosines: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws how the cosines of random and of similar pairs are distributed.

    Args:
        cosines: from the name of each model, from each kind of pairs (`RANDOM`, `SIMILAR`), the
            cosines, [N].

    Returns:
        The figure. Panels share their axes.

    Example:
    ```python
    draw_distributions({"COCO-LM": {RANDOM: np.zeros(9), SIMILAR: np.ones(9)}})
    ```
    """
    groups = [values for kinds in cosines.values() for values in kinds.values()]
    # What is far from all others would leave these no room.
    low = min(np.percentile(values, _OUTLIERS) for values in groups)
    high = max(np.percentile(values, 100 - _OUTLIERS) for values in groups)
    margin = max(0.03 * (high - low), (_NARROWEST - (high - low)) / 2)
    low, high = max(-1.0, low - margin), min(1.0, high + margin)
    with styled():
        figure, panels = new_panels(list(cosines), "cosine of sentence vectors", "density")
        for axes, kinds in zip(panels, cosines.values(), strict=True):
            for kind, values in kinds.items():
                _draw_kind(axes, kind, values, low, high)
        # All panels share these.
        panels[0].set_xlim(low, high)
        panels[0].set_ylim(0, None)
        # Of the first panel's, for all.
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _draw_kind(axes: Axes, kind: str, values: np.ndarray, low: float, high: float) -> None:
    color = _COLORS[kind]
    edges = np.linspace(low, high, _BINS + 1)
    axes.hist(values, edges, density=True, color=color, alpha=0.3, edgecolor="none")
    if np.ptp(values) > 1e-6:
        grid = np.linspace(low, high, 400)
        axes.plot(grid, stats.gaussian_kde(values)(grid), color=color, linewidth=1.6, label=kind)
    else:  # there is no density of a single value
        axes.plot([], [], color=color, linewidth=1.6, label=kind)
    axes.axvline(values.mean(), color=color, linewidth=1, linestyle=(0, (2, 2)))

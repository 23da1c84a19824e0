"""The shares of minimal pairs that presets judge right, by category."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from cocolm_tf.analysis.figures import FAINT_INK, PALETTE, legend_below, new_panels, styled

_CHANCE = 0.5
# Inches of a category's line, and of all around them.
_LINE, _AROUND = 0.26, 1.3


def draw_judgements(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draws dots: a panel for each way of judging, a line for each category, a color for a preset.

    Args:
        results: from the name of each preset, what `accuracies` returns: of the same pairs.

    Returns:
        The figure. Close it (`pyplot.close`) when it is saved.

    Example:
    ```python
    draw_judgements({"COCO-LM": accuracies(pairs, scores)})
    ```
    """
    categories = list(next(iter(results.values())))
    ways = list(dict.fromkeys(way for of in results.values() for way in of[categories[0]]))
    heights = range(len(categories))
    with styled():
        figure, panels = new_panels(
            ways, "pairs judged right", "", height=_AROUND + _LINE * len(categories)
        )
        for axes, way in zip(panels, ways, strict=True):
            axes.axvline(_CHANCE, color=FAINT_INK, linewidth=0.9, linestyle=(0, (2, 2)))
            for shares, color in zip(results.values(), PALETTE * 9, strict=False):
                if way in shares[categories[0]]:
                    found = [shares[category][way] for category in categories]
                    axes.scatter(found, heights, s=34, color=color, linewidths=0, alpha=0.85)
        panels[0].set_yticks(heights, categories)
        panels[0].set_ylim(len(categories) - 0.5, -0.5)
        panels[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles = [
            Line2D([], [], color=color, marker="o", linestyle="", markersize=6)
            for _, color in zip(results, PALETTE * 9, strict=False)
        ]
        legend_below(figure, handles, list(results))
    return figure

"""Detection and correction by how frequent the token is that belongs there."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from cocolm_tf.analysis.figures import PALETTE, legend_below, new_panels, styled
from cocolm_tf.analysis.meanings import BAND_MEANINGS

_PANELS = {
    "recall": "Found",
    "corrected_at_1": "Corrected",
    "corrected_at_5": "Corrected, of five",
}
# Of the room between two bands, what their bars take.
_FILLED = 0.8


def draw_bands(measures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draws bars by bands of frequency, a color for each preset.

    Args:
        measures: from each name, what `Detections.by_frequency` gives.

    Returns:
        The figure. Close it (`pyplot.close`) when it is saved.

    Example:
    ```python
    draw_bands({"COCO-LM": detect(*loaded, "data/validation").by_frequency()})
    ```
    """
    width = _FILLED / len(measures)
    with styled():
        figure, panels = new_panels(
            list(_PANELS.values()), "original token, by its frequency", "share of replaced tokens"
        )
        for axes, key in zip(panels, _PANELS, strict=True):
            for number, bands in enumerate(measures.values()):
                heights = [bands.get(band, {}).get(key, np.nan) for band in BAND_MEANINGS]
                shift = (number + 0.5) * width - _FILLED / 2
                axes.bar(
                    np.arange(len(heights)) + shift,
                    heights,
                    width * 0.92,
                    color=PALETTE[number % len(PALETTE)],
                )
            axes.set_xticks(range(len(BAND_MEANINGS)), BAND_MEANINGS.values(), fontsize=8.5)
            axes.tick_params(bottom=False)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylim(0, None)
        handles = [
            Line2D([], [], color=PALETTE[number % len(PALETTE)], linewidth=5)
            for number in range(len(measures))
        ]
        legend_below(figure, handles, list(measures))
    return figure

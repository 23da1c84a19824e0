"""Reliability diagrams: whether tokens called replaced with 70% are so in 70% of the cases."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.figures import BLUE, FAINT_INK, new_panels, styled


def draw_calibration(detections: Mapping[str, Detections]) -> Figure:
    """Draws what the copy head says against what is so, a panel a preset.

    Args:
        detections: by the names of the panels.

    Returns:
        The figure. A dot is a range of probabilities; its area, how many tokens are in it.

    Example:
    ```python
    draw_calibration({"COCO-LM": detect(*load_pretrained(preset), "data/validation")})
    ```
    """
    with styled():
        figure, panels = new_panels(list(detections), "said to be replaced", "replaced", height=3.4)
        for axes, found in zip(panels, detections.values(), strict=True):
            said, so, counts = zip(*found.calibration(), strict=True)
            axes.plot([0, 1], [0, 1], color=FAINT_INK, linewidth=0.8, linestyle=(0, (2, 2)))
            axes.plot(said, so, color=BLUE, linewidth=1.2)
            sizes = [10 + 90 * (count / max(counts)) ** 0.5 for count in counts]
            axes.scatter(said, so, s=sizes, color=BLUE, linewidths=0, alpha=0.75)
            axes.set_aspect("equal")
        panels[0].set_xlim(-0.03, 1.03)
        panels[0].set_ylim(-0.03, 1.03)
        panels[0].xaxis.set_major_formatter(PercentFormatter(1))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure

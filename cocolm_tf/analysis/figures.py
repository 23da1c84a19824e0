"""How every figure looks, and how it is saved."""

import contextlib
import io
from collections.abc import Iterator, Sequence

import matplotlib

matplotlib.use("Agg")  # before pyplot, which otherwise looks for a screen

from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cocolm_tf import files

# The colors of everything that a figure draws. Whoever embeds one can replace them.
INK, FAINT_INK, GRID = "#24292f", "#6e7781", "#e4e7eb"
BLUE, ORANGE = "#2f6db5", "#d4680f"
GREEN, PURPLE, RED, TEAL = "#2a7f4f", "#7b52b9", "#b8324a", "#1c8391"
# For what stands side by side, in this order.
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL)

# Inches of a column of a legend.
_LEGEND_COLUMN = 1.7

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT_INK,
    "axes.labelcolor": FAINT_INK,
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Makes what is drawn within it look like all figures.

    Example:
    ```python
    with styled():
        figure, axes = new_figure("Total loss", "step", "nats")
    ```
    """
    with plt.rc_context(_STYLE):
        yield


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Begins a figure of one panel.

    Args:
        title: what it shows.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.

    Returns:
        The figure, to be closed (`pyplot.close`) when it is saved, and its axes.

    Example:
    ```python
    figure, axes = new_figure("Total loss", "step", "nats")
    ```
    """
    figure, axes = plt.subplots(figsize=(5.4, 3.3), layout="constrained")
    frame(axes, title, x_label, y_label)
    return figure, axes


def new_panels(
    titles: Sequence[str], x_label: str, y_label: str, height: float = 2.9, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """Begins a figure of panels side by side, up to three in a row, on common axes.

    Args:
        titles: one for each panel.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        height: float. Inches of a row.
        share_y: bool. Whether the vertical axis is a common one, too.

    Returns:
        The figure, to be closed (`pyplot.close`) when it is saved, and the panels' axes.

    Example:
    ```python
    figure, panels = new_panels(["with SCL", "without SCL"], "cosine", "density")
    ```
    """
    columns = 2 if len(titles) == 4 else min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(5.4, 3.6 * columns), height * rows),
        sharex=True,
        sharey=share_y,
        squeeze=False,
        layout="constrained",
    )
    panels = list(grid.flat)
    for axes in panels[len(titles) :]:
        axes.remove()
    for number, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        is_first, is_lowest = number % columns == 0, number + columns >= len(titles)
        frame(axes, title, x_label if is_lowest else "", y_label if is_first else "")
        # What has nothing below it has no neighbor to share its labels with.
        axes.tick_params(labelbottom=is_lowest)
    return figure, panels[: len(titles)]


def frame(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Gives axes their title, names and grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK)
    axes.set_xlabel(x_label, loc="left")
    axes.set_ylabel(y_label)


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Puts a legend below all panels, in as many columns as there is room for.

    Args:
        figure: with its panels.
        handles: what to explain.
        labels: what each is.

    Example:
    ```python
    legend_below(figure, [Line2D([], [], color=BLUE)], ["COCO-LM"])
    ```
    """
    columns = max(1, int(figure.get_figwidth() / _LEGEND_COLUMN))
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=2.2,
        columnspacing=1.4,
    )


def save_figure(figure: Figure, output_dir: str, name: str, formats: Sequence[str]) -> None:
    """Writes a figure, each file in one step.

    Args:
        figure: the figure.
        output_dir: the folder, which exists.
        name: of the files.
        formats: `png`, `svg`.

    Example:
    ```python
    save_figure(figure, "report", "loss", ["png", "svg"])
    ```
    """
    for kind in formats:
        image = io.BytesIO()
        # Without a date and with names that do not change, the same figure is the same file.
        with matplotlib.rc_context({"svg.hashsalt": name}):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(image, format=kind, dpi=150, metadata=metadata)
        files.write_bytes(files.join(output_dir, f"{name}.{kind}"), image.getvalue())

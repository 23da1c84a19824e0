"""The common style of figures, and their files."""

import contextlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # before pyplot, which otherwise looks for a screen

from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cocolm_tf import files

# The colors of everything that a figure draws. Whoever embeds one can replace them.
INK, FAINT_INK, GRID = "#24292f", "#6e7781", "#e4e7eb"
BLUE, ORANGE = "#2f6db5", "#d4680f"
GREEN, PURPLE, RED, TEAL = "#2a7f4f", "#7b52b9", "#b8324a", "#1c8391"
# The colors of series, in order; where they repeat, shapes differ.
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL)
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
_HATCHES = ("", "///", "...", "xxx", "---", "+++", "ooo", "***")
DOTTED = (0, (2, 2))

# A page's CSS variables for the colors, which differ between light and dark.
COLOR_NAMES = {
    INK: "ink",
    FAINT_INK: "faint",
    GRID: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    RED: "red",
    TEAL: "teal",
}
_REM_PER_INCH = 6.4
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


class Style(NamedTuple):
    """The style of one series: of a line or dots, or of bars."""

    color: str
    marker: str
    hatch: str


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: a color, and another shape where the colors begin again."""
    shapes = itertools.cycle(zip(_SHAPES, _HATCHES, strict=True))
    found = (Style(color, *shape) for shape in shapes for color in PALETTE)
    return dict(zip(names, found, strict=False))


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Applies the common style to what is drawn within."""
    with plt.rc_context(_STYLE):
        yield


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Makes a figure of one panel."""
    figure, axes = plt.subplots(figsize=(5.4, 3.3), layout="constrained")
    set_labels(axes, title, x_label, y_label)
    return figure, axes


def new_panels(
    titles: Sequence[str], x_label: str, y_label: str, height: float = 2.9, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels side by side, up to three in a row, on common axes."""
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
        set_labels(axes, title, x_label if is_lowest else "", y_label if is_first else "")
        # What has nothing below it has no neighbor to share its labels with.
        axes.tick_params(labelbottom=is_lowest)
    return figure, panels[: len(titles)]


def set_labels(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Sets the title, labels and grid of axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK)
    axes.set_xlabel(x_label, loc="left")
    axes.set_ylabel(y_label)


def add_legend(
    figure: Figure, handles: Sequence[Artist], labels: Iterable[str], loc: str = "lower left"
) -> None:
    """Puts a legend outside of all panels, in as many columns as there is room for."""
    figure.legend(
        handles,
        list(labels),
        loc=f"outside {loc}",
        ncols=max(1, int(figure.get_figwidth() / _LEGEND_COLUMN)),
        frameon=False,
        fontsize=8.5,
        handlelength=2.2,
        columnspacing=1.4,
    )


def save_figure(figure: Figure, output_dir: str, name: str, formats: Sequence[str]) -> None:
    """Writes a figure, each file atomically."""
    for kind in formats:
        image = io.BytesIO()
        # Without a date and with names that do not change, the same figure is the same file.
        with matplotlib.rc_context({"svg.hashsalt": name}):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(image, format=kind, dpi=150, metadata=metadata)
        files.write_bytes(files.join(output_dir, f"{name}.{kind}"), image.getvalue())


def inline_svg(figure: Figure, description: str) -> Markup:
    """Draws a figure as part of a page, in the page's colors."""
    file = io.StringIO()
    # Text stays text, and each figure has names of its own for what it refers to.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, name in COLOR_NAMES.items():
        svg = svg.replace(color, f"var(--{name})")
    # Only the first element's: the page decides the size.
    element, rest = svg.split(">", 1)
    element = re.sub(r' (?:width|height)="[^"]*"', "", element)
    # Letters are as large in all figures, however wide these are, where the page has the room.
    style = f"max-width: {_REM_PER_INCH * figure.get_figwidth():.1f}rem"
    return Markup('{} role="img" aria-label="{}" style="{}">{}').format(
        Markup(element), description, style, Markup(rest)
    )

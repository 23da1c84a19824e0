"""A page of HTML that stands alone: its style, its tables, its figures; light and dark."""

import html
import io
import re
from collections.abc import Collection, Sequence

import matplotlib
from matplotlib.figure import Figure

from cocolm_tf.analysis.figures import (
    BLUE,
    FAINT_INK,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    RED,
    TEAL,
)

_REM_PER_INCH = 6.4

# What the page calls the colors of the figures, which differ between light and dark.
_NAMES = {
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
_DARK = {
    INK: "#e6e9ec",
    FAINT_INK: "#9aa4ae",
    GRID: "#31373e",
    BLUE: "#6fa8e8",
    ORANGE: "#f0975a",
    GREEN: "#5cc48e",
    PURPLE: "#b394ea",
    RED: "#f0828f",
    TEAL: "#56bfcc",
}

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --flag: 214 104 15;
  --good: #1a7f4b; --bad: #b3261e; LIGHT }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #16191d; --card: #1e2227; --flag: 240 151 90; --good: #5cc48e; --bad: #f08a80;
    DARK }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.5rem 4rem; background: var(--back);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
h1 { margin: 0 0 .2rem; font-size: 1.7rem; overflow-wrap: anywhere }
h2 { margin: 3rem 0 .8rem; font-size: 1.25rem }
h3 { margin: 2rem 0 .6rem; font-size: 1rem }
p, ul { max-width: 48rem }
nav a { color: var(--blue); margin-right: 1.2rem }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2.4rem; margin: 0 0 1rem }
dt { color: var(--faint); font-size: .85rem }
dd { margin: 0; font-weight: 600 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem }
th { color: var(--faint); font-weight: 500; text-align: left }
th, td { padding: .3rem 1.4rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline }
tr:last-child td { border-bottom: 0 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
small, .label, figcaption { color: var(--faint) }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr));
  gap: 2rem }
figure { margin: 0 }
.full { grid-column: 1 / -1 }
figure svg { width: 100%; height: auto; display: block }
figcaption { font-size: .85rem; line-height: 1.4 }
.sentence { background: var(--card); border-radius: 8px; padding: .8rem 1.1rem; margin: 1rem 0 }
.sentence p { margin: 0; max-width: none }
.sentence .wide { margin-top: .6rem }
.sentence th:nth-child(-n+2) { min-width: 8.5rem }
.sentence th:nth-child(4) { min-width: 24rem }
.label { display: inline-block; width: 5rem; font-size: .85rem }
.token { border-radius: 3px; background: rgb(var(--flag) / calc(var(--p) * .55)) }
.flagged { font-weight: 600; padding: 0 .15em }
.asked { text-decoration: underline dotted; text-underline-offset: .25em }
.mask { display: inline-block; width: 3em; border-bottom: 2px solid var(--faint) }
.verdicts { list-style: none; padding: 0; font-size: .92rem }
.corrected, .kept { color: var(--good) }
.found { color: var(--orange) }
.missed, .false-alarm { color: var(--bad) }
pre { font-size: .85rem; overflow-x: auto; background: var(--card); padding: 1rem;
  border-radius: 8px }
summary { cursor: pointer }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt }
  nav { display: none }
  h2, h3 { break-after: avoid }
  figure, tr, .sentence { break-inside: avoid }
  .wide { overflow: visible }
  .figures { grid-template-columns: 1fr 1fr }
}
"""


def page(title: str, headline: dict[str, str], sections: dict[str, str]) -> str:
    """Puts a page together.

    Args:
        title: of the page, plain text.
        headline: names and values to show under it, plain text.
        sections: titles, plain text, and their contents, HTML.

    Returns:
        The page.

    Example:
    ```python
    page("first", {"steps": "1,000"}, {"Results": table(["measure"], [["loss"]])})
    ```
    """
    colors = {
        "LIGHT": " ".join(f"--{name}: {color};" for color, name in _NAMES.items()),
        "DARK": " ".join(f"--{name}: {_DARK[color]};" for color, name in _NAMES.items()),
    }
    style = re.sub("LIGHT|DARK", lambda match: colors[match.group()], _STYLE)
    title = html.escape(title)
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in headline.items()
    )
    links, bodies = [], []
    for number, (name, content) in enumerate(sections.items()):
        links.append(f"<a href='#s{number}'>{html.escape(name)}</a>")
        bodies.append(f"<section id='s{number}'><h2>{html.escape(name)}</h2>\n{content}</section>")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            "<html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{title}</title><style>{style}</style></head>",
            f"<body><h1>{title}</h1><dl>{facts}</dl><nav>{''.join(links)}</nav>",
            *bodies,
            "</body></html>\n",
        ]
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int] = ()
) -> str:
    """Lays out a table.

    Args:
        header: of the columns, HTML.
        rows: the cells, HTML.
        numeric: the columns that are numbers, and so end at the right.

    Returns:
        HTML.

    Example:
    ```python
    table(["measure", "value"], [["loss", "8.1"]], numeric=[1])
    ```
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (" class='number'" if column in numeric else "" for column in range(len(cells)))
        inside = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    lines = [line("th", header), *(line("td", row) for row in rows)]
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def inline_svg(figure: Figure, description: str) -> str:
    """Draws a figure as part of a page, in the page's colors.

    Args:
        figure: in the colors of `cocolm_tf.analysis.figures`.
        description: for those who do not see it, plain text; different for each figure of a page.

    Returns:
        An `<svg>` element.

    Example:
    ```python
    inline_svg(draw(PLOTS[0], read_metrics("runs/first")), "total loss over steps")
    ```
    """
    file = io.StringIO()
    # Text stays text, and each figure has names of its own for what it refers to.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, name in _NAMES.items():
        svg = svg.replace(color, f"var(--{name})")
    # Only the first element's: the page decides the size.
    element, rest = svg.split(">", 1)
    element = re.sub(r' (?:width|height)="[^"]*"', "", element)
    # Letters are as large in all figures, however wide these are, where the page has the room.
    style = f"max-width: {_REM_PER_INCH * figure.get_figwidth():.1f}rem"
    label = html.escape(description)
    return f'{element} role="img" aria-label="{label}" style="{style}">{rest}'

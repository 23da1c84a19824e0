"""Self-contained HTML pages, light and dark, and the folder that they are written to.

Anything but `Markup` is text, which is escaped where it is inserted.
"""

import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources

from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cocolm_tf import files
from cocolm_tf.analysis.figures import (
    BLUE,
    COLOR_NAMES,
    FAINT_INK,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    RED,
    TEAL,
    inline_svg,
    save_figure,
)
from cocolm_tf.analysis.glossary import Description
from cocolm_tf.errors import UserError

_STYLE = resources.files(__package__).joinpath("page.css")
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
_PAGE = Markup(
    "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\n"
    "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
    "<title>{title}</title><style>{style}</style></head>\n"
    "<body><h1>{title}</h1><dl>{facts}</dl><nav>{links}</nav>\n{sections}\n</body></html>\n"
)


def page(title: str, headline: Mapping[str, str], sections: Mapping[str, str]) -> Markup:
    """Makes a page: its title, names and values below it, and sections by their titles."""
    colors = {
        "LIGHT": " ".join(f"--{name}: {color};" for color, name in COLOR_NAMES.items()),
        "DARK": " ".join(f"--{name}: {_DARK[color]};" for color, name in COLOR_NAMES.items()),
    }
    _, _, style = _STYLE.read_text(encoding="utf-8").partition("*/")
    return _PAGE.format(
        title=title,
        style=Markup(re.sub("LIGHT|DARK", lambda match: colors[match.group()], style)),
        facts=each("<div><dt>{}</dt><dd>{}</dd></div>", headline.items()),
        links=each("<a href='#s{}'>{}</a>", enumerate(sections)),
        sections=each(
            "<section id='s{}'><h2>{}</h2>\n{}</section>\n",
            ((number, *section) for number, section in enumerate(sections.items())),
        ),
    )


def each(form: str, values: Iterable[Sequence[object]]) -> Markup:
    """Formats HTML with values, once for each tuple of them."""
    return Markup("").join(Markup(form).format(*of_one) for of_one in values)


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int] = ()
) -> Markup:
    """Formats a table, whose `numeric` columns are right-aligned."""

    def line(tag: str, cells: Sequence[str]) -> Markup:
        kinds = [Markup(" class='number'" if n in numeric else "") for n in range(len(cells))]
        inside = each(f"<{tag}{{}}>{{}}</{tag}>", zip(kinds, cells, strict=True))
        return Markup("<tr>{}</tr>").format(inside)

    lines = Markup("").join([line("th", header), *(line("td", row) for row in rows)])
    return Markup("<div class='wide'><table>{}</table></div>").format(lines)


class OutputFolder:
    """A folder for pages, figures and numbers; returns the HTML that shows each of them."""

    def __init__(self, path: str) -> None:
        try:
            files.make_dirs(path)
        except OSError as error:
            raise UserError(f"--output_dir={path} is not a folder to write to.") from error
        self._path = path

    def figure(
        self,
        name: str,
        figure: Figure,
        description: str,
        note: str,
        width: str = "full",
        formats: Sequence[str] = ("png", "svg"),
    ) -> Markup:
        """Writes and closes a figure, `full` or `half` as wide as the page, with a note below."""
        # A description is for those who do not see it, and no two of a page are the same.
        save_figure(figure, self._path, name, formats)
        svg = inline_svg(figure, description)
        plt.close(figure)
        form = Markup("<figure class='{}'>{}<figcaption>{}</figcaption></figure>")
        return form.format(width, svg, note)

    def measures(
        self,
        name: str,
        measures: Mapping[str, Mapping[str, float]],
        metrics: Mapping[str, Description],
    ) -> Markup:
        """Writes metrics as CSV, a metric a row, a preset or run a column."""
        keys = {key: None for of_one in measures.values() for key in of_one}
        self.numbers(
            name,
            ("measure", *measures),
            ((key, *(of_one.get(key, "") for of_one in measures.values())) for key in keys),
        )
        rows = [
            [
                label,
                *(form.format(one[key]) if key in one else "" for one in measures.values()),
                explanation,
            ]
            for key, (label, form, explanation) in metrics.items()
            if key in keys
        ]
        header = ["measure", *measures, "what it means"]
        return table(header, rows, numeric=range(1, len(measures) + 1))

    def numbers(self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Writes a table as CSV."""
        file = io.StringIO(newline="")
        # Python 3.11 quotes a carriage return only where it is part of the end of a line.
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows(rows)
        self.text(name, file.getvalue())

    def json(self, name: str, value: object) -> None:
        """Writes a value as JSON."""
        self.text(name, json.dumps(value, indent=2))

    def text(self, name: str, text: str) -> str:
        """Writes a text, and returns the path of its file."""
        path = os.path.join(self._path, name)
        files.write_text(path, text)
        return path

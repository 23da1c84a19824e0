"""The folder that an analysis is written to: figures, tables and the page that shows them."""

import json
from collections.abc import Mapping, Sequence

import jinja2
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import cocolm_tf
from cocolm_tf import files
from cocolm_tf.analysis.figures import COLOR_NAMES, inline_svg, save_figure
from cocolm_tf.analysis.glossary import Description
from cocolm_tf.errors import UserError

PAGE_FILENAME = "index.html"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


class OutputFolder:
    """A folder for figures, tables and a page; `figures` has the former as SVG by name."""

    def __init__(self, path: str) -> None:
        try:
            files.make_dirs(path)
        except OSError as error:
            raise UserError(f"--output_dir={path} is not a folder to write to.") from error
        self._path = path
        self.figures: dict[str, str] = {}

    def add_figure(
        self, name: str, figure: Figure, formats: Sequence[str] = ("png", "svg")
    ) -> None:
        """Writes and closes a figure."""
        save_figure(figure, self._path, name, formats)
        self.figures[name] = inline_svg(figure, name)
        plt.close(figure)

    def add_table(self, name: str, frame: pd.DataFrame) -> None:
        """Writes a table as CSV."""
        # Python 3.11 quotes a carriage return only where it is part of the end of a line.
        self._write(name, frame.to_csv(index=False, lineterminator="\r\n"))

    def add_json(self, name: str, value: object) -> None:
        """Writes a value as JSON."""
        self._write(name, json.dumps(value, indent=2))

    def add_page(
        self,
        template: str,
        title: str,
        headline: Mapping[str, str],
        sections: Mapping[str, str],
        **values: object,
    ) -> str:
        """Writes a page, with headings by the sections' names; returns the path of its file."""
        text = _TEMPLATES.get_template(template).render(
            title=title,
            headline={**headline, "cocolm_tf": cocolm_tf.__version__},
            sections=sections,
            colors=COLOR_NAMES,
            figures=self.figures,
            **values,
        )
        return self._write(PAGE_FILENAME, text)

    def _write(self, name: str, text: str) -> str:
        path = files.join(self._path, name)
        files.write_text(path, text)
        return path


def metric_rows(frame: pd.DataFrame, metrics: Mapping[str, Description]) -> list[list[str]]:
    """Metrics by name, in columns of presets or runs, as rows of a page's table."""
    return [
        [
            label,
            *("" if pd.isna(value) else form.format(value) for value in frame.loc[name]),
            explanation,
        ]
        for name, (label, form, explanation) in metrics.items()
        if name in frame.index
    ]

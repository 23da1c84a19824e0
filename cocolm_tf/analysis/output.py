"""The folder that an analysis writes to: pages, figures and numbers, each file in one step."""

import csv
import html
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cocolm_tf import files
from cocolm_tf.analysis.figures import save_figure
from cocolm_tf.analysis.meanings import Meaning
from cocolm_tf.analysis.page import inline_svg, table
from cocolm_tf.errors import UserError


class OutputFolder:
    """Writes files, and gives what a page shows of them.

    Args:
        path: the folder; made if there is none.

    Raises:
        UserError: if it cannot be written to.

    Example:
    ```python
    OutputFolder("analysis").numbers("losses.csv", ("step", "loss"), [(100, 8.5)])
    ```
    """

    def __init__(self, path: str) -> None:
        try:
            files.make_dirs(path)
        except OSError as error:
            raise UserError(f"--output_dir={path} is not a folder to write to.") from error
        self._path = path

    def figure(
        self, name: str, figure: Figure, description: str, note: str, width: str = "full"
    ) -> str:
        """Writes a figure as PNG and SVG, and closes it.

        Args:
            name: of the files.
            figure: what to write.
            description: for those who do not see it; different for each figure of a page.
            note: what to look for, below it on the page.
            width: on the page, `full` or `half`.

        Returns:
            HTML.
        """
        save_figure(figure, self._path, name, ("png", "svg"))
        svg = inline_svg(figure, description)
        plt.close(figure)
        return f"<figure class='{width}'>{svg}<figcaption>{html.escape(note)}</figcaption></figure>"

    def measures(
        self,
        name: str,
        measures: Mapping[str, Mapping[str, float]],
        meanings: Mapping[str, Meaning],
    ) -> str:
        """Writes measures as CSV: a measure a row, a preset or run a column.

        Args:
            name: of the file.
            measures: by the names of the columns.
            meanings: of the measures that the page shows, in its order.

        Returns:
            HTML.
        """
        keys = {key: None for of_one in measures.values() for key in of_one}
        self.numbers(
            name,
            ("measure", *measures),
            ((key, *(of_one.get(key, "") for of_one in measures.values())) for key in keys),
        )
        rows = []
        for key, (label, form, meaning) in meanings.items():
            if key in keys:
                cells = (form.format(one[key]) if key in one else "" for one in measures.values())
                rows.append([html.escape(label), *cells, html.escape(meaning)])
        header = ["measure", *map(html.escape, measures), "what it means"]
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
        """Writes a text.

        Returns:
            The path of the file.
        """
        path = os.path.join(self._path, name)
        files.write_text(path, text)
        return path

"""The curves of a suite's pretrainings on common axes, group by group."""

import os
import re
from collections.abc import Iterator

from cocolm_tf.analysis.comparison import Findings, write_comparison
from cocolm_tf.analysis.figures import PALETTE
from cocolm_tf.analysis.runs import read_run
from cocolm_tf.suite.definition import Row
from cocolm_tf.suite.plan import Plan, run_folder

CURVES_DIRECTORY = "curves"


def write_curves(plan: Plan, output_dir: str) -> list[str]:
    """Draws what the rows logged while they were pretrained, over the tokens that they read.

    Args:
        plan: The suite, all of whose pretrainings are done.
        output_dir: OUT of `run_suite`.

    Returns:
        The paths of the pages: one for each group, with the first row of the suite beside it.

    Example:
    ```python
    write_curves(plan, "runs/table3")
    ```
    """
    pages = []
    for name, rows in _groups(plan):
        runs = [read_run(row.title, run_folder(output_dir, row.name)) for row in rows]
        folder = os.path.join(output_dir, CURVES_DIRECTORY, name)
        pages.append(write_comparison(folder, Findings(runs=runs), "tokens"))
    return pages


def _groups(plan: Plan) -> Iterator[tuple[str, list[Row]]]:
    """The rows that are drawn together, as many as there are colors, and their folder's name."""
    first, *others = (row for row in plan.suite.rows if row.name in plan.configs)
    groups: dict[str, list[Row]] = {}
    for row in others:
        groups.setdefault(row.group, []).append(row)
    for group, rows in (groups or {first.group: []}).items():
        for start in range(0, max(1, len(rows)), len(PALETTE) - 1):
            part = [first, *rows[start : start + len(PALETTE) - 1]]
            number = f"_{1 + start // (len(PALETTE) - 1)}" if len(rows) >= len(PALETTE) else ""
            yield re.sub(r"\W+", "_", group.lower() or "all") + number, part

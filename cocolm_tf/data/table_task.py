"""A task of the user's own, from tables with named columns."""

import collections
import os
from collections.abc import Sequence

import numpy as np

from cocolm_tf.data.examples import Examples, TaskData, stratified
from cocolm_tf.data.labeled_tables import label_parser, labeled_examples, number_parser
from cocolm_tf.data.tables import Table, read_table
from cocolm_tf.errors import UserError

# The dev set that is split off is the same whatever a run's seed is.
_SPLIT_SEED = 0


def read_table_task(
    train_file: str,
    text_column: str,
    label_column: str,
    second_text_column: str = "",
    dev_file: str = "",
    dev_fraction: float = 0.1,
    test_file: str = "",
    regression: bool = False,
    max_bad_share: float = 0.0,
    name: str = "",
) -> TaskData:
    """Reads a task from TSV, CSV or JSON lines.

    Args:
        train_file: The table to learn from. The classes are the labels that occur in it.
        text_column: The column with the texts.
        label_column: The column with the labels.
        second_text_column: The column with the second texts, for pairs.
        dev_file: The table to choose the best epoch by; none splits some of the training rows off.
        dev_fraction: float. The share to split off, of every label the same.
        test_file: A table to predict; it needs no labels.
        regression: Whether the labels are numbers to be predicted as such.
        max_bad_share: float. The share of a file's rows that may be left out, as their columns,
            labels or texts are missing or wrong.
        name: Of the task, for people; none for that of the file.

    Returns:
        The examples.

    Raises:
        UserError: If a file or a column is missing, or a row is wrong.

    Example:
    ```python
    read_table_task("reviews.csv", text_column="review", label_column="stars")
    ```
    """
    texts = [text_column, *filter(None, [second_text_column])]
    table = read_table(train_file, [*texts, label_column])
    label_names = None if regression else _classes(table, label_column)
    parse = number_parser() if regression else label_parser(label_names)
    train = labeled_examples(table, len(texts), parse, max_bad_share)
    if dev_file:
        dev = labeled_examples(
            read_table(dev_file, [*texts, label_column]), len(texts), parse, max_bad_share
        )
    else:
        train, dev = _split(train, dev_fraction)
    test = {}
    if test_file:
        test["test"] = labeled_examples(
            read_table(test_file, texts), len(texts), None, allow_empty=True
        )
    title = name or os.path.basename(train_file).split(".")[0]
    return TaskData(title, label_names, train, {"dev": dev}, test)


def _classes(table: Table, label_column: str) -> Sequence[str]:
    counts = collections.Counter(row[-1].strip() for row in table.rows)
    counts.pop("", None)
    if len(counts) < 2:
        raise UserError(
            f"{table.path}: column {label_column!r} has the label {next(iter(counts), '')!r} only: "
            "classes are at least two."
        )
    if len(counts) > max(100, len(table.rows) // 2):
        raise UserError(
            f"{table.path}: column {label_column!r} has {len(counts)} different labels in "
            f"{len(table.rows)} rows: name another column, or say --regression if it has numbers."
        )
    try:
        return sorted(counts, key=float)
    except ValueError:
        return sorted(counts)


def _split(examples: Examples, dev_fraction: float) -> tuple[Examples, Examples]:
    if not 0 < dev_fraction < 1:
        raise UserError(f"--dev_fraction={dev_fraction} must be in (0, 1).")
    chosen = stratified(examples.labels, dev_fraction, _SPLIT_SEED)
    rest = np.setdiff1d(np.arange(len(examples)), chosen)
    if not len(rest):
        raise UserError(
            f"{examples.source} has {len(examples)} rows, too few to split a dev set off: give a "
            "--dev_file."
        )
    return examples.select(rest), examples.select(chosen)

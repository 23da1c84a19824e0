"""A task of the user's own, from tables with named columns."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from cocolm_tf.data.examples import SPLIT_SEED, Examples, TaskData, check_dev_fraction, stratified
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.data.tables import (
    Table,
    class_of,
    label_parser,
    labeled_examples,
    number_parser,
    read_table,
    split_labels,
)
from cocolm_tf.errors import UserError


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
    encoding: str = "",
    delimiter: str = "",
    name: str = "",
    label_separator: str = "",
) -> TaskData:
    """Reads a task of the user's own from TSV, CSV or JSON lines."""
    # The classes are the labels that occur in `train_file`. Without a `dev_file`, `dev_fraction` of
    # the training rows of every label is split off. A test file needs no labels.
    # `second_text_column` is for pairs; with `regression`, labels are numbers; with a
    # `label_separator`, a row may have any number of labels. `max_bad_share` of a file's rows may
    # be left out, as their columns, labels or texts are missing or wrong.
    texts = [text_column, *filter(None, [second_text_column])]

    def read(path: str, columns: Sequence[str]) -> Table:
        return read_table(path, columns, encoding=encoding, delimiter=delimiter)

    table = read(train_file, [*texts, label_column])
    if regression and label_separator:
        raise UserError("--regression and --multi_label: numbers are one to a text.")
    if regression:
        label_names, parse = None, number_parser()
    else:
        label_names = _label_names(table, label_column, label_separator)
        parse = label_parser(label_names, label_separator)
    train = labeled_examples(table, len(texts), parse, max_bad_share)
    if dev_file:
        dev_table = read(dev_file, [*texts, label_column])
        dev = labeled_examples(dev_table, len(texts), parse, max_bad_share)
    else:
        train, dev = _split(train, dev_fraction, label_names)
    test = {}
    if test_file:
        # Every row of a test file needs a prediction.
        test["test"] = labeled_examples(read(test_file, texts), len(texts), None, allow_empty=True)
    return TaskData(
        name or table_name(train_file),
        label_names,
        train,
        {"dev": dev},
        test,
        label_separator=label_separator,
    )


def table_name(path: str) -> str:
    """The name of a table in results, and of its folder: never that of a built-in task."""
    name = os.path.basename(path).split(".")[0]
    return f"{name}-table" if name.lower() in _TAKEN_NAMES or not name else name


# The names of tasks, of their folders, and of the folders beside these.
_TAKEN_NAMES = {
    f"{name.lower()}{suffix}"
    for name in ["squad", *GLUE_TASKS, *(task.title for task in GLUE_TASKS.values())]
    for suffix in ("", "-prompts", "-from_scratch")
} | {"submission"}


def _label_names(table: Table, column: str, separator: str) -> Sequence[str]:
    """All labels of the rows that can be learned from, each as it is written first."""
    written: dict[str, str] = {}
    for line, (*texts, cell) in zip(table.lines, table.rows, strict=True):
        if not all(map(str.strip, texts)):
            continue
        for label in split_labels(cell, separator):
            if any(end in label for end in "\t\r\n"):
                raise UserError(
                    f"{table.path}:{line} has the label {label!r}: predictions have a line for "
                    "each row, so that a label is text without tabs and line ends."
                )
            written.setdefault(class_of(label), label)
    names = sorted(written.values())
    if separator:
        if not names:
            raise UserError(f"{table.path}: column {column!r} has no labels.")
        return names
    if len(names) < 2:
        raise UserError(
            f"{table.path}: column {column!r} has the label {''.join(names)!r} only: classes are "
            "at least two."
        )
    if len(names) > max(100, len(table.rows) // 2):
        raise UserError(
            f"{table.path}: column {column!r} has {len(names)} different labels in "
            f"{len(table.rows)} rows: name another column, or say --regression if it has numbers."
        )
    try:
        return sorted(names, key=lambda label: (float(label), label))
    except ValueError:
        return names


def _split(
    examples: Examples, dev_fraction: float, label_names: Sequence[str] | None
) -> tuple[Examples, Examples]:
    check_dev_fraction(dev_fraction)
    chosen = stratified(examples.labels, dev_fraction, SPLIT_SEED, leave=1)
    rest = np.setdiff1d(np.arange(len(examples)), chosen)
    if not len(chosen):
        raise UserError(
            f"{examples.source} has {len(examples)} rows, too few to split a dev set off: give a "
            "--dev_file."
        )
    train, dev = examples.select(rest), examples.select(chosen)
    if label_names is None:
        return train, dev
    seen = np.flatnonzero(dev.labels.any(axis=0)) if dev.labels.ndim == 2 else dev.labels
    unseen = sorted(set(range(len(label_names))) - set(seen.tolist()))
    missing = [
        f"any row of {label_names[number]!r}, as its only one is learned from" for number in unseen
    ]
    return train, dataclasses.replace(dev, left_out=[*dev.left_out, *missing])

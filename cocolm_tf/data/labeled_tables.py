"""Rows of a table to labeled examples, and what becomes of rows that are no examples."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from cocolm_tf.data.examples import Examples
from cocolm_tf.data.tables import Table
from cocolm_tf.errors import UserError

# How many of the rows that are left out are told one by one.
_TOLD = 5
# How many classes a message lists.
_SHOWN = 20


def labeled_examples(
    table: Table,
    num_texts: int,
    parse_label: Callable[[str], int | float | np.ndarray] | None,
    max_bad_share: float = 0.0,
    allow_empty: bool = False,
) -> Examples:
    """Makes examples of the rows of a table.

    Args:
        table: Its columns are one or two texts, then the label where there is one.
        num_texts: int. 1, or 2 for pairs.
        parse_label: Gives a class its number, an int, a number its value, a float, or several
            labels their row of 0 and 1; it raises `ValueError` with what is wrong. None where there
            are no labels: then a blank line is a row, too, that lacks its text.
        max_bad_share: float. The share of all rows that may be left out, because they have the
            wrong columns, a label that is none, or no text.
        allow_empty: bool. Whether a text may be empty.

    Returns:
        The examples; `left_out` tells which rows are not among them.

    Raises:
        UserError: If more rows are bad, naming the first.

    Example:
    ```python
    table = read_table("reviews.tsv", ["text", "label"])
    labeled_examples(table, 1, label_parser(["bad", "good"]))
    ```
    """
    texts, labels, rows, left_out = checked_rows(
        table, num_texts, parse_label, max_bad_share, allow_empty
    )
    first, *second = map(list, zip(*texts, strict=True))
    is_regression = bool(labels) and isinstance(labels[0], float)
    return Examples(
        first,
        second[0] if second else None,
        np.array(labels, np.float32 if is_regression else np.int32) if labels else None,
        table.path,
        left_out,
        rows,
    )


def checked_rows(
    table: Table,
    num_texts: int,
    parse_label: Callable[[str], int | float | np.ndarray] | None,
    max_bad_share: float = 0.0,
    allow_empty: bool = False,
) -> tuple[list[tuple[str, ...]], list[int | float | np.ndarray], np.ndarray, list[str]]:
    """Texts, labels, lines and what is left out, see `labeled_examples`; any number of texts."""
    bad_rows = list(table.bad_rows)
    if parse_label is None:
        bad_rows += [(line, "is blank, and not a row to predict") for line in table.blank_lines]
    texts, labels, rows = [], [], []
    for line, row in zip(table.lines, table.rows, strict=True):
        empty = [text for text in row[:num_texts] if not text.strip()]
        if empty and not allow_empty:
            bad_rows.append((line, "has an empty text"))
            continue
        if parse_label is not None:
            try:
                labels.append(parse_label(row[num_texts].strip()))
            except ValueError as error:
                bad_rows.append((line, str(error)))
                continue
        texts.append(row[:num_texts])
        rows.append(line)
    bad_rows.sort()
    total = len(texts) + len(bad_rows)
    if len(bad_rows) > max_bad_share * total or not texts:
        line, reason = bad_rows[0]
        more = f"; {len(bad_rows)} of {total} rows are bad" if len(bad_rows) > 1 else ""
        raise UserError(f"{table.path}:{line} {reason}{more}.")
    return texts, labels, np.array(rows), told_rows(bad_rows)


def label_parser(values: Sequence[str]) -> Callable[[str], int]:
    """Reads classes.

    Args:
        values: How each class is written, in the order of their numbers. 1 and 1.0 are the same.

    Returns:
        What gives a class its number.

    Example:
    ```python
    label_parser(["bad", "good"])("good")  # 1
    ```
    """
    numbers = {class_of(value): number for number, value in enumerate(values)}
    shown = ", ".join(values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")

    def parse(value: str) -> int:
        number = numbers.get(class_of(value))
        if number is None:
            raise ValueError(f"has the label {value!r}, none of {shown}")
        return number

    return parse


def labels_parser(values: Sequence[str], separator: str) -> Callable[[str], np.ndarray]:
    """Reads any number of labels, none included: [K] int32, 0 or 1 for each of the values."""
    parse_one = label_parser(values)

    def parse(value: str) -> np.ndarray:
        row = np.zeros(len(values), np.int32)
        for label in split_labels(value, separator):
            row[parse_one(label)] = 1
        return row

    return parse


def split_labels(value: str, separator: str) -> list[str]:
    """The labels of a cell."""
    labels = (label.strip() for label in value.split(separator))
    return [label for label in labels if class_of(label)]


def class_of(label: str) -> str:
    """What all ways to write a class have in common: 1.0 is 1, and a missing value is no class."""
    label = label.strip()
    if label.lower() == "nan":  # How pandas writes what is missing.
        return ""
    whole = re.fullmatch(r"([+-]?\d+)\.0+", label)
    return whole[1] if whole else label


def number_parser(bounds: tuple[float, float] | None = None) -> Callable[[str], float]:
    """Reads numbers.

    Args:
        bounds: The lowest and the highest; None for any.

    Returns:
        What turns a text into a finite number.

    Example:
    ```python
    number_parser((0, 5))("3.8")  # 3.8
    ```
    """

    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"has the label {value!r}, which is no number") from None
        low, high = bounds or (-np.inf, np.inf)
        if not np.isfinite(number) or not low <= number <= high:
            wanted = f"a number from {low:g} to {high:g}" if bounds else "a finite number"
            raise ValueError(f"has the label {value!r}, not {wanted}")
        return number

    return parse


def told_rows(bad_rows: Sequence[tuple[int, str]]) -> list[str]:
    """The first of the rows that are left out, a line for people each, and how many more."""
    told = [f"line {line} {reason}" for line, reason in bad_rows[:_TOLD]]
    if len(bad_rows) > _TOLD:
        told.append(f"{len(bad_rows) - _TOLD} more")
    return told

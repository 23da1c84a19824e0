"""Labeled examples of a table's rows; too many bad rows are an error, others are left out."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from cocolm_tf.data.examples import Examples
from cocolm_tf.data.tables import Table
from cocolm_tf.errors import UserError

# How many of the rows that are left out are listed one by one.
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
    """Makes examples of a table's rows: one or two texts, then the label if there is one."""
    # `parse_label` gives a class its number, an int, a number its value, a float, or several labels
    # their row of 0 and 1; it raises `ValueError` with the reason against a label. It is None where
    # there are no labels: then a blank line is a row, too, that lacks its text. `max_bad_share` of
    # all rows may be left out, because of wrong columns, a wrong label or no text; if more are bad,
    # a `UserError` names the first.
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
    """Texts, labels, lines and left-out rows, as of `labeled_examples`; any number of texts."""
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
    """A function from a class, as it is written, to its number; 1 and 1.0 are the same class."""
    numbers = {class_of(value): number for number, value in enumerate(values)}
    shown = ", ".join(values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")

    def parse(value: str) -> int:
        number = numbers.get(class_of(value))
        if number is None:
            raise ValueError(f"has the label {value!r}, none of {shown}")
        return number

    return parse


def labels_parser(values: Sequence[str], separator: str) -> Callable[[str], np.ndarray]:
    """A function from any number of labels, also none, to [K] int32: 0 or 1 for each value."""
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
    """A class in its only spelling: 1.0 is 1, and a missing value is no class, ""."""
    label = label.strip()
    if label.lower() == "nan":  # How pandas writes a missing value.
        return ""
    whole = re.fullmatch(r"([+-]?\d+)\.0+", label)
    return whole[1] if whole else label


def number_parser(bounds: tuple[float, float] | None = None) -> Callable[[str], float]:
    """A function from a text to a finite number within the bounds, lowest and highest."""

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

"""Rows of named columns from TSV, CSV or JSON lines, and labeled examples made of them.

Too many bad rows are an error, others are left out and reported.
"""

import collections
import csv
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cocolm_tf.data.examples import Examples
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import COMPRESSED_SUFFIXES, text_lines, without_surrogates

FORMATS = (".tsv", ".csv", ".jsonl")
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_OTHER_DELIMITERS = (",", ";", "\t", "|")
# How many of the rows that are left out are listed one by one, and how many classes.
_LISTED_ROWS = 5
_LISTED_CLASSES = 20

# A field may be a whole document; the default is 131,072 characters.
csv.field_size_limit(2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Table:
    """Some columns of a file."""

    path: str  # The file
    rows: Sequence[tuple[str, ...]]  # The values of each row, in the order of the wanted columns
    lines: Sequence[int]  # The line of the file at which each row is
    bad_rows: Sequence[tuple[int, str]]  # The lines of rows that cannot be read, and why
    # Lines before the last row that hold nothing, not even an empty text.
    blank_lines: Sequence[int] = ()


def read_table(
    path: str,
    columns: Sequence[str],
    header: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    encoding: str | None = None,
    delimiter: str | None = None,
    default_format: str = "",
) -> Table:
    """Reads some columns of a TSV, CSV or JSON lines file."""
    # The name, without the `.gz` or the like of a compressed file, decides the format, or else
    # `default_format`: `.tsv`, one row a line, in which a quote is a character like any other;
    # `.csv`, quoted as RFC 4180 says; `.jsonl`, one object a line, whose values are strings, finite
    # numbers or truth values.
    #
    # `header` names all columns of a TSV file that has no header. Columns that are `optional` have
    # the value `""` where there are none. `delimiter` separates columns of `.tsv` and `.csv`, `""`
    # being a tab and a comma; it is None, for the same, where there is no flag `--delimiter` to
    # advise. A row of too few or too many columns is a bad one. In a file of one column a blank
    # line is a row; elsewhere it is none.
    kind = _format(path, default_format)
    if delimiter and kind == ".jsonl":
        raise UserError(f"{path}: --delimiter goes with .csv and .tsv, not with .jsonl.")
    separator = _separator(delimiter) or _DELIMITERS.get(kind, "")
    lines = text_lines(path, encoding)
    if kind == ".jsonl":
        parsed = _json_rows(lines, columns, optional)
    else:
        cells = _tsv_cells(lines, separator) if kind == ".tsv" else _csv_cells(lines, separator)
        parsed = _named_rows(cells, path, columns, header, optional, delimiter is not None)
    values, numbers, bad_rows, blank_lines, last = [], [], [], [], 0
    for number, row in parsed:
        if row is None:
            blank_lines.append(number)
            continue
        last = number
        if isinstance(row, str):
            bad_rows.append((number, row))
        else:
            values.append(row)
            numbers.append(number)
    if not values and bad_rows:
        number, reason = bad_rows[0]
        raise UserError(f"{path}:{number} {reason}; there is no good row.")
    if not values:
        raise UserError(f"{path} has no rows.")
    blank_lines = [number for number in blank_lines if number < last]
    return Table(path, values, numbers, bad_rows, blank_lines)


# A row's line and its cells, or what is wrong with it.
_Cells = Iterator[tuple[int, list[str] | str]]
# A row's line and its values, or what is wrong with it; None where it is blank.
_Rows = Iterator[tuple[int, tuple[str, ...] | str | None]]


def _format(path: str, default: str) -> str:
    kind = file_type(path)
    if kind in FORMATS:
        return kind
    if not default:
        raise UserError(
            f"{path}: the name of a table ends in {', '.join(FORMATS)}, or with .gz or the like."
        )
    return default


def file_type(path: str) -> str:
    """The end of a file's name, as `.tsv`, without the `.gz` or the like of a compressed file."""
    name = os.path.basename(path).lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def _separator(delimiter: str | None) -> str:
    separator = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter or "")
    if len(separator) > 1 or separator in ('"', "\r", "\n"):
        raise UserError(
            f"--delimiter={delimiter!r} must be one character, as ; or \\t, and no quote."
        )
    return separator


def _tsv_cells(lines: Iterable[str], separator: str) -> _Cells:
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\n").removesuffix("\r").split(separator)


def _csv_cells(lines: Iterator[str], separator: str) -> _Cells:
    """The rows; after a wrong one, the next begins at the next line, quoted or not."""
    again: collections.deque[str] = collections.deque()
    row: list[str] = []  # The lines of the row that is being read.

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            row.append(line)
            yield line

    number = 1
    reader = csv.reader(feed(), delimiter=separator, strict=True)
    while True:
        row.clear()
        try:
            cells: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = _csv_reason(str(error), separator)
            again.extendleft(reversed(row[1:]))
            del row[1:]
            reader = csv.reader(feed(), delimiter=separator, strict=True)
        yield number, cells
        number += len(row)


def _csv_reason(error: str, separator: str) -> str:
    if "expected after" in error:
        return (
            f"has text between a closing quote and the next {separator!r}: write a quote inside "
            'quotes as ""'
        )
    if "unexpected end" in error:
        return "begins with a quote a field that does not end"
    if "new-line" in error:
        return "has a carriage return outside quotes"
    return f"is not CSV: {error}"


def _named_rows(
    cells: _Cells,
    path: str,
    columns: Sequence[str],
    header: Sequence[str] | None,
    optional: Sequence[str],
    has_flag: bool,
) -> _Rows:
    names = list(header) if header else _header(cells, path)
    for column in [*columns, *optional]:
        if names.count(column) > 1:
            raise UserError(f"{path} has {names.count(column)} columns {column!r}: rename one.")
    for column in columns:
        if column not in names:
            raise UserError(
                f"{path} has no column {column!r}: it has {', '.join(names) or 'none'}"
                + (_delimiter_advice(names, column) if has_flag else "")
                + "."
            )
    wanted = [names.index(column) for column in columns]
    wanted += [names.index(column) if column in names else -1 for column in optional]
    for line, row in cells:
        if isinstance(row, str):
            yield line, row
        elif len(names) > 1 and _is_blank(row):
            yield line, None
        elif len(names) == 1 and not row:
            yield line, ("",) * len(wanted)  # How `csv` reads an empty line.
        elif len(row) != len(names):
            yield line, f"has {len(row)} columns, not {len(names)}"
        else:
            yield line, tuple(row[index] if index >= 0 else "" for index in wanted)


def _header(cells: _Cells, path: str) -> list[str]:
    for line, names in cells:
        if isinstance(names, str):
            raise UserError(f"{path}:{line} {names}.")
        if not _is_blank(names):
            return names
    return []


def _is_blank(row: Sequence[str]) -> bool:
    return len(row) < 2 and not "".join(row).strip()


def _delimiter_advice(names: Sequence[str], column: str) -> str:
    if len(names) != 1:
        return ""
    for separator in _OTHER_DELIMITERS:
        if column in (name.strip('"') for name in names[0].split(separator)):
            shown = "\\t" if separator == "\t" else separator
            return f"; if {shown!r} separates its columns, give --delimiter='{shown}'"
    return ""


def _json_rows(lines: Iterable[str], columns: Sequence[str], optional: Sequence[str]) -> _Rows:
    for number, row in json_objects(lines):
        if not isinstance(row, dict):
            yield number, row
            continue
        given = [column for column in optional if row.get(column) is not None]
        if missing := [column for column in columns if column not in row]:
            yield number, f"has no field {missing[0]!r}: it has {', '.join(row)}"
        elif odd := [c for c in [*columns, *given] if not _is_value(row[c])]:
            yield number, f"has in {odd[0]!r} neither a string nor a number: {row[odd[0]]!r}"
        else:
            values = [row[c] for c in columns]
            values += [row[c] if c in given else "" for c in optional]
            yield number, tuple(map(_as_text, values))


def json_objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str | None]]:
    """The number of each line, and its object, or what is wrong with it; None for a blank line."""
    for number, line in enumerate(lines, start=1):
        row = None
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = f"is not JSON: {error}"
            else:
                row = row if isinstance(row, dict) else "is not a JSON object"
        yield number, row


def _is_value(value: object) -> bool:
    # JSON as Python and pandas write it has NaN where a value is missing.
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _as_text(value: str | int | float | bool) -> str:
    return without_surrogates(value) if isinstance(value, str) else json.dumps(value)


# --- Labeled examples ---


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
        if not allow_empty and not all(text.strip() for text in row[:num_texts]):
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
    total = len(texts) + len(bad_rows)
    left_out = left_out_lines(table.path, sorted(bad_rows), total, max_bad_share, "rows")
    return texts, labels, np.array(rows), left_out


def left_out_lines(
    path: str, bad_rows: Sequence[tuple[int, str]], total: int, max_bad_share: float, unit: str
) -> list[str]:
    """What of a file is left out, a line for people each; UserError where that is too much."""
    if len(bad_rows) > max_bad_share * total or len(bad_rows) == total:
        line, reason = bad_rows[0]
        more = f"; {len(bad_rows)} of {total} {unit} are bad" if len(bad_rows) > 1 else ""
        raise UserError(f"{path}:{line} {reason}{more}.")
    lines = [f"line {line} {reason}" for line, reason in bad_rows[:_LISTED_ROWS]]
    if len(bad_rows) > _LISTED_ROWS:
        lines.append(f"{len(bad_rows) - _LISTED_ROWS} more")
    return lines


def label_parser(values: Sequence[str], separator: str = "") -> Callable[[str], int | np.ndarray]:
    """A function from a class, as it is written, to its number; 1 and 1.0 are the same class."""
    # With a separator, from any number of labels, also none, to [K] int32: 0 or 1 for each value.
    numbers = {class_of(value): number for number, value in enumerate(values)}
    shown = ", ".join(values[:_LISTED_CLASSES]) + (", ..." if len(values) > _LISTED_CLASSES else "")

    def parse(value: str) -> int:
        number = numbers.get(class_of(value))
        if number is None:
            raise ValueError(f"has the label {value!r}, none of {shown}")
        return number

    def parse_all(value: str) -> np.ndarray:
        row = np.zeros(len(values), np.int32)
        row[[parse(label) for label in split_labels(value, separator)]] = 1
        return row

    return parse_all if separator else parse


def split_labels(value: str, separator: str) -> list[str]:
    """The labels of a cell, as they are written: at most one where there is no separator."""
    if not separator:
        return [value.strip("\t\r\n")] if class_of(value) else []
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

"""Rows of named columns from TSV, CSV or JSON lines."""

import collections
import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence

from cocolm_tf.errors import UserError
from cocolm_tf.text_files import COMPRESSED_SUFFIXES, text_lines, without_surrogates

FORMATS = (".tsv", ".csv", ".jsonl")
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_OTHER_DELIMITERS = (",", ";", "\t", "|")

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
    rows, numbers, bad_rows, blank_lines, last = [], [], [], [], 0
    for number, row in parsed:
        if row is None:
            blank_lines.append(number)
            continue
        last = number
        if isinstance(row, str):
            bad_rows.append((number, row))
        else:
            rows.append(row)
            numbers.append(number)
    if not rows and bad_rows:
        number, reason = bad_rows[0]
        raise UserError(f"{path}:{number} {reason}; there is no good row.")
    if not rows:
        raise UserError(f"{path} has no rows.")
    blank_lines = [number for number in blank_lines if number < last]
    return Table(path, rows, numbers, bad_rows, blank_lines)


# A row's line and its cells, or what is wrong with it.
_Cells = Iterator[tuple[int, list[str] | str]]
# A row's line and its values, or what is wrong with it; None where it is blank.
_Rows = Iterator[tuple[int, tuple[str, ...] | str | None]]


def _format(path: str, default: str) -> str:
    name = os.path.basename(path).lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    kind = os.path.splitext(name)[1]
    if kind in FORMATS:
        return kind
    if not default:
        raise UserError(
            f"{path}: the name of a table ends in {', '.join(FORMATS)}, or with .gz or the like."
        )
    return default


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
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            yield number, None
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON: {error}"
            continue
        if not isinstance(row, dict):
            yield number, "is not a JSON object"
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


def _is_value(value: object) -> bool:
    # JSON as Python and pandas write it has NaN where a value is missing.
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _as_text(value: str | int | float | bool) -> str:
    return without_surrogates(value) if isinstance(value, str) else json.dumps(value)

"""Rows of named columns from TSV, CSV or JSON lines."""

import contextlib
import csv
import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from cocolm_tf.errors import UserError

FORMATS = (".tsv", ".csv", ".jsonl")


@dataclasses.dataclass(frozen=True)
class Table:
    """Some columns of a file.

    Args:
        path: The file.
        rows: The values of each row, in the order in which the columns were asked for.
        lines: The line of the file at which each row is.
        bad_rows: The lines of rows that cannot be read, each with what is wrong with it.

    Example:
    ```python
    table = read_table("reviews.tsv", ["text", "label"])
    ```
    """

    path: str
    rows: Sequence[tuple[str, ...]]
    lines: Sequence[int]
    bad_rows: Sequence[tuple[int, str]]


def read_table(path: str, columns: Sequence[str], header: Sequence[str] | None = None) -> Table:
    """Reads some columns of a file.

    The name decides the format, gzip-compressed where it ends in `.gz` as well: `.tsv`, one row a
    line, in which a quote is a character as any other; `.csv`, quoted as RFC 4180 says; `.jsonl`,
    one object a line, whose values are strings, numbers or truth values.

    Args:
        path: The file. UTF-8.
        columns: The names of the columns to read.
        header: The names of all columns of a TSV file that has no header; None where the first
            row is the header.

    Returns:
        The rows. One that has too few or too many columns is among the bad ones.

    Raises:
        UserError: If the file cannot be read, or lacks a column.

    Example:
    ```python
    with open("/tmp/reviews.tsv", "w") as file:
        file.write("text\\tlabel\\nIt is \\"great\\".\\tgood\\n")
    read_table("/tmp/reviews.tsv", ["label", "text"]).rows  # [('good', 'It is "great".')]
    ```
    """
    kind = os.path.splitext(path.removesuffix(".gz"))[1].lower()
    if kind not in FORMATS:
        raise UserError(f"{path}: the name of a table ends in {', '.join(FORMATS)}, or with .gz.")
    rows, lines, bad_rows = [], [], []
    try:
        with _open(path) as file:
            if kind == ".jsonl":
                parsed = _json_rows(file, columns)
            else:
                cells = _tsv_cells(file) if kind == ".tsv" else _csv_cells(file)
                parsed = _named_rows(cells, path, columns, header)
            for line, row in parsed:
                if isinstance(row, str):
                    bad_rows.append((line, row))
                else:
                    rows.append(row)
                    lines.append(line)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} is a broken gzip file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}.") from error
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file: {error}.") from error
    if not rows and bad_rows:
        line, reason = bad_rows[0]
        raise UserError(f"{path}:{line} {reason}; there is no good row.")
    if not rows:
        raise UserError(f"{path} has no rows.")
    return Table(path, rows, lines, bad_rows)


# A row's number and its values, or what is wrong with it.
_Rows = Iterator[tuple[int, tuple[str, ...] | str]]


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[str]]:
    opener = gzip.open if path.endswith(".gz") else open
    # A file may begin with a byte order mark. Only "\n" ends a line: texts have other separators.
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        yield file


def _tsv_cells(file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, start=1):
        if line := line.rstrip("\r\n"):
            yield number, line.split("\t")


def _csv_cells(file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, strict=True)
    before = 0
    for cells in reader:
        if cells:
            yield before + 1, cells
        before = reader.line_num


def _named_rows(
    cells: Iterator[tuple[int, list[str]]],
    path: str,
    columns: Sequence[str],
    header: Sequence[str] | None,
) -> _Rows:
    names = list(header) if header else next(cells, (0, []))[1]
    for column in columns:
        if column not in names:
            raise UserError(f"{path} has no column {column!r}: it has {', '.join(names)}.")
    wanted = [names.index(column) for column in columns]
    for line, row in cells:
        if len(row) != len(names):
            yield line, f"has {len(row)} columns, not {len(names)}"
        else:
            yield line, tuple(row[index] for index in wanted)


def _json_rows(file: Iterable[str], columns: Sequence[str]) -> _Rows:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, f"is not JSON: {error}"
            continue
        if not isinstance(row, dict):
            yield number, "is not a JSON object"
        elif missing := [column for column in columns if column not in row]:
            yield number, f"has no field {missing[0]!r}: it has {', '.join(row)}"
        elif odd := [c for c in columns if not isinstance(row[c], str | int | float)]:
            yield number, f"has in {odd[0]!r} neither a string nor a number: {row[odd[0]]!r}"
        else:
            yield number, tuple(_as_text(row[column]) for column in columns)


def _as_text(value: str | int | float | bool) -> str:
    return value if isinstance(value, str) else json.dumps(value)

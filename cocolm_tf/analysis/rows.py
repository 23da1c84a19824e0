"""A user's rows of texts: tab-separated tables with a header, or JSON lines."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cocolm_tf.errors import UserError


def read_rows(flag: str, path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads rows that have some columns as text, and may have others.

    Args:
        flag: that the path was given with.
        path: a `.jsonl` file of objects, or else a tab-separated file whose header names the
            columns. Quotation marks are text.
        columns: what every row must have.

    Yields:
        The place of each row, `path:line`, and the row.

    Raises:
        UserError: naming the file, or the row that has not what it must have; or if there are no
            rows.

    Example:
    ```python
    for place, row in read_rows("pairs", "STS-B/dev.tsv", ("sentence1", "sentence2")):
        print(row["sentence1"])
    ```
    """
    if not os.path.isfile(path):
        raise UserError(f"--{flag}={path} does not exist.")
    rows = _json_rows(path) if path.endswith(".jsonl") else _table_rows(path, columns)
    is_empty = True
    try:
        for place, row in rows:
            for name in columns:
                if not isinstance(row.get(name), str) or not row[name].strip():
                    needed = " and ".join(columns)
                    raise UserError(f"{place} has no {name}: it needs {needed}, as text.")
            is_empty = False
            yield place, row
    except UnicodeDecodeError as error:
        raise UserError(f"--{flag}={path} is not UTF-8 text.") from error
    if is_empty:
        raise UserError(f"--{flag}={path} has no rows.")


def _table_rows(path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    with open(path, encoding="utf-8", newline="") as file:
        lines = _numbered_lines(file)
        _, first = next(lines, (1, ""))
        header = first.split("\t")
        for name in columns:
            if name not in header:
                raise UserError(
                    f"{path}: its first line must name tab-separated columns, {name} among them."
                )
        for number, line in lines:
            row = line.split("\t")
            if len(row) != len(header):
                raise UserError(
                    f"{path}:{number} has {len(row)} columns, the header {len(header)}."
                )
            yield f"{path}:{number}", dict(zip(header, row, strict=True))


def _json_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in _numbered_lines(file):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not a JSON object.")
            yield f"{path}:{number}", row


def _numbered_lines(file: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their ends."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, line.rstrip("\r\n")

"""A user's rows of texts, of which all must be good."""

from collections.abc import Iterator, Sequence

from cocolm_tf.data.tables import read_table
from cocolm_tf.errors import UserError


def read_rows(
    path: str, columns: Sequence[str], optional: Sequence[str] = (), encoding: str | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads rows that have some columns as text, and may have others.

    Args:
        path: A table, see `read_table`; tab-separated where its name does not say otherwise.
        columns: What every row must have.
        optional: What rows may have; `""` where they have not.
        encoding: Of the file, see `text_lines`.

    Yields:
        The place of each row, `path:line`, and the row.

    Raises:
        UserError: Naming the file, or the row that has not what it must have; or if there are no
            rows.

    Example:
    ```python
    for place, row in read_rows("STS-B/dev.tsv", ("sentence1", "sentence2")):
        print(row["sentence1"])
    ```
    """
    table = read_table(path, columns, None, optional, encoding, default_format=".tsv")
    for line, reason in table.bad_rows:
        raise UserError(f"{path}:{line} {reason}.")
    for line, values in zip(table.lines, table.rows, strict=True):
        row = dict(zip([*columns, *optional], values, strict=True))
        for name in columns:
            if not row[name].strip():
                raise UserError(f"{path}:{line} has no {name}: it needs {' and '.join(columns)}.")
        yield f"{path}:{line}", row

"""The texts in one column of Parquet and Arrow files, and of Hugging Face's saved datasets."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import BadRecords, looks_like_text

PARQUET, ARROW_FILE, ARROW_STREAM = "Parquet", "Arrow", "Arrow stream"

_ROWS_AT_ONCE = 1024
# The folder of one split, and of several, as `save_to_disk` writes them.
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def columnar_format(head: bytes) -> str:
    """Detects the format by a file's first bytes; empty for none."""
    if looks_like_text(head):  # A text may begin with these letters, too.
        return ""
    if head.startswith(b"PAR1"):
        return PARQUET
    if head.startswith(b"ARROW1"):
        return ARROW_FILE
    # A message begins with these and its length, and the first one is the schema.
    is_stream = head.startswith(4 * b"\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 24
    return ARROW_STREAM if is_stream else ""


def saved_dataset_files(folder: str) -> list[str]:
    """The Arrow files of a folder of `datasets.Dataset.save_to_disk`; none of any other."""
    if files.exists(files.join(folder, _SPLITS)):
        splits = json.loads(files.read_text(files.join(folder, _SPLITS)))["splits"]
        raise UserError(
            f"{folder} has the splits {', '.join(splits)}: give one of them, as "
            f"{files.join(folder, splits[0])}."
        )
    state = files.join(folder, _STATE)
    if not files.exists(state):
        return []
    try:
        names = [entry["filename"] for entry in json.loads(files.read_text(state))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state} is damaged: it does not list the dataset's files.") from error
    return [files.join(folder, name) for name in names]


def check_column(path: str, kind: str, column: str, records: BadRecords) -> None:
    """Refuses a file without such a column of text."""
    with _opened(path, kind, column, records):
        pass


def column_texts(path: str, kind: str, column: str, records: BadRecords) -> Iterator[str]:
    """Yields the values of a column; rows that are damaged or no text are counted as bad."""
    import pyarrow

    with _opened(path, kind, column, records) as table:
        batches = () if table is None else _batches(path, kind, table, column, records)
        for batch in batches:
            for value in batch.cast(pyarrow.large_binary()).to_pylist():
                records.read += 1
                try:
                    text = (value or b"").decode()
                except UnicodeDecodeError:
                    text = value.decode("utf-8", "replace")
                    records.add(f"{path}: row {records.read} of {column!r} is not UTF-8")
                yield text
    records.finish()


@contextlib.contextmanager
def _opened(path: str, kind: str, column: str, records: BadRecords) -> Iterator[Any]:
    """The file as pyarrow opens it, if it has the column; None where it is damaged."""
    import pyarrow
    from pyarrow import ipc, parquet

    opening = {
        PARQUET: parquet.ParquetFile,
        ARROW_FILE: ipc.open_file,
        ARROW_STREAM: ipc.open_stream,
    }
    with files.open_read(path) as file:
        if columnar_format(file.peek(1 << 10)) != kind:
            raise UserError(f"{path} is a compressed {kind} file: decompress it.")
        records.file = file
        try:
            table = opening[kind](file)
        except (pyarrow.ArrowException, OSError) as error:
            records.lose(f"{path} is a damaged {kind} file: {_line(error)}", 1)
            table = None
        else:
            _check_column(path, table, column)
        yield table


def _check_column(path: str, table: Any, column: str) -> None:
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    schema = table.schema_arrow if hasattr(table, "schema_arrow") else table.schema
    texts = [field.name for field in schema if is_text(field.type)]
    if column not in texts:
        has = "it has" if column not in schema.names else f"that is of {schema.field(column).type}:"
        raise UserError(
            f"{path} has no column {column!r} of text; {has} {', '.join(texts) or 'none'}: "
            "name one with --text_column."
        )


def _batches(path: str, kind: str, table: Any, column: str, records: BadRecords) -> Iterator[Any]:
    """Yields the column in parts; damaged parts are counted with their rows and left out."""
    import pyarrow

    if kind == ARROW_STREAM:
        try:
            for batch in table:
                yield batch.column(column)
        except (pyarrow.ArrowException, OSError) as error:
            records.lose_rest(f"{path} is damaged: {_line(error)}")
        return
    count = table.num_row_groups if kind == PARQUET else table.num_record_batches
    unit = "row group" if kind == PARQUET else "record batch"
    for number in range(count):
        before = records.read
        try:
            if kind == PARQUET:
                rows = table.metadata.row_group(number).num_rows
                for batch in table.iter_batches(_ROWS_AT_ONCE, [number], [column]):
                    yield batch.column(column)
            else:
                rows = before // max(1, number)  # As many as the others have.
                yield table.get_batch(number).column(column)
        except (pyarrow.ArrowException, OSError) as error:
            lost = max(1, rows - (records.read - before))
            records.lose(f"{path}: {unit} {number} is damaged: {_line(error)}", lost)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")

"""Asks an export about all texts of a JSON lines file."""

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.serving.client import TEXT_INPUTS, Export

UNFINISHED = ".unfinished"


def answer_file(
    export: Export, signature: str, input_path: str, output_path: str, batch_size: int = 32
) -> int:
    """Answers a file of JSON lines, one line for each, in constant memory; returns their number."""
    # Input lines are JSON strings, or objects with the signature's inputs, whose other keys are
    # copied to the answer, such as an id. Output lines are objects of the signature's outputs,
    # without padding. The output has another name until the last answer is there; when interrupted,
    # the same call resumes after the last whole line. Groups of at most 64 lines are asked about
    # together.
    if not files.is_file(input_path):
        raise UserError(f"--input={input_path} is not a file.")
    if files.is_remote(output_path):
        raise UserError(f"--output={output_path} must be a local file: it grows line by line.")
    if files.exists(output_path):
        raise UserError(f"--output={output_path} is there already: give another name.")
    partial = output_path + UNFINISHED
    _check_identity(
        partial,
        {
            "export": files.absolute(export.path),
            "signature": signature,
            "input": files.absolute(input_path),
            "input_bytes": files.size(input_path),
        },
    )
    done = _whole_lines(partial) if files.exists(partial) else 0
    with (
        files.open_read(input_path) as lines,
        files.open_append(partial) as output,
        tqdm(total=files.size(input_path), unit="B", unit_scale=True, desc=signature) as progress,
    ):
        numbered = enumerate(lines, 1)
        for _, line in itertools.islice(numbered, done):
            progress.update(len(line))
        while batch := list(itertools.islice(numbered, batch_size)):
            asked = [_parsed(input_path, number, line, signature) for number, line in batch]
            inputs = {name: [row[name] for row in asked] for name in TEXT_INPUTS[signature]}
            answers = outputs_by_row(export(signature, **inputs))
            rest = ({k: v for k, v in row.items() if k not in inputs} for row in asked)
            written = [
                json.dumps(others | answer, ensure_ascii=False) + "\n"
                for others, answer in zip(rest, answers, strict=True)
            ]
            # A key that goes to the answer as it is may have half a pair, which is no UTF-8.
            output.write("".join(written).encode("utf-8", "replace").decode())
            output.flush()
            done += len(batch)
            progress.update(sum(len(line) for _, line in batch))
        os.fsync(output.fileno())
    files.rename(partial, output_path)
    files.remove(_identity_path(partial))
    return done


def outputs_by_row(outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The outputs of a signature text by text, as JSON, without padding."""
    outputs = dict(outputs)
    widths = outputs.pop("num_words", outputs.pop("num_spans", None))
    columns = {}
    for name, values in outputs.items():
        if values.dtype == object:
            values = np.vectorize(lambda x: x.decode("utf-8", "replace"), otypes=[object])(values)
        elif values.dtype.kind == "f":
            # The shortest decimals that are this float32.
            values = values.astype(str).astype(np.float64)
        columns[name] = values
    for row in range(len(outputs["truncated"])):
        width = None if widths is None else int(widths[row])
        yield {
            name: values[row, :width].tolist() if values.ndim > 1 else values[row : row + 1].item()
            for name, values in columns.items()
        }


def _parsed(path: str, number: int, line: bytes, signature: str) -> dict[str, Any]:
    names = TEXT_INPUTS[signature]
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
    if isinstance(row, str) and len(names) == 1:
        return {names[0]: row}
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        wanted = " and ".join(map(repr, names))
        alone = "a string, or " if len(names) == 1 else ""
        raise UserError(
            f"{path}, line {number}: {signature} takes {alone}an object with the text(s) {wanted}."
        )
    return row


def _identity_path(partial: str) -> str:
    return partial + ".json"


def _check_identity(partial: str, identity: dict[str, Any]) -> None:
    path = _identity_path(partial)
    if not files.exists(partial):
        files.write_text(path, json.dumps(identity))
        return
    begun = json.loads(files.read_text(path)) if files.exists(path) else {}
    for name, value in identity.items():
        if begun.get(name) != value:
            raise UserError(
                f"{partial} was begun with {name} {begun.get(name)}, and this is {value}: "
                "remove it to begin anew."
            )


def _whole_lines(path: str) -> int:
    """Counts the lines of a file, and cuts off what follows the last line feed."""
    count = end = 0
    with files.open_read(path) as file:
        for line in file:
            if line.endswith(b"\n"):
                count += 1
                end += len(line)
    os.truncate(path, end)
    return count

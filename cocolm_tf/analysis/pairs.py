"""Pairs of sentences and how similar people find them, from files such as STS-B's."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator

import numpy as np

from cocolm_tf.errors import UserError

_FIRST, _SECOND, _SCORE = "sentence1", "sentence2", "score"


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences.

    Args:
        first: the sentences that come first.
        second: their partners.
        scores: [N] float, how similar each pair is; None where the file does not say.

    Example:
    ```python
    SentencePairs(["A cat sat."], ["A cat was sitting."], np.array([4.6]))
    ```
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def most_similar(self) -> "SentencePairs":
        """Those of the highest score (paper, figure 1); all where there are no scores."""
        if self.scores is None:
            return self
        (chosen,) = np.nonzero(self.scores == self.scores.max())
        return SentencePairs(
            [self.first[i] for i in chosen], [self.second[i] for i in chosen], self.scores[chosen]
        )


def read_pairs(path: str) -> SentencePairs:
    """Reads pairs from a table or from JSON lines.

    Args:
        path: a tab-separated file whose header names the columns, as GLUE's `STS-B/dev.tsv`, or
            a `.jsonl` file of objects. Both have `sentence1` and `sentence2`, and may have
            `score`; more does no harm.

    Returns:
        The pairs.

    Raises:
        UserError: naming the row that is not a pair.

    Example:
    ```python
    read_pairs("glue/STS-B/dev.tsv").most_similar()
    ```
    """
    if not os.path.isfile(path):
        raise UserError(f"--pairs={path} does not exist.")
    rows = _json_rows(path) if path.endswith(".jsonl") else _table_rows(path)
    first, second, scores = [], [], []
    try:
        for place, row in rows:
            texts = [row.get(name) for name in (_FIRST, _SECOND)]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UserError(f"{place} has no {_FIRST} or no {_SECOND}: it needs both, as text.")
            first.append(texts[0].strip())
            second.append(texts[1].strip())
            if _SCORE in row:
                scores.append(_number(row[_SCORE], place))
            if scores and len(scores) != len(first):
                raise UserError(f"{place}: either all pairs have a {_SCORE}, or none.")
    except UnicodeDecodeError as error:
        raise UserError(f"--pairs={path} is not UTF-8 text.") from error
    if not first:
        raise UserError(f"--pairs={path} has no pairs.")
    return SentencePairs(first, second, np.array(scores) if scores else None)


def _table_rows(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    with open(path, encoding="utf-8", newline="") as file:
        # GLUE's quotation marks are text.
        lines = csv.reader(_whole_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(lines, [])
        for name in (_FIRST, _SECOND):
            if name not in header:
                raise UserError(
                    f"{path}: its first line must name tab-separated columns, {name} among them."
                )
        for number, row in enumerate(lines, start=2):
            if len(row) != len(header):
                raise UserError(
                    f"{path}:{number} has {len(row)} columns, the header {len(header)}."
                )
            yield f"{path}:{number}", dict(zip(header, row, strict=True))


def _whole_lines(file: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in file if line.strip())


def _json_rows(path: str) -> Iterator[tuple[str, dict[str, object]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not a JSON object.")
            yield f"{path}:{number}", row


def _number(value: object, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise UserError(f"{place}: {_SCORE} must be a number, not {value!r}.")
    return number

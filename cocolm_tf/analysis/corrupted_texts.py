"""A user's texts with mistakes beside the same texts without, token by token."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from cocolm_tf.analysis.rows import read_rows

_ORIGINAL, _CORRUPTED = "original", "corrupted"

# Stands for the original of a token that has none of its own.
UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class CorruptedText:
    """A text with mistakes, and what it should be.

    Example:
    ```python
    CorruptedText(original="The cats sleep.", corrupted="The cats sleeps.")
    ```
    """

    original: str
    corrupted: str


def read_corrupted_texts(path: str, encoding: str | None = None) -> list[CorruptedText]:
    """Reads pairs of texts.

    Args:
        path: a tab-separated file, a `.csv` or JSON lines with `original` and `corrupted`.
        encoding: of the file, see `text_lines`.

    Returns:
        The pairs, in their order.

    Raises:
        UserError: naming the row that is no pair.

    Example:
    ```python
    read_corrupted_texts("mistakes.tsv")[0].corrupted
    ```
    """
    rows = read_rows(path, (_ORIGINAL, _CORRUPTED), encoding=encoding)
    return [CorruptedText(row[_ORIGINAL], row[_CORRUPTED]) for _, row in rows]


def align(original: Sequence[int], corrupted: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the tokens of a corrupted text that do not stand in the original one.

    By the longest common stretches (`difflib.SequenceMatcher`). Where as many tokens were put in
    as were taken out, each stands for its counterpart; where not, it is not known what each stands
    for. What was only left out leaves no token to find.

    Args:
        original: [S] token ids.
        corrupted: [T] token ids.

    Returns:
        [T] bool, whether each token was put in, and [T] int, what stood there, or `UNKNOWN`.

    Example:
    ```python
    align([5, 6, 7], [5, 9, 7])  # [False, True, False], [5, 6, 7]
    ```
    """
    is_replaced = np.ones(len(corrupted), bool)
    originals = np.full(len(corrupted), UNKNOWN)
    matcher = difflib.SequenceMatcher(a=original, b=corrupted, autojunk=False)
    for kind, start, end, begin, stop in matcher.get_opcodes():
        if kind == "equal":
            is_replaced[begin:stop] = False
        if end - start == stop - begin:
            originals[begin:stop] = original[start:end]
    return is_replaced, originals

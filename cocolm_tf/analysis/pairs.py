"""Pairs of sentences and how similar people find them, from files such as STS-B's."""

import dataclasses

import numpy as np

from cocolm_tf.analysis.rows import read_rows
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


def read_pairs(path: str, encoding: str | None = None) -> SentencePairs:
    """Reads pairs from a table or from JSON lines.

    Args:
        path: a tab-separated file whose header names the columns, as GLUE's `STS-B/dev.tsv`, a
            `.csv`, or a `.jsonl` file of objects. They have `sentence1` and `sentence2`, and may
            have `score`; more does no harm.
        encoding: of the file, see `text_lines`.

    Returns:
        The pairs.

    Raises:
        UserError: naming the row that is not a pair.

    Example:
    ```python
    read_pairs("glue/STS-B/dev.tsv").most_similar()
    ```
    """
    first, second, scores = [], [], []
    for place, row in read_rows(path, (_FIRST, _SECOND), (_SCORE,), encoding):
        first.append(row[_FIRST].strip())
        second.append(row[_SECOND].strip())
        if row[_SCORE]:
            scores.append(_number(row[_SCORE], place))
        if scores and len(scores) != len(first):
            raise UserError(f"{place}: either all pairs have a {_SCORE}, or none.")
    return SentencePairs(first, second, np.array(scores) if scores else None)


def _number(value: str, place: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise UserError(f"{place}: {_SCORE} must be a number, not {value!r}.")
    return number

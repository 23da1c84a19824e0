"""Labeled texts: what fine-tuning reads, whichever file it came from."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cocolm_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts or pairs of texts, with their labels where these are known.

    Args:
        first: The texts, or the first texts of pairs.
        second: The second texts of pairs; None for single texts.
        labels: [N] int32, the number of each one's class; [N] float32 for a regression; [N, K]
            int32, 0 or 1, where each may have several of K; None where they are not known.
        source: Where the examples come from, for people.
        rows: [N] int, where each stands in the source: the line of a file, the number of a
            dataset; None where that is not known.
        left_out: Which rows of the source are not among them and why, a line for people each.

    Example:
    ```python
    Examples(("Great!", "Bad."), None, np.int32([1, 0]))
    ```
    """

    first: Sequence[str]
    second: Sequence[str] | None = None
    labels: np.ndarray | None = None
    source: str = ""
    left_out: Sequence[str] = ()
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """Takes some of the examples.

        Args:
            indices: Which ones, in the order wanted.

        Returns:
            The examples; `left_out` is that of the source.
        """
        return dataclasses.replace(
            self,
            first=[self.first[index] for index in indices],
            second=None if self.second is None else [self.second[index] for index in indices],
            labels=None if self.labels is None else self.labels[np.asarray(indices, int)],
            rows=None if self.rows is None else self.rows[np.asarray(indices, int)],
        )


@dataclasses.dataclass(frozen=True)
class TaskData:
    """All examples of a task.

    Args:
        name: Of the task, for people.
        label_names: The classes in order; None for a regression.
        train: What to learn from.
        dev: What to choose by; a task may have several sets. The first decides.
        test: What to predict, by the name of its file of predictions.
        label_values: How files write the classes; None as `label_names`.
        bounds: The lowest and the highest number of a regression; None for any.
        metrics: What it is measured by, the first to choose by; empty for what suits its classes.
        label_separator: What is between the labels of a text, where it may have several; empty
            where it has one class.

    Example:
    ```python
    data = read_glue("rte", "glue_data")
    data.dev["dev"].labels
    ```
    """

    name: str
    label_names: Sequence[str] | None
    train: Examples
    dev: Mapping[str, Examples]
    test: Mapping[str, Examples]
    label_values: Sequence[str] | None = None
    bounds: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ()
    label_separator: str = ""

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return bool(self.label_separator)

    @property
    def num_classes(self) -> int:
        """How many outputs a model of this task has; 1 for a regression."""
        return 1 if self.label_names is None else len(self.label_names)


def stratified(
    labels: np.ndarray, fraction: float, seed: int, bins: int = 5, leave: int = 0
) -> np.ndarray:
    """Draws a share of some examples that has every label's share.

    Args:
        labels: [N], of the examples: classes, int, or numbers, float; or several, [N, K] int, of
            which an example's rarest counts.
        fraction: float. The share, in (0, 1]. Of every class at least one example is drawn.
        seed: int. Another seed draws others.
        bins: int. The numbers of a regression are put into so many equally full bins first.
        leave: int. So many of every class are not drawn, even if that is all of it.

    Returns:
        The indices of the drawn examples, in ascending order.

    Raises:
        UserError: If the fraction is none.

    Example:
    ```python
    few = train.select(stratified(train.labels, 0.1, seed=0))
    ```
    """
    if not 0 < fraction <= 1:
        raise UserError(f"a fraction is in (0, 1], not {fraction}.")
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        rarest = np.where(labels > 0, counts, len(labels) + 1).argmin(axis=1)
        labels = np.where(labels.any(axis=1), rarest, labels.shape[1])
    if labels.dtype.kind == "f":
        ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
        labels = ranks * bins // len(labels)
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), max(0, len(members) - leave))
        drawn.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(drawn))

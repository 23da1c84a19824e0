"""Labeled texts, whichever file they came from, and samples of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cocolm_tf.errors import UserError

# The dev set that is split off is the same for every seed of a run.
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts or pairs of texts, with their labels where these are known."""

    first: Sequence[str]
    second: Sequence[str] | None = None  # Of pairs; None for single texts
    # [N] int32, the classes' numbers; [N] float32 for a regression; [N, K] int32, 0 or 1, where
    # each may have several of K; None where they are not known.
    labels: np.ndarray | None = None
    source: str = ""  # Where they come from, for people
    # Rows of the source that are left out and why, a line for people each
    left_out: Sequence[str] = ()
    # [N] int, the place of each in the source: the line of a file, the number of a dataset; None
    # where that is not known.
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """Some of the examples, in the order of the indices; `left_out` stays the source's."""
        names = ("first", "second", "labels", "rows")
        chosen = {name: selected(getattr(self, name), indices) for name in names}
        return dataclasses.replace(self, **chosen)


def selected(values: Any, indices: Sequence[int] | np.ndarray) -> Any:
    """Some of the values of an array or a sequence, in the order of the indices; None of None."""
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[np.asarray(indices, int)]
    return [values[index] for index in indices]


@dataclasses.dataclass(frozen=True)
class TaskData:
    """All examples of a task."""

    name: str  # The task's, for people
    label_names: Sequence[str] | None  # The classes in order; None for a regression
    train: Examples
    dev: Mapping[str, Examples]  # The sets to choose by; the first decides
    test: Mapping[str, Examples]  # The sets to predict, by the names of their files of predictions
    label_values: Sequence[str] | None = None  # How files write the classes; None as `label_names`
    # The lowest and the highest number of a regression; None for any.
    bounds: tuple[float, float] | None = None
    # The first is the one to choose by; empty for those that suit the classes.
    metrics: tuple[str, ...] = ()
    label_separator: str = ""  # Between the labels of a text, where it may have several

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
    """Samples a fraction, in (0, 1], of every label's examples; the indices, ascending."""
    # `labels` [N] are classes, int; numbers, float, which are put into `bins` equally full bins
    # first; or several labels each, [N, K] int, of which an example's rarest counts. At least one
    # example of every class is drawn, but `leave` of every class are not, even if that is all of
    # it.
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


def check_dev_fraction(fraction: float) -> None:
    """Refuses a share to split a dev set off by that leaves nothing on one side."""
    if not 0 < fraction < 1:
        raise UserError(f"--dev_fraction={fraction} must be in (0, 1).")


def classes_of(examples: Examples, data: TaskData) -> np.ndarray:
    """The class of each example, [N]; of a regression 0 for the lower half, 1 for the upper."""
    # The halves of its bounds, or else of the range of its training labels.
    if data.label_names is not None:
        return examples.labels
    low, high = data.bounds or (data.train.labels.min(), data.train.labels.max())
    return (examples.labels >= (low + high) / 2).astype(np.int32)


def few_shot_split(data: TaskData, shots: int, seed: int) -> tuple[Examples, Examples]:
    """Draws a small training set and a dev set of the same size, class by class: LM-BFF's."""
    # `shots` examples of each class for each set, from the training examples. With LM-BFF's seeds,
    # 13, 21, 42, 87 and 100, and GLUE's own files they are the very examples that it draws.
    classes = classes_of(data.train, data)
    names = data.label_names or ("low", "high")
    order = np.random.RandomState(seed).permutation(len(classes))
    train, dev = [], []
    for number, name in enumerate(names):
        members = order[classes[order] == number]
        if len(members) < 2 * shots:
            raise UserError(
                f"{data.train.source} has {len(members)} examples of {name!r}, too few to draw "
                f"{shots} to learn from and {shots} to choose by: lower --shots."
            )
        train += members[:shots].tolist()
        dev += members[shots : 2 * shots].tolist()
    return data.train.select(train), data.train.select(dev)

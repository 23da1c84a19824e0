"""A few examples of each class, to learn from and to choose by."""

import numpy as np

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.errors import UserError


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

"""A few examples of each class, to learn from and to choose by."""

import numpy as np

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.errors import UserError


def classes_of(examples: Examples, data: TaskData) -> np.ndarray:
    """Says which class each example is of.

    Args:
        examples: With labels.
        data: Their task.

    Returns:
        [N]: the labels; of a regression 0 below the middle of its bounds, or of what its training
        examples have, and 1 above.

    Example:
    ```python
    classes_of(data.train, data)
    ```
    """
    if data.label_names is not None:
        return examples.labels
    low, high = data.bounds or (data.train.labels.min(), data.train.labels.max())
    return (examples.labels >= (low + high) / 2).astype(np.int32)


def few_shot_split(data: TaskData, shots: int, seed: int) -> tuple[Examples, Examples]:
    """Draws a small training set and a dev set of the same size: those that LM-BFF draws.

    With its seeds, 13, 21, 42, 87 and 100, and GLUE's own files they are its very examples.

    Args:
        data: The task; both are drawn from its training examples.
        shots: int. How many examples of each class each of the two has.
        seed: int. Another seed draws others.

    Returns:
        The training and the dev examples, class by class.

    Raises:
        UserError: If a class has too few examples.

    Example:
    ```python
    train, dev = few_shot_split(data, shots=16, seed=13)
    ```
    """
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

"""The heads of tasks that a converted preset carries: a classifier's and a question answerer's."""

import os

import keras
import numpy as np

from cocolm_tf.conversion.tensor_files import open_tensors

TASK_HEADS = ("classifier", "question_answerer")
TASK_HEADS_FILENAME = "task_heads.npz"


def write_task_heads(directory: str, heads: dict[str, dict[str, keras.Variable]]) -> None:
    """Writes the heads of tasks into a preset.

    Args:
        directory: The preset.
        heads: The variables of each head, by the names of `layout.HEADS`; none, no file.

    Example:
    ```python
    write_task_heads("converted", {"classifier": variables})
    ```
    """
    arrays = {
        f"{head}.{name}": np.asarray(variable)
        for head, variables in heads.items()
        for name, variable in variables.items()
    }
    if arrays:
        np.savez(os.path.join(directory, TASK_HEADS_FILENAME), **arrays)


def read_task_heads(directory: str) -> dict[str, np.ndarray]:
    """Reads the heads of tasks from a preset.

    Args:
        directory: The preset.

    Returns:
        Arrays by the head and the name of each variable, as `classifier.output.bias`.

    Example:
    ```python
    read_task_heads("converted")["classifier.output.bias"]
    ```
    """
    path = os.path.join(directory, TASK_HEADS_FILENAME)
    if not os.path.isfile(path):
        return {}
    file = open_tensors(path)
    return {name: file.read(name) for name in file.names}

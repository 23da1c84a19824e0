"""Predictions for rows without labels, in files as the GLUE leaderboard takes them."""

import itertools
import os

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.examples import TaskData
from cocolm_tf.finetuning.metrics import predicted


def write_predictions(
    path: str, outputs: np.ndarray, data: TaskData, assigned: np.ndarray | None = None
) -> None:
    """Writes a file of predictions: `index` and `prediction`, tab-separated.

    A quote and a backslash are characters as any other, as they are in the files that are read.

    Args:
        path: The file.
        outputs: [N, classes] of the model, row for row.
        data: The task, whose classes and bounds decide how a prediction is written.
        assigned: [N, K] bool, which labels each row has where it may have several.

    Example:
    ```python
    write_predictions("submission/RTE.tsv", outputs, data)
    ```
    """
    predictions = predicted(outputs)
    if data.bounds:
        predictions = np.clip(predictions, *data.bounds)
    names = data.label_values or data.label_names
    if assigned is not None:
        values = [
            data.label_separator.join(itertools.compress(names, row)) for row in assigned.tolist()
        ]
    elif names is None:
        values = [f"{number:.3f}" for number in predictions]
    else:
        values = [names[number] for number in predictions]
    files.make_dirs(os.path.dirname(path) or ".")
    rows = "".join(f"{index}\t{value}\n" for index, value in enumerate(values))
    files.write_text(path, "index\tprediction\n" + rows)

"""Predictions for rows without labels, in files as the GLUE leaderboard takes them."""

import csv
import os

import numpy as np

from cocolm_tf.data.examples import TaskData
from cocolm_tf.finetuning.metrics import predicted


def write_predictions(path: str, outputs: np.ndarray, data: TaskData) -> None:
    """Writes a file of predictions: `index` and `prediction`, tab-separated.

    Args:
        path: The file.
        outputs: [N, classes] of the model, row for row.
        data: The task, whose classes and bounds decide how a prediction is written.

    Example:
    ```python
    write_predictions("submission/RTE.tsv", outputs, data)
    ```
    """
    predictions = predicted(outputs, data.bounds)
    names = data.label_values or data.label_names
    values = [f"{number:.3f}" for number in predictions] if names is None else None
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".tmp", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\"
        )
        writer.writerow(["index", "prediction"])
        writer.writerows(enumerate(values or [names[number] for number in predictions]))
    os.replace(path + ".tmp", path)

"""What several runs say together."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.finetuning.jobs import RESULTS_FILENAME, write_json
from cocolm_tf.finetuning.results_page import results_page

TABLE_FILENAME = "results.md"

Scores = Mapping[str, Mapping[str, float]]
"""The metrics of each set that a model was measured on."""


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Sums numbers up.

    Args:
        values: At least one.

    Returns:
        `median`, `mean`, `std` (of the population), `min`, `max` and the `values`.

    Example:
    ```python
    summarize([0.61, 0.58, 0.6])["median"]  # 0.6
    ```
    """
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def summarize_runs(runs: Sequence[Scores]) -> dict[str, dict[str, dict[str, Any]]]:
    """Sums up the metrics of runs that differ in their seeds.

    Args:
        runs: The metrics of each run, for each set that they were measured on.

    Returns:
        For each set and each metric what `summarize` gives.

    Example:
    ```python
    summarize_runs([{"dev": {"accuracy": 0.61}}, {"dev": {"accuracy": 0.58}}])
    ```
    """
    return {
        part: {metric: summarize([run[part][metric] for run in runs]) for metric in metrics}
        for part, metrics in runs[0].items()
    }


def write_results(output_dir: str) -> str:
    """Gathers the results of all experiments in a folder into one JSON file and one table.

    Args:
        output_dir: The folder; each experiment has a folder in it with a `results.json`.

    Returns:
        The path of the table.

    Example:
    ```python
    write_results("runs/glue")
    ```
    """
    experiments = []
    for name in files.list_dir(output_dir):
        path = os.path.join(output_dir, name, RESULTS_FILENAME)
        if files.is_file(path):
            experiments.append(json.loads(files.read_text(path)))
    write_json({"experiments": experiments}, os.path.join(output_dir, RESULTS_FILENAME))
    path = os.path.join(output_dir, TABLE_FILENAME)
    files.write_text(path, results_page(experiments))
    return path

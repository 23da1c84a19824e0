"""What several runs say together: summaries, and tables to put beside the paper's."""

import glob
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.finetuning.jobs import write_json

RESULTS_FILENAME = "results.json"
TABLE_FILENAME = "results.md"

# The columns of the paper's Table 1.
_PAPER_COLUMNS = ("MNLI", "QQP", "QNLI", "SST-2", "CoLA", "RTE", "MRPC", "STS-B")
_GLUE_TITLES = {task.title for task in GLUE_TASKS.values()}
_MISSING = "—"


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


def summarize_runs(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Sums up the dev metrics of runs that differ in their seeds.

    Args:
        runs: The results of `run_classification`.

    Returns:
        For each dev set and each metric what `summarize` gives.

    Example:
    ```python
    summarize_runs(results)["dev"]["accuracy"]["median"]
    ```
    """
    return {
        part: {metric: summarize([run["dev"][part][metric] for run in runs]) for metric in metrics}
        for part, metrics in runs[0]["dev"].items()
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
    for path in sorted(glob.glob(os.path.join(glob.escape(output_dir), "*", RESULTS_FILENAME))):
        with open(path, encoding="utf-8") as file:
            experiments.append(json.load(file))
    write_json({"experiments": experiments}, os.path.join(output_dir, RESULTS_FILENAME))
    path = os.path.join(output_dir, TABLE_FILENAME)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(results_page(experiments))
    os.replace(path + ".tmp", path)
    return path


def results_page(experiments: Sequence[dict[str, Any]]) -> str:
    """Lays results out as Markdown.

    Args:
        experiments: What the `results.json` of experiments hold.

    Returns:
        For GLUE a table like the paper's Table 1, a row for each way of starting; for all tasks
        a table of what each was and how its runs spread.

    Example:
    ```python
    print(results_page([experiment]))
    ```
    """
    sections = []
    if any(experiment["task"] in _GLUE_TITLES for experiment in experiments):
        seeds = sorted({len(experiment["seeds"]) for experiment in experiments})
        sections.append(
            f"Dev sets; medians of {' or '.join(map(str, seeds))} runs that differ in their seeds. "
            "Spearman correlation for STS-B, Matthews correlation for CoLA, accuracy for the rest, "
            "all times 100, as in Table 1 of the COCO-LM paper. AVG is over the eight tasks, with "
            "the matched set for MNLI.\n\n" + _glue_table(experiments)
        )
    sections.append("Every task by itself:\n\n" + _details(experiments))
    return "\n\n".join(["# Fine-tuning results", *sections]) + "\n"


def _glue_table(experiments: Sequence[dict[str, Any]]) -> str:
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for experiment in experiments:
        if experiment["task"] in _GLUE_TITLES:
            rows.setdefault(_model_name(experiment), {})[experiment["task"]] = experiment
    others = sorted(
        {task for tasks in rows.values() for task in tasks if task not in _PAPER_COLUMNS}
    )
    titles = ["MNLI-(m/mm)" if task == "MNLI" else task for task in _PAPER_COLUMNS]
    lines = []
    for model, tasks in sorted(rows.items()):
        parameters = next(iter(tasks.values()))["parameters"]
        cells = [_cell(tasks.get(task)) for task in _PAPER_COLUMNS]
        average = _MISSING
        if all(task in tasks for task in _PAPER_COLUMNS):
            scores = [_medians(tasks[task])[0] for task in _PAPER_COLUMNS]
            average = f"{100 * statistics.fmean(scores):.1f}"
        extra = [_cell(tasks.get(task)) for task in others]
        lines.append([model, f"{parameters / 1e6:.3g}M", *cells, average, *extra])
    return markdown_table(["Model", "Params", *titles, "AVG", *others], lines)


def _details(experiments: Sequence[dict[str, Any]]) -> str:
    lines = []
    for experiment in sorted(experiments, key=lambda one: (one["task"], _model_name(one))):
        config = experiment["config"]
        settings = (
            f"{config['optimizer']['learning_rate']:g}, {config['trainer']['batch_size']}, "
            f"{config['trainer']['epochs']}"
        )
        for part, metrics in experiment["dev"].items():
            for metric, summary in metrics.items():
                name = experiment["task"] if part == "dev" else f"{experiment['task']} {part}"
                lines.append(
                    [
                        name,
                        _model_name(experiment),
                        metric,
                        *(f"{100 * summary[key]:.1f}" for key in ("median", "min", "max", "mean")),
                        f"{100 * summary['std']:.1f}",
                        str(len(summary["values"])),
                        f"{experiment['train_rows']:,}",
                        settings,
                        f"{experiment['examples_per_second']:.1f}",
                    ]
                )
    header = [
        "Task",
        "Model",
        "Metric",
        "Median",
        "Min",
        "Max",
        "Mean",
        "Std",
        "Runs",
        "Rows",
        "Learning rate, batch, epochs",
        "Examples/s",
    ]
    return markdown_table(header, lines)


def _model_name(experiment: dict[str, Any]) -> str:
    name = experiment["model"]
    if experiment["from_scratch"]:
        name += ", from random weights"
    if experiment["train_fraction"] < 1:
        name += f", {experiment['train_fraction']:.3g} of the training rows"
    return name


def _cell(experiment: dict[str, Any] | None) -> str:
    if experiment is None:
        return _MISSING
    return "/".join(f"{100 * median:.1f}" for median in _medians(experiment))


def _medians(experiment: dict[str, Any]) -> list[float]:
    metric = experiment["metric"]
    return [metrics[metric]["median"] for metrics in experiment["dev"].values()]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays out a table.

    Example:
    ```python
    markdown_table(["task", "score"], [["RTE", "61.2"]])
    ```
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

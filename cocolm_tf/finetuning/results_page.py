"""Results as Markdown: tables to put beside the paper's."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cocolm_tf.data.glue import GLUE_TASKS

# The columns of the paper's Table 1.
_PAPER_COLUMNS = ("MNLI", "QQP", "QNLI", "SST-2", "CoLA", "RTE", "MRPC", "STS-B")
_GLUE_TITLES = {task.title for task in GLUE_TASKS.values()}
_MISSING = "—"


def results_page(experiments: Sequence[dict[str, Any]]) -> str:
    """Lays results out as Markdown.

    Args:
        experiments: What the `results.json` of experiments hold.

    Returns:
        For GLUE a table like the paper's Table 1, a row for each way of starting; for all tasks
        a table of what each was and how its runs spread; for prompts one like the paper's Table 4.

    Example:
    ```python
    print(results_page([experiment]))
    ```
    """
    prompted = [experiment for experiment in experiments if "shots" in experiment]
    tuned = [experiment for experiment in experiments if "shots" not in experiment]
    sections = []
    if any(experiment["task"] in _GLUE_TITLES for experiment in tuned):
        seeds = sorted({len(experiment["seeds"]) for experiment in tuned})
        sections.append(
            f"Dev sets; medians of {' or '.join(map(str, seeds))} runs that differ in their seeds. "
            "Spearman correlation for STS-B, Matthews correlation for CoLA, accuracy for the rest, "
            "all times 100, as in Table 1 of the COCO-LM paper. AVG is over the eight tasks, with "
            "the matched set for MNLI.\n\n" + _glue_table(tuned)
        )
    if tuned:
        sections.append(
            "Every task by itself, all times 100. What guessing scores, beside it: always the "
            "commonest class of the training rows, their mean, or no answer.\n\n" + _details(tuned)
        )
    if prompted:
        sections.append(
            "By prompts: dev sets, none of whose examples was learned from or chosen by; all times "
            "100. A split has so many shots of each class to learn from and as many to choose the "
            "learning rate and the step by. Table 4 of the COCO-LM paper has the mean and the "
            "standard deviation over 5 splits of 16 shots, on MNLI.\n\n" + _prompts(prompted)
        )
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
            average = _percent(statistics.fmean(scores))
        extra = [_cell(tasks.get(task)) for task in others]
        lines.append([model, f"{parameters / 1e6:.3g}M", *cells, average, *extra])
    return markdown_table(["Model", "Params", *titles, "AVG", *others], lines)


def _details(experiments: Sequence[dict[str, Any]]) -> str:
    header = ["Task", "Model", "Metric", "Median", "Min", "Max", "Mean", "Std", "Guessing", "Runs"]
    header += ["Rows", "Learning rate, batch, epochs", "Examples/s"]
    lines = []
    for experiment in sorted(experiments, key=lambda one: (one["task"], _model_name(one))):
        config = experiment["config"]
        settings = (
            f"{config['optimizer']['learning_rate']:g}, {config['trainer']['batch_size']}, "
            f"{config['trainer']['epochs']}"
        )
        for name, metric, summary, guess in _scores(experiment, experiment["dev"]):
            lines.append(
                [
                    name,
                    _model_name(experiment),
                    metric,
                    *(_percent(summary[key]) for key in ("median", "min", "max", "mean", "std")),
                    guess,
                    str(len(summary["values"])),
                    f"{experiment['train_rows']:,}",
                    settings,
                    f"{experiment['examples_per_second']:.1f}",
                ]
            )
    return markdown_table(header, lines)


def _prompts(experiments: Sequence[dict[str, Any]]) -> str:
    header = ["Task", "Model", "Metric", "Mean (std)", "Min", "Max", "Guessing", "Splits", "Shots"]
    header += ["Template", "Label words"]
    lines = []
    for experiment in experiments:
        for name, metric, summary, guess in _scores(experiment, experiment["test"]):
            lines.append(
                [
                    name,
                    experiment["model"],
                    metric,
                    f"{_percent(summary['mean'])} ({_percent(summary['std'])})",
                    _percent(summary["min"]),
                    _percent(summary["max"]),
                    guess,
                    str(len(summary["values"])),
                    str(experiment["shots"]),
                    f"`{experiment['template']}`",
                    ", ".join(experiment["label_words"]),
                ]
            )
    return markdown_table(header, lines)


def _scores(
    experiment: dict[str, Any], parts: dict[str, dict[str, dict[str, Any]]]
) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """The name, the metric, its summary and what guessing scores, line for line."""
    for part, metrics in parts.items():
        name = experiment["task"] if part == "dev" else f"{experiment['task']} {part}"
        for metric, summary in metrics.items():
            yield name, metric, summary, _percent(experiment["baseline"][part][metric])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


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
    return "/".join(map(_percent, _medians(experiment)))


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
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

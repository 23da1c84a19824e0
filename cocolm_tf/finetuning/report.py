"""The results of several runs: one JSON file, and Markdown tables to compare with the paper's."""

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.jobs import RESULTS_FILENAME, write_json
from cocolm_tf.training.model_card import markdown_table

TABLE_FILENAME = "results.md"

# The columns of the paper's Table 1.
_PAPER_COLUMNS = ("MNLI", "QQP", "QNLI", "SST-2", "CoLA", "RTE", "MRPC", "STS-B")
_PAPER_METRICS = {"CoLA": "matthews", "STS-B": "spearman"}
_GLUE_TITLES = {task.title for task in GLUE_TASKS.values()}
_SPREAD = ("median", "min", "max", "mean", "std")
_MISSING = "—"
# A confusion matrix of more classes is in results.json alone.
_MOST_CLASSES = 12
# Metrics in units of the labels, which are not shown as percentages.
_NOT_SHARES = ("mae", "rmse")


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """The median, mean, population standard deviation and range of one or more numbers."""
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def summarize_runs(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Summarizes the metrics of each set over runs that differ in their seeds."""
    return {
        part: {metric: summarize([run[part][metric] for run in runs]) for metric in metrics}
        for part, metrics in runs[0].items()
    }


def write_results(output_dir: str) -> str:
    """Collects the results of all experiments in a folder; returns the path of the table."""
    experiments = []
    for name in files.list_dir(output_dir):
        path = os.path.join(output_dir, name, RESULTS_FILENAME)
        if files.is_file(path):
            experiments.append(json.loads(files.read_text(path)))
    write_json({"experiments": experiments}, os.path.join(output_dir, RESULTS_FILENAME))
    path = os.path.join(output_dir, TABLE_FILENAME)
    files.write_text(path, results_page(experiments))
    return path


def results_page(experiments: Sequence[dict[str, Any]]) -> str:
    """The Markdown page of experiments, given what their `results.json` hold."""
    # For GLUE it has a table like the paper's Table 1, a row for each way of starting; for all
    # tasks a table of what each was and how its runs spread; for prompts one like the paper's Table
    # 4.
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
            "Every task by itself, all times 100 but for errors of numbers. What guessing scores, "
            "beside it: always the commonest class of the training rows, their mean, or no answer; "
            "of vectors, what the encoder scores before it is fine-tuned."
            "\n\n" + _details(tuned)
        )
    if prompted:
        sections.append(
            "By prompts: dev sets, none of whose examples was learned from or chosen by; all times "
            "100. A split has so many shots of each class to learn from and as many to choose the "
            "learning rate and the step by. Table 4 of the COCO-LM paper has the mean and the "
            "standard deviation over 5 splits of 16 shots, on MNLI.\n\n" + _prompts(prompted)
        )
    for experiment in experiments:
        for part, assessment in experiment.get("assessment", {}).items():
            name = experiment["task"] if part == "dev" else f"{experiment['task']} {part}"
            title = f"## {name}, {_model_name(experiment)}: what the best run predicts"
            sections.append(f"{title}\n\n{_assessment(experiment['best_run'], assessment)}")
    return "\n\n".join(["# Fine-tuning results", *sections]) + "\n"


def _assessment(folder: str, assessment: dict[str, Any]) -> str:
    """The Markdown of scores by class, a confusion matrix, calibration, errors and figures."""
    parts = []
    if "classes" in assessment:
        rows = [
            [name, *(_percent(of[key]) for key in ("precision", "recall", "f1")), f"{of['rows']:,}"]
            for name, of in assessment["classes"].items()
        ]
        parts.append(markdown_table(["Class", "Precision", "Recall", "F1", "Rows"], rows))
    names = assessment.get("names", ())
    if "confusion" in assessment and len(names) <= _MOST_CLASSES:
        header = ["Label", *(f"predicted {name}" for name in names)]
        rows = zip(names, assessment["confusion"], strict=True)
        parts.append(markdown_table(header, [[name, *map(str, row)] for name, row in rows]))
    if "calibration_error" in assessment:
        parts.append(
            f"Expected calibration error: {100 * assessment['calibration_error']:.1f}, by how much "
            "probabilities and shares of right predictions differ on average, times 100."
        )
    if errors := assessment["errors"]:
        what = "surest of" if "probability" in errors[0] else "furthest off with"
        keys = ("row", "label", "prediction", "probability", "text")
        keys = [key for key in keys if key in errors[0]]
        rows = [[_cell(error[key]) for key in keys] for error in errors]
        table = markdown_table([key.capitalize() for key in keys], rows)
        parts.append(f"The errors that the model was {what}:\n\n{table}")
    drawn = [f"![{os.path.basename(path)[:-4]}]({folder}/{path})" for path in assessment["figures"]]
    return "\n\n".join(filter(None, [*parts, " ".join(drawn)]))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _glue_table(experiments: Sequence[dict[str, Any]]) -> str:
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for experiment in experiments:
        if experiment["task"] in _GLUE_TITLES:
            rows.setdefault(_model_name(experiment), {})[experiment["task"]] = experiment
    others = sorted({task for tasks in rows.values() for task in tasks} - {*_PAPER_COLUMNS})
    titles = ["MNLI-(m/mm)" if task == "MNLI" else task for task in _PAPER_COLUMNS]
    lines = []
    for model, tasks in sorted(rows.items()):
        medians = {task: _medians(experiment) for task, experiment in tasks.items()}
        cells = {task: "/".join(map(_percent, scores)) for task, scores in medians.items()}
        average = _MISSING
        if all(task in tasks for task in _PAPER_COLUMNS):
            average = _percent(statistics.fmean(medians[task][0] for task in _PAPER_COLUMNS))
        parameters = next(iter(tasks.values()))["parameters"]
        shown = [cells.get(task, _MISSING) for task in (*_PAPER_COLUMNS, *others)]
        shown.insert(len(_PAPER_COLUMNS), average)
        lines.append([model, f"{parameters / 1e6:.3g}M", *shown])
    return markdown_table(["Model", "Params", *titles, "AVG", *others], lines)


def _details(experiments: Sequence[dict[str, Any]]) -> str:
    header = ["Task", "Model", "Metric", "Median", "Min", "Max", "Mean", "Std", "Guessing", "Runs"]
    header += ["Rows", "Learning rate, batch, epochs", "Examples/s"]
    lines = []
    ensembles = [_as_one_run(one) for one in experiments if one.get("ensemble")]
    rows = sorted([*experiments, *ensembles], key=lambda one: (one["task"], _model_name(one)))
    for experiment in rows:
        trainer = experiment["config"]["trainer"]
        rate = f"{experiment['config']['optimizer']['learning_rate']:g}"
        diverged = len(experiment.get("diverged", ()))
        for name, metric, summary, guess in _scores(experiment, experiment["dev"]):
            spread = [_shown(metric, summary[key]) for key in _SPREAD]
            runs = str(len(summary["values"])) + (f", {diverged} diverged" if diverged else "")
            settings = f"{rate}, {trainer['batch_size']}, {trainer['epochs']}"
            speed = f"{experiment['examples_per_second']:.1f}"
            line = [name, _model_name(experiment), metric, *spread, guess, runs]
            lines.append([*line, f"{experiment['train_rows']:,}", settings, speed])
    return markdown_table(header, lines)


def _as_one_run(experiment: dict[str, Any]) -> dict[str, Any]:
    """The ensemble of an experiment's runs, in the form of an experiment."""
    ensemble = experiment["ensemble"]
    return {
        **experiment,
        "model": f"{experiment['model']}, ensemble of {len(ensemble['seeds'])}",
        "dev": summarize_runs([ensemble["dev"]]),
        "diverged": [],
    }


def _prompts(experiments: Sequence[dict[str, Any]]) -> str:
    header = ["Task", "Model", "Metric", "Mean (std)", "Min", "Max", "Guessing", "Splits", "Shots"]
    header += ["Template", "Label words"]
    lines = []
    for experiment in experiments:
        words, template = ", ".join(experiment["label_words"]), f"`{experiment['template']}`"
        for name, metric, summary, guess in _scores(experiment, experiment["test"]):
            shown = {key: _shown(metric, summary[key]) for key in _SPREAD}
            line = [name, experiment["model"], metric, f"{shown['mean']} ({shown['std']})"]
            line += [shown["min"], shown["max"], guess, str(len(summary["values"]))]
            lines.append([*line, str(experiment["shots"]), template, words])
    return markdown_table(header, lines)


def _scores(
    experiment: dict[str, Any], parts: dict[str, dict[str, dict[str, Any]]]
) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """For each line of a table: the name, the metric, its summary, and the baseline's score."""
    for part, metrics in parts.items():
        name = experiment["task"] if part == "dev" else f"{experiment['task']} {part}"
        for metric, summary in metrics.items():
            guess = experiment.get("baseline", {}).get(part, {}).get(metric)
            yield name, metric, summary, _MISSING if guess is None else _shown(metric, guess)


def _shown(metric: str, value: float) -> str:
    return f"{value:.3g}" if metric in _NOT_SHARES else _percent(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _model_name(experiment: dict[str, Any]) -> str:
    name = experiment["model"]
    if experiment.get("from_scratch"):
        name += ", from random weights"
    if experiment.get("train_fraction", 1.0) < 1:
        name += f", {experiment['train_fraction']:.3g} of the training rows"
    return name


def _medians(experiment: dict[str, Any]) -> list[float]:
    # The paper's metric, whatever the best epoch was chosen by.
    metric = _PAPER_METRICS.get(experiment["task"], "accuracy")
    return [metrics[metric]["median"] for metrics in experiment["dev"].values()]

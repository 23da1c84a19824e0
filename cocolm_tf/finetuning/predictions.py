"""What a model predicts: files of it, scores class by class, and the worst errors.

A run leaves beside its preset

    predictions/RTE.tsv   of each test set, in the format of the GLUE leaderboard
    outputs/dev.csv       of each dev and test set: rows, labels, predictions, probabilities
    figures/dev_*.svg     of each dev set: a confusion matrix and a reliability diagram
"""

import csv
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn import metrics

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.finetuning.metrics import predicted

PREDICTIONS_DIRECTORY, OUTPUTS_DIRECTORY = "predictions", "outputs"
FIGURES_DIRECTORY = "figures"

# Of a reliability diagram and of the calibration error.
_BINS = 10
# How many errors are reported, and how many characters of their texts.
_ERRORS, _CHARACTERS = 10, 120
# How many of a regression's predictions are drawn.
_POINTS = 500
# The most classes that a confusion matrix is drawn of.
_MOST_CLASSES = 30


Decide = Callable[[np.ndarray], np.ndarray]
"""Probabilities [N, classes] to predictions: [N], or of several labels [N, classes], 0 or 1."""


def probabilities(outputs: np.ndarray, multi_label: bool = False) -> np.ndarray:
    """Probabilities of logits, [N, classes]; a regression's numbers [N, 1] are left as they are."""
    if multi_label:
        return expit(outputs.astype(np.float64))
    return outputs if outputs.shape[1] == 1 else softmax(outputs.astype(np.float64), axis=1)


def write_predictions(
    path: str, outputs: np.ndarray, data: TaskData, decide: Decide = predicted
) -> None:
    """Writes `index` and `prediction`, tab-separated, of outputs [N, classes] or [N, 1]."""
    # A quote and a backslash are characters like any other, as in the files that are read.
    predictions = decide(outputs)
    # Clipped here alone: the metrics count a number that is further out of bounds as further off.
    predictions = np.clip(predictions, *data.bounds) if data.bounds else predictions
    names = data.label_values or data.label_names
    values = _written(predictions, names, separator=data.label_separator)
    files.make_dirs(os.path.dirname(path) or ".")
    rows = "".join(f"{index}\t{value}\n" for index, value in enumerate(values))
    files.write_text(path, "index\tprediction\n" + rows)


def write_outputs(
    path: str,
    shares: np.ndarray,
    examples: Examples,
    label_names: Sequence[str] | None,
    decide: Decide = predicted,
    separator: str = "",
) -> None:
    """Writes a CSV of the rows, labels, predictions and probabilities of some examples."""
    # Its columns are `row`, where an example stands in its source; `label`, where it is known;
    # `prediction`; and for classes `probability of NAME`, for each of them. `separator` is between
    # several labels of an example.
    columns: dict[str, Sequence[Any]] = {"row": _rows(examples)}
    if examples.labels is not None:
        columns["label"] = _written(examples.labels, label_names, separator=separator)
    columns["prediction"] = _written(decide(shares), label_names, ".6g", separator)
    if label_names is not None:
        for name, column in zip(label_names, shares.T, strict=True):
            columns[f"probability of {name}"] = [f"{share:.6g}" for share in column]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    files.make_dirs(os.path.dirname(path))
    files.write_text(path, text.getvalue())


def read_outputs(path: str, label_names: Sequence[str] | None) -> np.ndarray:
    """Reads the probabilities [N, classes], or numbers [N, 1], that `write_outputs` wrote."""
    names = ["prediction"] if label_names is None else [f"probability of {n}" for n in label_names]
    rows = csv.DictReader(io.StringIO(files.read_text(path)))
    return np.array([[float(row[name]) for name in names] for row in rows])


def assess(
    shares: np.ndarray,
    examples: Examples,
    label_names: Sequence[str] | None,
    decide: Decide = predicted,
) -> dict[str, Any]:
    """Scores predictions class by class, their calibration, and the worst errors, for JSON."""
    # `errors`: the rows with the largest errors, or the wrong ones with the highest probabilities.
    # Of classes also `names`; `confusion`, a row for each label and a column for each prediction;
    # `classes`, their `precision`, `recall`, `f1` and `rows`; `calibration_error`, the expected
    # one; and `calibration`, a `confidence`, an `accuracy` and `rows` for each bin. Of several
    # labels an example `names` and `classes` alone, and the errors with most wrong labels. Of a
    # regression also `points`, labels and predictions to draw.
    predictions, labels = decide(shares), examples.labels
    if label_names is None:
        points = np.stack([labels, predictions], axis=1)[:_POINTS].astype(float).tolist()
        columns = {"label": labels.astype(float), "prediction": predictions.astype(float)}
        return {
            "errors": _errors(examples, np.abs(predictions - labels), columns),
            "points": points,
        }
    numbers = list(range(len(label_names)))
    scores = metrics.precision_recall_fscore_support(
        labels, predictions, labels=numbers, zero_division=0.0
    )
    classes = {
        name: dict(zip(("precision", "recall", "f1", "rows"), of_class, strict=True))
        for name, *of_class in zip(label_names, *(one.tolist() for one in scores), strict=True)
    }
    found = {"names": list(label_names), "classes": classes}
    columns = {
        "label": _written(labels, label_names, separator=", "),
        "prediction": _written(predictions, label_names, separator=", "),
    }
    if labels.ndim == 2:
        return found | {"errors": _errors(examples, (predictions != labels).sum(axis=1), columns)}
    confidence, is_right = shares.max(axis=1), predictions == labels
    bins = _bins(confidence, is_right)
    gaps = (one["rows"] * abs(one["confidence"] - one["accuracy"]) for one in bins)
    columns["probability"] = confidence.astype(float)
    return found | {
        "confusion": metrics.confusion_matrix(labels, predictions, labels=numbers).tolist(),
        "calibration_error": sum(gaps) / len(labels),
        "calibration": bins,
        "errors": _errors(examples, np.where(is_right, 0.0, confidence), columns),
    }


def _errors(
    examples: Examples, sizes: np.ndarray, columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """The rows whose errors, of these sizes, are the largest, with their values and their texts."""
    found = []
    for number in np.argsort(-sizes, kind="stable")[:_ERRORS]:
        if sizes[number] == 0:
            break
        texts = [one[number] for one in (examples.first, examples.second) if one is not None]
        found.append(
            {
                "row": int(_rows(examples)[number]),
                **{name: values[number] for name, values in columns.items()},
                "text": " / ".join(filter(None, texts)).replace("\n", " ")[:_CHARACTERS],
            }
        )
    return found


def draw_assessment(folder: str, part: str, assessment: Mapping[str, Any]) -> list[str]:
    """Draws what `assess` found of a part; returns the names of the files in the folder."""
    # Slow to import, and runs of a search draw nothing.
    from cocolm_tf.analysis import figures

    drawn = {}
    with figures.styled():
        if "points" in assessment:
            figure, axes = figures.new_figure(part, "label", "prediction")
            axes.scatter(*zip(*assessment["points"], strict=True), s=8, color=figures.BLUE)
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color=figures.FAINT_INK, linewidth=0.8)
            drawn["numbers"] = figure
        elif "confusion" in assessment and len(assessment["names"]) <= _MOST_CLASSES:
            counts = np.array(assessment["confusion"])
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            figure, axes = figures.new_figure(part, "predicted", "label")
            axes.grid(visible=False)
            display = metrics.ConfusionMatrixDisplay(shares, display_labels=assessment["names"])
            display.plot(
                ax=axes,
                cmap="Blues",
                colorbar=False,
                include_values=False,
                xticks_rotation=45,
                im_kw={"vmin": 0, "vmax": 1},
            )
            axes.set(xlabel="predicted", ylabel="label")
            for (row, column), count in np.ndenumerate(counts):
                color = "white" if shares[row, column] > 0.6 else figures.INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=color)
            drawn["confusion"] = figure
        if "calibration" in assessment:
            figure, axes = figures.new_figure(part, "probability of the prediction", "right")
            axes.plot([0, 1], [0, 1], color=figures.FAINT_INK, linewidth=0.8)
            bins = assessment["calibration"]
            said, right = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
            axes.plot(said, right, color=figures.BLUE, marker="o", linewidth=1.2)
            axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
            drawn["calibration"] = figure
        files.make_dirs(folder)
        for name, figure in drawn.items():
            figures.save_figure(figure, folder, f"{part}_{name}", ["svg"])
            figures.plt.close(figure)
    return [f"{part}_{name}.svg" for name in drawn]


def save_predictions(
    folder: str,
    shares: Mapping[str, np.ndarray],
    data: TaskData,
    decide: Decide = predicted,
    write: Callable[[str, str, np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """Writes all files of predictions of some sets; returns the assessment of each dev set."""
    # An assessment is that of `assess` without `points`, and its `figures` by their paths in the
    # folder. `write` writes the predictions of a test set, given a folder, the set's name and its
    # probabilities; None for `write_predictions`.
    assessments = {}
    for part, of_part in shares.items():
        examples = data.dev[part] if part in data.dev else data.test[part]
        path = os.path.join(folder, OUTPUTS_DIRECTORY, f"{part}.csv")
        write_outputs(path, of_part, examples, data.label_names, decide, data.label_separator)
        if part in data.test:
            predictions = os.path.join(folder, PREDICTIONS_DIRECTORY)
            if write:
                write(predictions, part, of_part)
            else:
                write_predictions(os.path.join(predictions, f"{part}.tsv"), of_part, data, decide)
            continue
        assessment = assess(of_part, examples, data.label_names, decide)
        drawn = draw_assessment(os.path.join(folder, FIGURES_DIRECTORY), part, assessment)
        assessment.pop("points", None)
        figures = [f"{FIGURES_DIRECTORY}/{name}" for name in drawn]
        assessments[part] = {**assessment, "figures": figures}
    return assessments


def _rows(examples: Examples) -> np.ndarray:
    return np.arange(len(examples)) if examples.rows is None else examples.rows


def _written(
    values: np.ndarray,
    names: Sequence[str] | None,
    number: str = ".3f",
    separator: str = "",
) -> list[str]:
    if names is None:
        return [f"{value:{number}}" for value in values]
    if values.ndim == 2:
        return [separator.join(itertools.compress(names, row)) for row in values.tolist()]
    return [names[value] for value in values]


def _bins(confidence: np.ndarray, is_right: np.ndarray) -> list[dict[str, Any]]:
    """The bins of equal width that are not empty, each with its means."""
    numbers = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return [
        {
            "confidence": float(confidence[numbers == number].mean()),
            "accuracy": float(is_right[numbers == number].mean()),
            "rows": int((numbers == number).sum()),
        }
        for number in np.unique(numbers)
    ]

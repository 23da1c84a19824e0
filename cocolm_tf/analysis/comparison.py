"""The comparison of presets and runs: figures, numbers, and a page that shows them."""

import csv
import dataclasses
import html
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

import cocolm_tf
from cocolm_tf.analysis.calibration import draw_calibration
from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.distributions import RANDOM, SIMILAR, draw_distributions
from cocolm_tf.analysis.figures import save_figure
from cocolm_tf.analysis.meanings import MEANINGS
from cocolm_tf.analysis.metrics_log import TRAINING, VALIDATION
from cocolm_tf.analysis.minimal_pairs import ALL
from cocolm_tf.analysis.page import inline_svg, page, table
from cocolm_tf.analysis.plots import plots_of
from cocolm_tf.analysis.run_comparison import X_AXES, Run, draw_runs
from cocolm_tf.analysis.sentence_map import draw_map, map_sentences
from cocolm_tf.analysis.sentence_space import COMPONENTS, SentenceSpace
from cocolm_tf.errors import UserError

PAGE_FILENAME, RESULTS_FILENAME = "index.html", "results.json"

# The measures of a space: what to call each, how to show its value, what it means.
_SPACE = {
    "similar_cosine": (
        "Cosine of similar pairs",
        "{:.3f}",
        "The mean. On STS-B the paper has 0.925 with contrastive learning, 0.863 without.",
    ),
    "random_cosine": ("Cosine of random pairs", "{:.3f}", "The mean: near 1, all is in a cone."),
    "alignment": (
        "Alignment",
        "{:.3f}",
        "The mean squared distance of similar pairs: the lower, the better aligned.",
    ),
    "uniformity": (
        "Uniformity",
        "{:.3f}",
        "The spread of the texts over the sphere: the lower, the more uniform; -4 is orthogonal.",
    ),
    **{
        f"variance_{count}": (
            f"Variance in {count} component{'s' if count > 1 else ''}",
            "{:.1%}",
            "The share of the texts' variance in the first principal components: anisotropy.",
        )
        for count in COMPONENTS
    },
    "spearman": (
        "Spearman's correlation",
        "{:.3f}",
        "Of the cosines of all pairs with the scores that people gave them.",
    ),
    "spearman_whitened": (
        "Spearman's, whitened",
        "{:.3f}",
        "The same once the vectors are whitened.",
    ),
}


# The measures of detection, likewise.
_DETECTION = {
    "replaced_share": ("Replaced", "{:.1%}", "The share of the tokens that are not the original."),
    "precision": ("Precision", "{:.1%}", "How many of the flagged tokens were replaced."),
    "recall": ("Recall", "{:.1%}", "How many of the replaced tokens are flagged."),
    "f1": ("F1", "{:.3f}", "The harmonic mean of the two."),
    "average_precision": (
        "Average precision",
        "{:.3f}",
        "Over all thresholds; chance has the share of replaced tokens.",
    ),
    "calibration_error": (
        "Calibration error",
        "{:.3f}",
        "The mean gap between the probability that is said and the share that is so.",
    ),
    "corrected_at_1": (
        "Corrected",
        "{:.1%}",
        "How many replaced tokens' originals are the LM head's best guess.",
    ),
    "corrected_at_5": ("Corrected, of five", "{:.1%}", "How many are among its best five."),
    "corrected_at_1_frequent": (
        "Corrected, frequent",
        "{:.1%}",
        "The best guess, of originals among the 100 most frequent tokens;",
    ),
    "corrected_at_1_common": ("Corrected, common", "{:.1%}", "among the next 900;"),
    "corrected_at_1_rare": ("Corrected, rare", "{:.1%}", "among all others."),
}


@dataclasses.dataclass(frozen=True)
class Findings:
    """What there is to compare; what is empty is left out.

    Args:
        spaces: sentence vectors and their measures, by the names of the presets.
        detections: what the heads say of corrupted text, by the names of preset and corruption.
        minimal_pairs: from the name of each preset, what `accuracies` returns.
        held_out: measures on held-out text, by the names of the runs.
        runs: whose curves to draw.

    Example:
    ```python
    Findings(runs=[read_run("COCO-LM", "runs/first")])
    ```
    """

    spaces: Mapping[str, SentenceSpace] = dataclasses.field(default_factory=dict)
    detections: Mapping[str, Detections] = dataclasses.field(default_factory=dict)
    minimal_pairs: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    held_out: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    runs: Sequence[Run] = ()


def write_comparison(
    output_dir: str, findings: Findings, x_axis: str = "steps", seed: int = 0
) -> str:
    """Writes figures as PNG and SVG, numbers as CSV and JSON, and one page of HTML with them all.

    Args:
        output_dir: the folder.
        findings: what to show.
        x_axis: one of `X_AXES`, for the curves of runs.
        seed: int. Decides the map of sentences and what is marked on it.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder cannot be written to.

    Example:
    ```python
    write_comparison("analysis", Findings(runs=[read_run("COCO-LM", "runs/first")]))
    ```
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir={output_dir} is not a folder to write to.") from error
    sections, results = {}, {}
    if findings.spaces:
        results["spaces"] = {name: space.measures for name, space in findings.spaces.items()}
        sections["Sentence vectors"] = _space_section(output_dir, findings.spaces, seed)
    if findings.detections:
        measures = {name: found.measures() for name, found in findings.detections.items()}
        results["detection"] = measures
        sections["Detection"] = _detection_section(output_dir, findings.detections, measures)
    if findings.minimal_pairs:
        results["minimal_pairs"] = findings.minimal_pairs
        sections["Minimal pairs"] = _minimal_pairs_section(output_dir, findings.minimal_pairs)
    if findings.held_out:
        results["held_out"] = findings.held_out
        sections["Held-out text"] = _held_out_section(output_dir, findings.held_out)
    if findings.runs:
        results["runs"] = {run.name: _last_line(run) for run in findings.runs}
        sections["Training"] = _training_section(output_dir, findings.runs, x_axis)
        _write_csv(output_dir, "curves.csv", *_curve_rows(findings.runs))
    _write(output_dir, RESULTS_FILENAME, lambda file: json.dump(results, file, indent=2))
    text = page("What was learned", {"cocolm_tf": cocolm_tf.__version__}, sections)
    return _write(output_dir, PAGE_FILENAME, lambda file: file.write(text))


def _space_section(output_dir: str, spaces: Mapping[str, SentenceSpace], seed: int) -> str:
    _write_csv(
        output_dir,
        "cosines.csv",
        ("preset", "pairs", "cosine"),
        (
            (name, kind, f"{cosine:.6f}")
            for name, space in spaces.items()
            for kind, cosines in _kinds(space).items()
            for cosine in cosines
        ),
    )
    maps = {
        name: map_sentences(_both(space), seed)
        for name, space in spaces.items()
        if len(space.first) > 1
    }
    figures = [
        _figure(
            output_dir,
            "cosines",
            draw_distributions({name: _kinds(space) for name, space in spaces.items()}),
            "Cosines of random and of similar pairs of sentences",
            "Histograms, density estimates and means (dotted): paper, figures 1 and 5.",
        )
    ]
    if maps:
        _write_csv(output_dir, "map.csv", *_map_rows(maps))
        figures.append(
            _figure(
                output_dir,
                "map",
                draw_map(maps, seed),
                "A map of the similar pairs",
                "t-SNE of the similar pairs' vectors. Partners are joined, and marked alike, in "
                "some pairs, the same in all panels: paper, figure 6.",
            )
        )
    measures = {name: space.measures for name, space in spaces.items()}
    return _measure_table(output_dir, "spaces.csv", measures, _SPACE) + _figures(figures)


def _kinds(space: SentenceSpace) -> dict[str, Any]:
    return {RANDOM: space.random_cosines, SIMILAR: space.similar_cosines}


def _both(space: SentenceSpace) -> np.ndarray:
    return np.concatenate([space.first, space.second])


def _map_rows(maps: Mapping[str, np.ndarray]) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
    rows = (
        (name, number % (len(places) // 2), 1 + number // (len(places) // 2), *place)
        for name, places in maps.items()
        for number, place in enumerate(places.round(6).tolist())
    )
    return ("preset", "pair", "sentence", "x", "y"), rows


def _detection_section(
    output_dir: str,
    detections: Mapping[str, Detections],
    measures: Mapping[str, Mapping[str, float]],
) -> str:
    figure = _figure(
        output_dir,
        "calibration",
        draw_calibration(detections),
        "What the copy head says against what is so",
        "A dot on the diagonal is a probability to be taken at its word; its area shows how many "
        "tokens it stands for.",
    )
    return (
        "<p>15% of the tokens of held-out text, replaced; what the heads say of each token.</p>"
        + _measure_table(output_dir, "detection.csv", measures, _DETECTION)
        + _figures([figure])
    )


def _minimal_pairs_section(
    output_dir: str, results: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> str:
    columns = [(name, way) for name, shares in results.items() for way in shares[ALL]]
    categories = {category: None for shares in results.values() for category in shares}
    shares = [[results[name][category][way] for name, way in columns] for category in categories]
    _write_csv(
        output_dir,
        "minimal_pairs.csv",
        ("category", *(f"{name}, {way}" for name, way in columns)),
        ([category, *row] for category, row in zip(categories, shares, strict=True)),
    )
    rows = [
        [html.escape(category), *(f"{share:.1%}" for share in row)]
        for category, row in zip(categories, shares, strict=True)
    ]
    header = [
        "category",
        *(f"{html.escape(name)}<br><small>{way}</small>" for name, way in columns),
    ]
    return (
        "<p>The share of pairs whose good sentence scores higher; 50% is chance. <b>masked</b>: by "
        "the LM head, each token masked in turn. <b>corrective</b>: by copy mechanism and LM head "
        "on the sentence as it is. <b>detection</b>: by the copy head alone.</p>"
        + table(header, rows, numeric=range(1, len(header)))
    )


def _held_out_section(output_dir: str, held_out: Mapping[str, Mapping[str, float]]) -> str:
    return (
        "<p>The finished runs on text that none was trained on. Cosines of a run without "
        "contrastive learning are those of its vectors as they are.</p>"
        + _measure_table(output_dir, "held_out.csv", held_out, MEANINGS)
    )


def _training_section(output_dir: str, runs: Sequence[Run], x_axis: str) -> str:
    figures = []
    for plot in tqdm(plots_of(*(run.metrics for run in runs)), desc="drawing", unit="plot"):
        figure = draw_runs(plot, runs, x_axis)
        title = f"{plot.title} over {X_AXES[x_axis]}"
        figures.append(_figure(output_dir, plot.name, figure, title, plot.note, "half"))
    return "<p>Validation, where there was any; else training.</p>" + _figures(figures)


def _curve_rows(runs: Sequence[Run]) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
    rows = (
        (run.name, split, *places, name, value)
        for run in runs
        for split in (TRAINING, VALIDATION)
        for line, *places in zip(
            run.metrics.lines[split],
            *(run.abscissa(split, x_axis).tolist() for x_axis in X_AXES),
            strict=True,
        )
        for name, value in line.items()
        if name not in ("step", "split", "seconds")
    )
    return ("run", "split", *X_AXES, "measure", "value"), rows


def _last_line(run: Run) -> dict[str, Any]:
    split, line = run.metrics.final()
    return {"split": split, **line}


def _measure_table(
    output_dir: str,
    file_name: str,
    measures: Mapping[str, Mapping[str, float]],
    meanings: Mapping[str, tuple[str, str, str]],
) -> str:
    """A table on the page and in a file: a measure a row, a preset or run a column."""
    rows = []
    for key, (label, form, meaning) in meanings.items():
        if any(key in of_one for of_one in measures.values()):
            cells = (form.format(one[key]) if key in one else "" for one in measures.values())
            rows.append([html.escape(label), *cells, html.escape(meaning)])
    keys = {key: None for of_one in measures.values() for key in of_one}
    _write_csv(
        output_dir,
        file_name,
        ("measure", *measures),
        ((key, *(of_one.get(key, "") for of_one in measures.values())) for key in keys),
    )
    header = ["measure", *map(html.escape, measures), "what it means"]
    return table(header, rows, numeric=range(1, len(measures) + 1))


def _figure(
    output_dir: str, name: str, figure: Figure, title: str, note: str, width: str = "full"
) -> str:
    save_figure(figure, output_dir, name, ("png", "svg"))
    svg = inline_svg(figure, title)
    plt.close(figure)
    return f"<figure class='{width}'>{svg}<figcaption>{html.escape(note)}</figcaption></figure>"


def _figures(figures: Sequence[str]) -> str:
    return f"<div class='figures'>{''.join(figures)}</div>"


def _write_csv(
    output_dir: str, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    def write(file: TextIO) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)

    _write(output_dir, name, write)


def _write(output_dir: str, name: str, write: Callable[[TextIO], object]) -> str:
    path = os.path.join(output_dir, name)
    with open(path + ".tmp", "w", encoding="utf-8", newline="") as file:
        write(file)
    os.replace(path + ".tmp", path)
    return path

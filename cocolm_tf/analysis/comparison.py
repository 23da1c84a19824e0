"""The comparison of presets and runs: figures, numbers, and a page that shows them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.figures import (
    RANDOM,
    SIMILAR,
    draw_by_frequency,
    draw_calibration,
    draw_curves,
    draw_distributions,
    draw_map,
    draw_minimal_pairs,
    draw_scores,
    plots_of,
)
from cocolm_tf.analysis.glossary import DETECTION_METRICS, METRICS, SPACE_METRICS
from cocolm_tf.analysis.inputs import ALL
from cocolm_tf.analysis.pages import OutputFolder, metric_rows
from cocolm_tf.analysis.runs import X_AXES, Run
from cocolm_tf.analysis.scores import (
    Score,
    crop_curves,
    few_shot_curves,
    pretraining_curves,
    prompt_curves,
)
from cocolm_tf.analysis.sentence_space import SentenceSpace, map_sentences

RESULTS_FILENAME = "results.json"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What there is to compare; empty parts are left out."""

    # Sentence vectors and their measures, by the names of the presets.
    spaces: Mapping[str, SentenceSpace] = dataclasses.field(default_factory=dict)
    # What the heads say of corrupted text, by the kinds of corruption (`auxiliary`, `random`,
    # `texts`) and then by the names of the presets.
    detections: Mapping[str, Mapping[str, Detections]] = dataclasses.field(default_factory=dict)
    # From the name of each preset, what `accuracies` returns.
    minimal_pairs: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    # Measures on held-out text, by the names of the runs.
    held_out: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    runs: Sequence[Run] = ()  # whose curves to draw
    scores: Sequence[Score] = ()  # of fine-tuned presets


def write_comparison(
    output_dir: str, findings: Findings, x_axis: str = "steps", seed: int = 0
) -> str:
    """Writes figures as PNG and SVG, numbers as CSV and JSON, and one page of HTML with them all.

    Args:
        output_dir: the folder.
        findings: what to show.
        x_axis: one of `X_AXES`, for the curves of runs.
        seed: Decides the map of sentences and what is marked on it.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder cannot be written to.

    Example:
    ```python
    write_comparison("analysis", Findings(runs=[read_run("COCO-LM", "runs/first")]))
    ```
    """
    output = OutputFolder(output_dir)
    # By the names of the sections, which are blocks of the template: headings, and what they show.
    sections, shown, results = {}, {}, {}
    if findings.spaces:
        sections["spaces"] = "Sentence vectors"
        measures = {name: space.measures for name, space in findings.spaces.items()}
        results["spaces"] = measures
        shown["spaces"] = _measures(output, "spaces.csv", measures, SPACE_METRICS)
        _write_spaces(output, findings.spaces, seed)
    if findings.detections:
        sections["detection"] = "Detection"
        results["detection"], results["calibration"], shown["detection"] = {}, {}, {}
        for kind, found in findings.detections.items():
            measures = {name: one.measures() for name, one in found.items()}
            results["detection"][kind] = measures
            bins = {name: one.calibration() for name, one in found.items()}
            results["calibration"][kind] = {
                name: list(of_one.itertuples(index=False, name=None))
                for name, of_one in bins.items()
            }
            shown["detection"][kind] = {
                "measures": _measures(output, f"detection_{kind}.csv", measures, DETECTION_METRICS),
                "calibration": _write_calibration(output, kind, bins),
            }
            by_frequency = {name: one.by_frequency() for name, one in found.items()}
            output.add_figure(f"frequency_{kind}", draw_by_frequency(by_frequency))
    if findings.minimal_pairs:
        sections["minimal_pairs"] = "Minimal pairs"
        results["minimal_pairs"] = findings.minimal_pairs
        shown["minimal_pairs"] = _write_minimal_pairs(output, findings.minimal_pairs)
    if findings.scores:
        sections["scores"] = "Fine-tuning"
        results["scores"] = [_plain(score) for score in findings.scores]
        shown["scores"] = _write_scores(output, findings.scores, x_axis)
    if findings.held_out:
        sections["held_out"] = "Held-out text"
        results["held_out"] = findings.held_out
        shown["held_out"] = _measures(output, "held_out.csv", findings.held_out, METRICS)
    if findings.runs:
        sections["runs"] = "Training"
        results["runs"] = {run.name: run.final() for run in findings.runs}
        output.add_table("curves.csv", pd.concat(map(_curve_table, findings.runs)))
        plots = plots_of(*findings.runs)
        shown["runs"] = {"names": [run.name for run in findings.runs], "plots": plots}
        for plot in tqdm(plots, desc="drawing", unit="plot"):
            output.add_figure(plot.name, draw_curves(plot, findings.runs, x_axis))
    output.add_json(RESULTS_FILENAME, results)
    return output.add_page(
        "comparison.html",
        "What was learned",
        {},
        sections,
        shown=shown,
        x_axis=X_AXES[x_axis],
    )


def _measures(
    output: OutputFolder, name: str, measures: Mapping[str, Mapping[str, float]], metrics: Mapping
) -> dict[str, list]:
    """Writes metrics of presets or runs as CSV; returns the columns and rows of their table."""
    frame = pd.DataFrame(measures)
    output.add_table(name, frame.rename_axis("measure").reset_index())
    return {"columns": list(measures), "rows": metric_rows(frame, metrics)}


def _write_spaces(output: OutputFolder, spaces: Mapping[str, SentenceSpace], seed: int) -> None:
    """The similarities of random and of similar sentences (paper, figures 1, 5 and 6)."""
    kinds = {
        name: {RANDOM: space.random_cosines, SIMILAR: space.similar_cosines}
        for name, space in spaces.items()
    }
    cosines = [
        pd.DataFrame({"preset": name, "pairs": kind, "cosine": values.round(6)})
        for name, of_preset in kinds.items()
        for kind, values in of_preset.items()
    ]
    output.add_table("cosines.csv", pd.concat(cosines))
    output.add_figure("cosines", draw_distributions(kinds))
    maps = {
        name: map_sentences(np.concatenate([space.first, space.second]), seed)
        for name, space in spaces.items()
        if len(space.first) > 1
    }
    if maps:
        tables = []
        for name, places in maps.items():
            sentence, pair = np.divmod(np.arange(len(places)), len(places) // 2)
            columns = {"preset": name, "pair": pair, "sentence": 1 + sentence}
            tables.append(pd.DataFrame({**columns, **dict(zip("xy", places.T, strict=True))}))
        output.add_table("map.csv", pd.concat(tables).round(6))
        output.add_figure("map", draw_map(maps, seed))


def _write_calibration(
    output: OutputFolder, kind: str, bins: Mapping[str, pd.DataFrame]
) -> list[tuple[str, ...]]:
    table = pd.concat(bins, names=["preset"]).reset_index("preset")
    output.add_table(f"calibration_{kind}.csv", table)
    output.add_figure(f"calibration_{kind}", draw_calibration(bins))
    return [
        (row.preset, f"{row.said:.1%}", f"{row.replaced:.1%}", f"{row.tokens:,}")
        for row in table.itertuples()
    ]


def _write_minimal_pairs(
    output: OutputFolder, results: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, list]:
    columns = {
        f"{name}, {method}": {category: of[method] for category, of in shares.items()}
        for name, shares in results.items()
        for method in shares[ALL]
    }
    frame = pd.DataFrame(columns)
    output.add_table("minimal_pairs.csv", frame.rename_axis("category").reset_index())
    output.add_figure("minimal_pairs", draw_minimal_pairs(results))
    rows = [[row[0], *(f"{share:.1%}" for share in row[1:])] for row in frame.itertuples()]
    return {"header": ["category", *frame.columns], "rows": rows}


def _write_scores(output: OutputFolder, scores: Sequence[Score], x_axis: str) -> list[list[str]]:
    """The scores of fine-tuned presets, over all that was varied (paper, figures 3, 4, 7c, 7d)."""
    table = pd.DataFrame([_plain(score) for score in scores]).explode("values")
    table = table.rename(columns={"values": "value"}).assign(
        step=table["step"].where(table["run"].notna()).astype("Int64"),
        number=table.groupby(level=0).cumcount(),
    )
    columns = ["task", "metric", "model", "from_scratch", "train_fraction", "shots", "run", "step"]
    output.add_table("scores.csv", table[[*columns, "number", "value"]])
    for name, points, *axis in (
        ("pretraining", pretraining_curves(scores, x_axis), X_AXES[x_axis]),
        (
            "fractions",
            few_shot_curves(scores),
            "training rows learned from",
            lambda x: f"{100 * x:g}%",
            True,
        ),
        ("shots", prompt_curves(scores), "examples of each class", "{:g}".format, True),
        ("crops", crop_curves(scores), "share of the text kept", "{:.0%}".format),
    ):
        if len(points):
            output.add_figure(f"scores_over_{name}", draw_scores(points, *axis))
    return [
        [
            f"{score.task}, {score.metric}",
            score.model,
            _learned_from(score),
            str(len(score.values)),
            *(f"{100 * x:.1f}" for x in (score.mean, min(score.values), max(score.values))),
        ]
        for score in sorted(scores, key=lambda score: score.task)
    ]


def _plain(score: Score) -> dict[str, object]:
    """A score for JSON."""
    fields = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
    return fields | {"run": score.run and score.run.name, "mean": score.mean}


def _learned_from(score: Score) -> str:
    if score.shots:
        return f"{score.shots} examples a class, by prompts"
    start = "from scratch, " if score.from_scratch else ""
    at = f", at step {score.step:,}" if score.run else ""
    part = f"{score.train_fraction:.3g} of the" if score.train_fraction < 1 else "all"
    return f"{start}{part} rows{at}"


def _curve_table(run: Run) -> pd.DataFrame:
    """The log of a run, a value a row."""
    positions = {x_axis: run.positions(x_axis) for x_axis in X_AXES}
    wide = run.log.drop(columns=["step", "seconds"]).assign(run=run.name, **positions)
    return wide.melt(["run", "split", *X_AXES], var_name="measure").dropna(subset="value")

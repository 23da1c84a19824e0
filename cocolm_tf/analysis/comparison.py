"""The comparison of presets and runs: figures, numbers, and a page that shows them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from tqdm import tqdm

import cocolm_tf
from cocolm_tf.analysis.charts import (
    RANDOM,
    SIMILAR,
    draw_by_frequency,
    draw_calibration,
    draw_distributions,
    draw_judgements,
    draw_map,
    draw_scores,
    linear_axis,
    log_axis,
    percent_axis,
)
from cocolm_tf.analysis.curves import draw_runs, plots_of
from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.glossary import DETECTION_METRICS, METRICS, SPACE_METRICS
from cocolm_tf.analysis.inputs import ALL
from cocolm_tf.analysis.metrics_log import TRAINING, VALIDATION
from cocolm_tf.analysis.page import OutputFolder, page, table
from cocolm_tf.analysis.runs import X_AXES, Run
from cocolm_tf.analysis.scores import (
    Score,
    crop_curves,
    few_shot_curves,
    pretraining_curves,
    prompt_curves,
)
from cocolm_tf.analysis.sentence_space import SentenceSpace, map_sentences

PAGE_FILENAME, RESULTS_FILENAME = "index.html", "results.json"
# The kinds of corruption, by name.
_CORRUPTIONS = {
    "auxiliary": "15% of the tokens masked, and filled in by the preset's auxiliary model",
    "random": "15% of the tokens masked, and filled in at random",
    "texts": "texts with mistakes",
}
_FILLED_IN = "Where the original token is put back, nothing was replaced. Masks spare <s> and </s>."
_OF_CORRUPTION = {
    "auxiliary": _FILLED_IN,
    "random": _FILLED_IN,
    "texts": "Replaced are the tokens of the mistakes, by an alignment with the original text.",
}
# A table's header, and its rows.
Table = tuple[Sequence[str], Iterable[Sequence[object]]]


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
    sections, results = {}, {}
    if findings.spaces:
        sections["Sentence vectors"] = space_section(output, findings.spaces, seed)
        results["spaces"] = {name: space.measures for name, space in findings.spaces.items()}
    if findings.detections:
        sections["Detection"] = detection_section(output, findings.detections)
        results["detection"] = {
            kind: {name: one.measures() for name, one in of_kind.items()}
            for kind, of_kind in findings.detections.items()
        }
        results["calibration"] = {
            kind: {name: one.calibration() for name, one in of_kind.items()}
            for kind, of_kind in findings.detections.items()
        }
    if findings.minimal_pairs:
        sections["Minimal pairs"] = minimal_pairs_section(output, findings.minimal_pairs)
        results["minimal_pairs"] = findings.minimal_pairs
    if findings.scores:
        sections["Fine-tuning"] = scores_section(output, findings.scores, x_axis)
        results["scores"] = [_plain(score) for score in findings.scores]
    if findings.held_out:
        sections["Held-out text"] = held_out_section(output, findings.held_out)
        results["held_out"] = findings.held_out
    if findings.runs:
        sections["Training"] = training_section(output, findings.runs, x_axis)
        results["runs"] = {run.name: _last_line(run) for run in findings.runs}
    output.json(RESULTS_FILENAME, results)
    headline = {"cocolm_tf": cocolm_tf.__version__}
    return output.text(PAGE_FILENAME, page("What was learned", headline, sections))


def _plain(score: Score) -> dict[str, object]:
    return {
        field.name: getattr(score, field.name)
        for field in dataclasses.fields(score)
        if field.name != "run"
    } | {"run": score.run and score.run.name, "mean": score.mean}


def _last_line(run: Run) -> dict[str, object]:
    split, line = run.metrics.final()
    return {"split": split, **line}


def space_section(output: OutputFolder, spaces: Mapping[str, SentenceSpace], seed: int) -> Markup:
    """The similarities of random and of similar sentences (paper, figures 1, 5 and 6)."""
    kinds = {
        name: {RANDOM: space.random_cosines, SIMILAR: space.similar_cosines}
        for name, space in spaces.items()
    }
    rows = (
        (name, kind, f"{cosine:.6f}")
        for name, of_preset in kinds.items()
        for kind, cosines in of_preset.items()
        for cosine in cosines
    )
    output.numbers("cosines.csv", ("preset", "pairs", "cosine"), rows)
    figures = [
        output.figure(
            "cosines",
            draw_distributions(kinds),
            "Cosines of random and of similar pairs of sentences",
            "Histograms, density estimates and means (dotted): paper, figures 1 and 5.",
        )
    ]
    maps = {
        name: map_sentences(np.concatenate([space.first, space.second]), seed)
        for name, space in spaces.items()
        if len(space.first) > 1
    }
    if maps:
        output.numbers("map.csv", *_map_table(maps))
        figures.append(
            output.figure(
                "map",
                draw_map(maps, seed),
                "A map of the similar pairs",
                "t-SNE of the similar pairs' vectors. Partners are joined, and marked alike, in "
                "some pairs, the same in all panels: paper, figure 6.",
            )
        )
    measures = {name: space.measures for name, space in spaces.items()}
    return output.measures("spaces.csv", measures, SPACE_METRICS) + _figures(figures)


def detection_section(
    output: OutputFolder, detections: Mapping[str, Mapping[str, Detections]]
) -> Markup:
    """How presets detect replaced tokens, and restore the original ones."""
    parts = [_detection_part(output, kind, found) for kind, found in detections.items()]
    return Markup("").join(parts)


def _detection_part(output: OutputFolder, kind: str, found: Mapping[str, Detections]) -> Markup:
    how = _CORRUPTIONS[kind]
    calibration = [
        (name, *of_range) for name, one in found.items() for of_range in one.calibration()
    ]
    output.numbers(f"calibration_{kind}.csv", ("preset", "said", "replaced", "tokens"), calibration)
    numbers = table(
        ("preset", "said to be replaced", "replaced", "tokens"),
        [(name, f"{said:.1%}", f"{so:.1%}", f"{count:,}") for name, said, so, count in calibration],
        numeric=range(1, 4),
    )
    figures = [
        output.figure(
            f"calibration_{kind}",
            draw_calibration(found),
            f"What the copy head says against what is so, {how}",
            "A dot on the diagonal is a probability to be taken at its word. Its area shows how "
            "many tokens it stands for, down to a size that can be seen.",
        ),
        output.figure(
            f"frequency_{kind}",
            draw_by_frequency({name: one.by_frequency() for name, one in found.items()}),
            f"Detection and correction by the frequency of the original token, {how}",
            "Found: the share of the replaced tokens that the copy head flags. Corrected: the "
            "share whose original is the LM head's best guess, or among its best five.",
        ),
    ]
    measures = {name: one.measures() for name, one in found.items()}
    return Markup(
        "<h3>{}</h3><p>{}</p>{}{}<details><summary>The numbers of the calibration</summary>{}"
        "</details>"
    ).format(
        how.capitalize(),
        _OF_CORRUPTION[kind],
        output.measures(f"detection_{kind}.csv", measures, DETECTION_METRICS),
        _figures(figures),
        numbers,
    )


def minimal_pairs_section(
    output: OutputFolder, results: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Markup:
    """Which of two sentences presets prefer."""
    columns = [(name, way) for name, shares in results.items() for way in shares[ALL]]
    categories = list(next(iter(results.values())))
    shares = [[results[name][category][way] for name, way in columns] for category in categories]
    output.numbers(
        "minimal_pairs.csv",
        ("category", *(f"{name}, {way}" for name, way in columns)),
        ([category, *row] for category, row in zip(categories, shares, strict=True)),
    )
    rows = [
        [category, *(f"{share:.1%}" for share in row)]
        for category, row in zip(categories, shares, strict=True)
    ]
    header = [
        "category",
        *(Markup("{}<br><small>{}</small>").format(*column) for column in columns),
    ]
    figure = output.figure(
        "minimal_pairs",
        draw_judgements(results),
        "The share of pairs whose good sentence scores higher, by category",
        "50%, dotted, is chance.",
    )
    return (
        Markup(
            "<p>The share of pairs whose good sentence scores higher; 50% is chance. "
            "<b>masked</b>: by the LM head, each token masked in turn. <b>corrective</b>: by copy "
            "mechanism and LM head on the sentence as it is. <b>detection</b>: by the copy head "
            "alone.</p>"
        )
        + table(header, rows, numeric=range(1, len(header)))
        + _figures([figure])
    )


def scores_section(output: OutputFolder, scores: Sequence[Score], x_axis: str) -> Markup:
    """The scores of fine-tuned presets, over all that was varied (paper, figures 3, 4, 7c, 7d)."""
    output.numbers("scores.csv", *_score_table(scores))
    spread = "Means of the runs, and bars from the least to the greatest"
    figures = [
        output.figure(name, draw_scores(curves, x_label, set_places), description, note)
        for name, curves, x_label, set_places, description, note in (
            (
                "scores_over_pretraining",
                pretraining_curves(scores, x_axis),
                X_AXES[x_axis],
                linear_axis,
                f"Scores of presets over {X_AXES[x_axis]} of their pretraining",
                f"{spread}, over how far pretraining was: paper, figure 3.",
            ),
            (
                "scores_over_fractions",
                few_shot_curves(scores),
                "training rows learned from",
                log_axis(lambda x: f"{100 * x:g}%"),
                "Scores over the share of the training rows",
                f"{spread}, with few training rows and with many: paper, figures 7c and 7d.",
            ),
            (
                "scores_over_shots",
                prompt_curves(scores),
                "examples of each class",
                log_axis("{:g}".format),
                "Scores of learning by prompts over the examples of each class",
                f"{spread}, of fine-tuning by prompts: paper, table 4.",
            ),
            (
                "scores_over_crops",
                crop_curves(scores),
                "share of the text kept",
                percent_axis,
                "Scores over the share of a text that its second view keeps",
                f"{spread}, of pretrainings that differ in their crops: paper, figure 4.",
            ),
        )
        if curves
    ]
    header = ("task", "model", "learned from", "runs", "mean", "least", "greatest")
    rows = [
        [
            f"{score.task}, {score.metric}",
            score.model,
            _learned_from(score),
            str(len(score.values)),
            *(f"{100 * x:.1f}" for x in (score.mean, min(score.values), max(score.values))),
        ]
        for score in sorted(scores, key=lambda score: score.task)
    ]
    return (
        Markup("<p>Dev sets, all times 100.</p>")
        + table(header, rows, numeric=range(3, len(header)))
        + _figures(figures)
    )


def held_out_section(output: OutputFolder, held_out: Mapping[str, Mapping[str, float]]) -> Markup:
    """The losses and metrics of finished runs on held-out text."""
    measures = output.measures("held_out.csv", held_out, METRICS)
    return Markup(
        "<p>The finished runs on text that none was trained on. Cosines of a run without "
        "contrastive learning are those of its vectors as they are.</p>{}"
    ).format(measures)


def training_section(output: OutputFolder, runs: Sequence[Run], x_axis: str) -> Markup:
    """The curves of runs (paper, figures 7a, 7b and 8)."""
    output.numbers("curves.csv", *_curve_table(runs))
    figures = []
    for plot in tqdm(plots_of(*(run.metrics for run in runs)), desc="drawing", unit="plot"):
        title = f"{plot.title} over {X_AXES[x_axis]}"
        figure = draw_runs(plot, runs, x_axis)
        figures.append(output.figure(plot.name, figure, title, plot.note, "half"))
    return Markup("<p>Validation, where there was any; else training.</p>") + _figures(figures)


def _map_table(maps: Mapping[str, np.ndarray]) -> Table:
    rows = (
        (name, number % (len(places) // 2), 1 + number // (len(places) // 2), *place)
        for name, places in maps.items()
        for number, place in enumerate(places.round(6).tolist())
    )
    return ("preset", "pair", "sentence", "x", "y"), rows


def _score_table(scores: Sequence[Score]) -> Table:
    header = ("task", "metric", "model", "from_scratch", "train_fraction", "shots", "run", "step")
    rows = (
        (
            score.task,
            score.metric,
            score.model,
            score.from_scratch,
            score.train_fraction,
            score.shots,
            score.run.name if score.run else "",
            score.step if score.run else "",
            number,
            value,
        )
        for score in scores
        for number, value in enumerate(score.values)
    )
    return (*header, "number", "value"), rows


def _learned_from(score: Score) -> str:
    if score.shots:
        return f"{score.shots} examples a class, by prompts"
    start = "from scratch, " if score.from_scratch else ""
    at = f", at step {score.step:,}" if score.run else ""
    part = f"{score.train_fraction:.3g} of the" if score.train_fraction < 1 else "all"
    return f"{start}{part} rows{at}"


def _curve_table(runs: Sequence[Run]) -> Table:
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


def _figures(figures: Sequence[Markup]) -> Markup:
    return Markup("<div class='figures'>{}</div>").format(Markup("").join(figures))

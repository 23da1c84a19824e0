"""The sections of the comparison's page: each writes figures and numbers, and gives its HTML."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cocolm_tf.analysis.bands import draw_bands
from cocolm_tf.analysis.calibration import draw_calibration
from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.distributions import RANDOM, SIMILAR, draw_distributions
from cocolm_tf.analysis.judgement_chart import draw_judgements
from cocolm_tf.analysis.meanings import DETECTION_MEANINGS, MEANINGS, SPACE_MEANINGS
from cocolm_tf.analysis.metrics_log import TRAINING, VALIDATION
from cocolm_tf.analysis.minimal_pairs import ALL
from cocolm_tf.analysis.output import OutputFolder
from cocolm_tf.analysis.page import table
from cocolm_tf.analysis.plots import plots_of
from cocolm_tf.analysis.run_comparison import X_AXES, Run, draw_runs
from cocolm_tf.analysis.score_curves import (
    crop_curves,
    draw_crops,
    draw_few_shot,
    draw_pretraining,
    draw_prompts,
    few_shot_curves,
    pretraining_curves,
    prompt_curves,
)
from cocolm_tf.analysis.scores import Score
from cocolm_tf.analysis.sentence_map import draw_map, map_sentences
from cocolm_tf.analysis.sentence_space import SentenceSpace

# How tokens were replaced that were to be detected.
_CORRUPTIONS = {
    "auxiliary": "15% of the tokens replaced by the preset's auxiliary model",
    "random": "15% of the tokens replaced at random",
    "texts": "texts with mistakes",
}

# A table's header, and its rows.
Table = tuple[Sequence[str], Iterable[Sequence[object]]]


def space_section(output: OutputFolder, spaces: Mapping[str, SentenceSpace], seed: int) -> str:
    """What presets do with random and with similar sentences (paper, figures 1, 5 and 6).

    Args:
        output: gets the files.
        spaces: by the names of the presets.
        seed: int. Decides the map and what is marked on it.

    Returns:
        HTML.

    Example:
    ```python
    space_section(OutputFolder("analysis"), {"COCO-LM": describe_space(encode, pairs, texts)}, 0)
    ```
    """
    kinds = {name: _kinds(space) for name, space in spaces.items()}
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
    return output.measures("spaces.csv", measures, SPACE_MEANINGS) + _figures(figures)


def detection_section(
    output: OutputFolder, detections: Mapping[str, Mapping[str, Detections]]
) -> str:
    """How presets tell replaced tokens from original ones, and restore them.

    Args:
        output: gets the files.
        detections: by the kinds of corruption and then by the names of the presets.

    Returns:
        HTML.

    Example:
    ```python
    found = {"COCO-LM": detect(*load_pretrained("runs/first/preset"), "data/validation")}
    detection_section(OutputFolder("analysis"), {"auxiliary": found})
    ```
    """
    return "".join(_detection_part(output, kind, found) for kind, found in detections.items())


def _detection_part(output: OutputFolder, kind: str, found: Mapping[str, Detections]) -> str:
    how = _CORRUPTIONS[kind]
    figures = [
        output.figure(
            f"calibration_{kind}",
            draw_calibration(found),
            f"What the copy head says against what is so, {how}",
            "A dot on the diagonal is a probability to be taken at its word; its area shows how "
            "many tokens it stands for.",
        ),
        output.figure(
            f"frequency_{kind}",
            draw_bands({name: one.by_frequency() for name, one in found.items()}),
            f"Detection and correction by the frequency of the original token, {how}",
            "Found: the share of the replaced tokens that the copy head flags. Corrected: the "
            "share whose original is the LM head's best guess, or among its best five.",
        ),
    ]
    measures = {name: one.measures() for name, one in found.items()}
    return (
        f"<h3>{how.capitalize()}</h3>"
        + output.measures(f"detection_{kind}.csv", measures, DETECTION_MEANINGS)
        + _figures(figures)
    )


def minimal_pairs_section(
    output: OutputFolder, results: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> str:
    """Which of two sentences presets prefer.

    Args:
        output: gets the files.
        results: from the name of each preset, what `accuracies` returns.

    Returns:
        HTML.

    Example:
    ```python
    minimal_pairs_section(OutputFolder("analysis"), {"COCO-LM": accuracies(pairs, scores)})
    ```
    """
    columns = [(name, way) for name, shares in results.items() for way in shares[ALL]]
    categories = list(next(iter(results.values())))
    shares = [[results[name][category][way] for name, way in columns] for category in categories]
    output.numbers(
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
    figure = output.figure(
        "minimal_pairs",
        draw_judgements(results),
        "The share of pairs whose good sentence scores higher, by category",
        "50%, dotted, is chance.",
    )
    return (
        "<p>The share of pairs whose good sentence scores higher; 50% is chance. <b>masked</b>: by "
        "the LM head, each token masked in turn. <b>corrective</b>: by copy mechanism and LM head "
        "on the sentence as it is. <b>detection</b>: by the copy head alone.</p>"
        + table(header, rows, numeric=range(1, len(header)))
        + _figures([figure])
    )


def scores_section(output: OutputFolder, scores: Sequence[Score], x_axis: str) -> str:
    """What fine-tuned presets scored, over all that was varied (paper, figures 3, 4, 7c and 7d).

    Args:
        output: gets the files.
        scores: of any tasks, presets and fractions.
        x_axis: one of `X_AXES`, for scores over pretraining.

    Returns:
        HTML.

    Example:
    ```python
    scores_section(OutputFolder("analysis"), read_scores("runs/glue"), "hours")
    ```
    """
    output.numbers("scores.csv", *_score_table(scores))
    spread = "Means of the runs, and bars from the least to the greatest"
    kinds = (
        (
            "scores_over_pretraining",
            pretraining_curves(scores, x_axis),
            lambda curves: draw_pretraining(curves, x_axis),
            f"Scores of presets over {X_AXES[x_axis]} of their pretraining",
            f"{spread}, over how far pretraining was: paper, figure 3.",
        ),
        (
            "scores_over_fractions",
            few_shot_curves(scores),
            draw_few_shot,
            "Scores over the share of the training rows",
            f"{spread}, with few training rows and with many: paper, figures 7c and 7d.",
        ),
        (
            "scores_over_shots",
            prompt_curves(scores),
            draw_prompts,
            "Scores of learning by prompts over the examples of each class",
            f"{spread}, of fine-tuning by prompts: paper, table 4.",
        ),
        (
            "scores_over_crops",
            crop_curves(scores),
            draw_crops,
            "Scores over the share of a text that its second view keeps",
            f"{spread}, of pretrainings that differ in their crops: paper, figure 4.",
        ),
    )
    figures = [
        output.figure(name, draw(curves), description, note)
        for name, curves, draw, description, note in kinds
        if curves
    ]
    header = ("task", "model", "learned from", "runs", "mean", "least", "greatest")
    rows = [
        [
            html.escape(f"{score.task}, {score.metric}"),
            html.escape(score.model),
            _learned_from(score),
            str(len(score.values)),
            *(f"{100 * x:.1f}" for x in (score.mean, min(score.values), max(score.values))),
        ]
        for score in sorted(scores, key=lambda score: score.task)
    ]
    return (
        "<p>Dev sets, all times 100.</p>"
        + table(header, rows, numeric=range(3, len(header)))
        + _figures(figures)
    )


def held_out_section(output: OutputFolder, held_out: Mapping[str, Mapping[str, float]]) -> str:
    """What finished runs do on held-out text.

    Args:
        output: gets the files.
        held_out: by the names of the runs, what `measure_run` returns.

    Returns:
        HTML.

    Example:
    ```python
    held_out_section(OutputFolder("analysis"), {"COCO-LM": measure_run("runs/first", "data")})
    ```
    """
    return (
        "<p>The finished runs on text that none was trained on. Cosines of a run without "
        "contrastive learning are those of its vectors as they are.</p>"
        + output.measures("held_out.csv", held_out, MEANINGS)
    )


def training_section(output: OutputFolder, runs: Sequence[Run], x_axis: str) -> str:
    """The curves of runs (paper, figures 7a, 7b and 8).

    Args:
        output: gets the files.
        runs: at most as many as there are colors.
        x_axis: one of `X_AXES`.

    Returns:
        HTML.

    Example:
    ```python
    training_section(OutputFolder("analysis"), [read_run("COCO-LM", "runs/first")], "tokens")
    ```
    """
    output.numbers("curves.csv", *_curve_table(runs))
    figures = []
    for plot in tqdm(plots_of(*(run.metrics for run in runs)), desc="drawing", unit="plot"):
        title = f"{plot.title} over {X_AXES[x_axis]}"
        figure = draw_runs(plot, runs, x_axis)
        figures.append(output.figure(plot.name, figure, title, plot.note, "half"))
    return "<p>Validation, where there was any; else training.</p>" + _figures(figures)


def _kinds(space: SentenceSpace) -> dict[str, Any]:
    return {RANDOM: space.random_cosines, SIMILAR: space.similar_cosines}


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


def _figures(figures: Sequence[str]) -> str:
    return f"<div class='figures'>{''.join(figures)}</div>"

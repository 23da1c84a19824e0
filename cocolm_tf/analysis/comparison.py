"""The comparison of presets and runs: figures, numbers, and a page that shows them."""

import dataclasses
from collections.abc import Mapping, Sequence

import cocolm_tf
from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.output import OutputFolder
from cocolm_tf.analysis.page import page
from cocolm_tf.analysis.run_comparison import Run
from cocolm_tf.analysis.scores import Score
from cocolm_tf.analysis.sections import (
    detection_section,
    held_out_section,
    minimal_pairs_section,
    scores_section,
    space_section,
    training_section,
)
from cocolm_tf.analysis.sentence_space import SentenceSpace

PAGE_FILENAME, RESULTS_FILENAME = "index.html", "results.json"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What there is to compare; what is empty is left out.

    Args:
        spaces: sentence vectors and their measures, by the names of the presets.
        detections: what the heads say of corrupted text, by the kinds of corruption (`auxiliary`,
            `random`, `texts`) and then by the names of the presets.
        minimal_pairs: from the name of each preset, what `accuracies` returns.
        scores: of fine-tuned presets.
        held_out: measures on held-out text, by the names of the runs.
        runs: whose curves to draw.

    Example:
    ```python
    Findings(runs=[read_run("COCO-LM", "runs/first")])
    ```
    """

    spaces: Mapping[str, SentenceSpace] = dataclasses.field(default_factory=dict)
    detections: Mapping[str, Mapping[str, Detections]] = dataclasses.field(default_factory=dict)
    minimal_pairs: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    held_out: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    runs: Sequence[Run] = ()
    scores: Sequence[Score] = ()


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

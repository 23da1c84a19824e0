"""Scores of fine-tuned presets, and how they depend on what was varied (figures 3, 4 and 7)."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from cocolm_tf import files
from cocolm_tf.analysis.runs import Run, read_run
from cocolm_tf.errors import UserError
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.training.preset import BACKBONE_FILENAME

RESULTS_FILENAME = "results.json"


@dataclasses.dataclass(frozen=True)
class Score:
    """The scores of a preset on a task, in runs that differ in their seeds or splits."""

    model: str  # what to call the preset
    task: str  # with its part, as "MNLI matched", if it has several
    metric: str  # of the values
    values: tuple[float, ...]  # one of each run
    train_fraction: float = 1.0  # the share of the training rows that was learned from
    # How many examples of each class prompts learned from; 0 where it was no learning by prompts.
    shots: int = 0
    from_scratch: bool = False  # whether the weights of the preset were left aside
    fingerprint: str = ""  # the preset's; empty where it is not known
    run: Run | None = None  # the run that the preset is from, where it is known
    step: int = 0  # Of that run, where the preset was taken

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return sum(self.values) / len(self.values)


def read_scores(folder: str) -> list[Score]:
    """Reads what a fine-tuning program or a suite wrote.

    Args:
        folder: the `--output_dir` of `finetune_glue.py`, `finetune_table.py`, `finetune_squad.py`,
            `finetune_prompt.py` or `run_suite.py`, with its `results.json`.

    Returns:
        A score for each preset, task and part of its dev set. Those of a suite know their runs.

    Raises:
        UserError: if the folder has no such results.

    Example:
    ```python
    read_scores("runs/glue")[0].mean
    ```
    """
    path = os.path.join(folder, RESULTS_FILENAME)
    if not files.is_file(path):
        raise UserError(
            f"--scores={folder} has no {RESULTS_FILENAME}: give the --output_dir of a fine-tuning "
            "or of a suite."
        )
    try:
        results = json.loads(files.read_text(path))
        if "rows" in results:
            scores = list(_scores_of_suite(results, folder))
        else:
            scores = [score for each in results["experiments"] for score in _scores_of(each)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not what a fine-tuning or a suite writes: it must have `experiments` or "
            f"`rows` ({type(error).__name__}: {error})."
        ) from error
    if not scores:
        raise UserError(f"{path} has no scores yet.")
    return scores


def match_scores(
    scores: Iterable[Score], presets: Mapping[str, str], runs: Mapping[str, Run]
) -> list[Score]:
    """Finds the presets and runs that scores belong to."""
    # What is fine-tuned is known by its fingerprint, wherever it lies: a preset, the last one of a
    # run, or one that `export_checkpoints.py` took from it on the way.
    known = {fingerprint(folder): {"model": name} for name, folder in presets.items()}
    for folder, run in runs.items():
        for step, preset in _presets_of(folder, run):
            key = fingerprint(preset)
            # A preset's own name comes first.
            known[key] = {"model": run.name, "run": run, "step": step} | known.get(key, {})
    return [dataclasses.replace(score, **known.get(score.fingerprint, {})) for score in scores]


def _presets_of(folder: str, run: Run) -> Iterator[tuple[int, str]]:
    preset = os.path.join(folder, "preset")
    if files.is_file(os.path.join(preset, BACKBONE_FILENAME)):
        yield run.config.trainer.train_steps, preset
    exported = os.path.join(folder, "presets")
    for name in files.list_dir(exported):
        prefix, _, step = name.partition("_")
        if prefix == "step" and step.isdecimal():
            yield int(step), os.path.join(exported, name)


def _scores_of(experiment: Mapping[str, Any]) -> Iterator[Score]:
    """The scores of one experiment: `dev` of a fine-tuning, `test` of one by prompts."""
    parts = experiment["dev"] if "dev" in experiment else experiment["test"]
    for task, values in _values(experiment["task"], parts, experiment["metric"]):
        yield Score(
            _name(experiment["model"]),
            task,
            experiment["metric"],
            values,
            float(experiment.get("train_fraction", 1.0)),
            int(experiment.get("shots", 0)),
            bool(experiment.get("from_scratch", False)),
            experiment["preset_fingerprint"],
        )


def _scores_of_suite(results: Mapping[str, Any], folder: str) -> Iterator[Score]:
    titles = {task["name"]: task["title"] for task in results["tasks"]}
    for row in results["rows"]:
        model_dir = os.path.join(folder, "pretraining", row["name"], "run")
        run = read_run(row["title"], model_dir) if files.is_dir(model_dir) else None
        for name, found in (row.get("finetuning") or {}).items():
            for task, values in _values(titles[name], found.get("dev", {}), found.get("metric")):
                yield Score(
                    row["title"],
                    task,
                    found["metric"],
                    values,
                    from_scratch=bool(row.get("random_weights_of")),
                    run=run,
                    step=run.config.trainer.train_steps if run else 0,
                )


def _values(
    task: str, parts: Mapping[str, Any], metric: str
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The values of a metric on each part of a task, by the task's name with the part."""
    for part, metrics in parts.items():
        name = task if len(parts) == 1 else f"{task} {part}"
        yield name, tuple(map(float, metrics[metric]["values"]))


def _name(preset: str) -> str:
    """The name of an unnamed preset: its run's folder."""
    folder, name = os.path.split(files.absolute(preset))
    return os.path.basename(folder) if name == "preset" else name


# The functions below return a point a row: the `mean`, least (`low`) and greatest (`high`) score of
# a task, its `panel`, at `x` of the line that is called `line`.


def pretraining_curves(scores: Iterable[Score], x_axis: str) -> pd.DataFrame:
    """Scores over the progress of pretraining, with all training rows (paper, figure 3)."""
    chosen = (score for score in _of_all_rows(scores) if score.run and not score.from_scratch)
    points = _points(
        chosen, lambda score: score.run.name, lambda score: score.run.at(score.step, x_axis)
    )
    # Runs with a single point stay in panels with curves, which are compared with them.
    return points[points["panel"].isin(_varied(points)["panel"])]


def few_shot_curves(scores: Iterable[Score]) -> pd.DataFrame:
    """Scores over the share of the training rows (paper, figures 7c and 7d)."""
    chosen = (score for score in scores if not score.shots)
    return _varied(_points(chosen, _model, lambda score: score.train_fraction))


def prompt_curves(scores: Iterable[Score]) -> pd.DataFrame:
    """Scores of fine-tuning by prompts over the examples of each class (paper, table 4)."""
    return _points((score for score in scores if score.shots), _model, lambda score: score.shots)


def crop_curves(scores: Iterable[Score]) -> pd.DataFrame:
    """Scores over the share of a text that its crop keeps (paper, figure 4)."""
    chosen = [score for score in _of_all_rows(scores) if score.run and not score.from_scratch]
    chosen = [score for score in chosen if score.step == score.run.config.trainer.train_steps]
    # A line joins the runs that differ in nothing else, and has the name of the first of them.
    names: dict[str, str] = {}
    for score in chosen:
        names.setdefault(_all_but_crop(score), score.run.name)
    return _varied(
        _points(
            chosen,
            lambda score: names[_all_but_crop(score)],
            lambda score: score.run.config.data.crop_fraction,
        )
    )


def _of_all_rows(scores: Iterable[Score]) -> Iterable[Score]:
    return (score for score in scores if score.train_fraction == 1 and not score.shots)


def _model(score: Score) -> str:
    return f"{score.model}, from scratch" if score.from_scratch else score.model


def _all_but_crop(score: Score) -> str:
    config = score.run.config.as_dict()
    config["data"] = {k: v for k, v in config["data"].items() if k != "crop_fraction"}
    return json.dumps(config, sort_keys=True)


def _points(
    scores: Iterable[Score], line: Callable[[Score], str], x: Callable[[Score], float]
) -> pd.DataFrame:
    rows = [
        (f"{s.task}, {s.metric}", line(s), x(s), s.mean, min(s.values), max(s.values))
        for s in scores
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "mean", "low", "high"])


def _varied(points: pd.DataFrame) -> pd.DataFrame:
    """The points of lines with several places."""
    return points[points.groupby(["panel", "line"])["x"].transform("nunique") > 1]

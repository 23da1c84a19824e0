"""Scores of fine-tuned presets, from the results that the fine-tuning and suite programs write."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cocolm_tf import files
from cocolm_tf.analysis.run_comparison import Run, read_run
from cocolm_tf.errors import UserError
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.training.preset import BACKBONE_FILENAME

RESULTS_FILENAME = "results.json"


@dataclasses.dataclass(frozen=True)
class Score:
    """What a preset scored on a task, in runs that differ in their seeds or splits.

    Args:
        model: what to call the preset.
        task: with its part, as "MNLI matched", if it has several.
        metric: of the values.
        values: one of each run.
        train_fraction: the share of the training rows that was learned from.
        shots: int. How many examples of each class prompts learned from; 0 where it was no
            learning by prompts.
        from_scratch: whether the weights of the preset were left aside.
        fingerprint: the preset's; empty where it is not known.
        run: the run that the preset is from, where it is known.
        step: int. Of that run, where the preset was taken.

    Example:
    ```python
    Score("COCO-LM", "RTE", "accuracy", (0.61, 0.58, 0.6), train_fraction=0.1).mean
    ```
    """

    model: str
    task: str
    metric: str
    values: tuple[float, ...]
    train_fraction: float = 1.0
    shots: int = 0
    from_scratch: bool = False
    fingerprint: str = ""
    run: Run | None = None
    step: int = 0

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
            scores = [one for each in results["experiments"] for one in _scores_of(each)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not what a fine-tuning or a suite writes: it must have `experiments` or "
            f"`rows` ({type(error).__name__}: {error})."
        ) from error
    if not scores:
        raise UserError(f"{path} has no scores yet.")
    return scores


def place_scores(
    scores: Iterable[Score], presets: Mapping[str, str], runs: Mapping[str, Run]
) -> list[Score]:
    """Tells which of the presets and runs at hand scores belong to.

    What is fine-tuned is known by its fingerprint, wherever it lies: a preset, the last one of a
    run, or one that `export_checkpoints.py` took from it on the way.

    Args:
        scores: as read.
        presets: folders, by the names to give their scores.
        runs: by their folders.

    Returns:
        The scores, with the names and places of those that are known.

    Example:
    ```python
    place_scores(read_scores("runs/glue"), {}, {"runs/first": read_run("COCO-LM", "runs/first")})
    ```
    """
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
    """Those of one experiment: `dev` of a fine-tuning, `test` of one by prompts."""
    parts = experiment["dev"] if "dev" in experiment else experiment["test"]
    for part, metrics in parts.items():
        metric = experiment["metric"]
        yield Score(
            _name(experiment["model"]),
            _task(experiment["task"], part, parts),
            metric,
            tuple(map(float, metrics[metric]["values"])),
            float(experiment.get("train_fraction", 1.0)),
            int(experiment.get("shots", 0)),
            bool(experiment.get("from_scratch", False)),
            experiment["preset_fingerprint"],
        )


def _scores_of_suite(results: Mapping[str, Any], folder: str) -> Iterator[Score]:
    titles = {task["name"]: task["title"] for task in results["tasks"]}
    for row in results["rows"]:
        model_dir = os.path.join(folder, "pretraining", row["name"], "run")
        from_scratch = bool(row.get("random_weights_of"))
        run = read_run(row["title"], model_dir) if files.is_dir(model_dir) else None
        for task, found in (row.get("finetuning") or {}).items():
            for part, metrics in found.get("dev", {}).items():
                yield Score(
                    row["title"],
                    _task(titles[task], part, found["dev"]),
                    found["metric"],
                    tuple(map(float, metrics[found["metric"]]["values"])),
                    from_scratch=from_scratch,
                    run=run,
                    step=run.config.trainer.train_steps if run else 0,
                )


def _task(task: str, part: str, parts: Mapping[str, Any]) -> str:
    return task if len(parts) == 1 else f"{task} {part}"


def _name(preset: str) -> str:
    """What to call a preset that nobody named: its run's folder."""
    folder, name = os.path.split(files.absolute(preset))
    return os.path.basename(folder) if name == "preset" else name

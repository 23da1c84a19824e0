"""A fine-tuning experiment: search, several seeds, and what they say together.

OUT/
  results.md, results.json        all experiments of the folder
  submission/RTE.tsv              the best run's predictions for the leaderboard
  rte/                            one experiment
    results.json
    search/learning_rate=1e-05/   a run of the search
    seed_0/                       a run, see `jobs`: preset/, and what was predicted
"""

import dataclasses
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import Grid, from_dict, with_values
from cocolm_tf.finetuning.jobs import RESULTS_FILENAME, Job, JobRunner, write_json
from cocolm_tf.finetuning.results import summarize_runs, write_results
from cocolm_tf.finetuning.run import Run
from cocolm_tf.finetuning.search import grid_search
from cocolm_tf.fingerprints import content_fingerprints, fingerprint

_PREDICTIONS, _SUBMISSION = "predictions", "submission"

# What a run that diverged counts as in a search. No metric goes lower.
_WORST = -1.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seeds, and the search before them.

    Args:
        name: Of its folder.
        run: What all have in common.
        grid: What to search through first, on the dev set and with the first seed; empty for no
            search.
        seeds: int. How many runs.

    Example:
    ```python
    Experiment("rte", ClassificationRun(preset="runs/first/preset", ...), seeds=5)
    ```
    """

    name: str
    run: Run
    grid: Grid = dataclasses.field(default_factory=dict)
    seeds: int = 1

    @property
    def folder(self) -> str:
        """Its name, and what sets it apart from other experiments on the same task."""
        fraction = f"-{self.run.train_fraction:g}" if self.run.train_fraction < 1 else ""
        return self.name + fraction + ("-from_scratch" if self.run.from_scratch else "")


def run_experiment(experiment: Experiment, output_dir: str, at_once: int = 1) -> str:
    """Runs an experiment, or goes on where an earlier call with the same folder was ended.

    Args:
        experiment: What to run.
        output_dir: OUT, see above. It may hold other experiments.
        at_once: int. How many runs to do at a time.

    Returns:
        The path of the table of all results.

    Raises:
        UserError: If the data is not what it should be, the folder holds runs of another
            experiment, or a run diverged.

    Example:
    ```python
    run_experiment(experiment, "runs/glue", at_once=2)
    ```
    """
    title = experiment.run.check()
    folder = os.path.join(output_dir, experiment.folder)
    run = dataclasses.replace(
        experiment.run,
        preset=files.absolute(experiment.run.preset),
        preset_fingerprint=fingerprint(experiment.run.preset),
        content_fingerprints=content_fingerprints(experiment.run.files_read()),
    )
    trials = math.prod(map(len, experiment.grid.values())) if experiment.grid else 0
    searched = None
    with JobRunner(run.module, at_once, trials + experiment.seeds) as runner:
        if trials:
            searched = _search(
                run, experiment.grid, os.path.join(folder, "search"), runner, at_once
            )
            run = _with_values(run, searched["best"])
        jobs = [
            Job(
                os.path.join(folder, f"seed_{seed}"),
                dataclasses.asdict(dataclasses.replace(run, seed=seed)),
                f"{title}, seed {seed}",
            )
            for seed in range(experiment.seeds)
        ]
        found = runner.run_all(jobs)
    for job, results in zip(jobs, found, strict=True):
        if results.get("diverged"):
            raise UserError(
                f"{job.label} diverged: its outputs are not finite. Lower optimizer.learning_rate "
                "or lengthen optimizer.warmup_fraction."
            )
    summary = _summary(experiment, run, jobs, found, output_dir) | {"search": searched}
    write_json(summary, os.path.join(folder, RESULTS_FILENAME))
    if run.has_leaderboard and run.train_fraction == 1 and not run.from_scratch:
        _submit(os.path.join(output_dir, summary["best_run"], _PREDICTIONS), output_dir)
    return write_results(output_dir)


def _summary(
    experiment: Experiment,
    run: Run,
    jobs: Sequence[Job],
    found: Sequence[dict[str, Any]],
    output_dir: str,
) -> dict[str, Any]:
    best = max(range(len(found)), key=lambda number: found[number]["score"])
    shared = ("task", "metric", "parameters", "baseline", "data", "device", "versions")
    return {
        **{key: found[0][key] for key in shared},
        "model": experiment.run.preset,
        "preset_fingerprint": run.preset_fingerprint,
        "train_fraction": run.train_fraction,
        "from_scratch": run.from_scratch,
        "train_rows": found[0]["data"]["train"]["rows"],
        "dev": summarize_runs([results["dev"] for results in found]),
        "seeds": list(range(experiment.seeds)),
        "best_seed": best,
        "best_run": files.relative(jobs[best].folder, output_dir),
        "examples_per_second": statistics.median(r["examples_per_second"] for r in found),
        "seconds": sum(results["seconds"] for results in found),
        "config": run.config,
    }


def _search(run: Run, grid: Grid, folder: str, runner: JobRunner, at_once: int) -> dict[str, Any]:
    trials = []

    def score(values: dict[str, Any]) -> float:
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
        trial = dataclasses.replace(_with_values(run, values), save_preset=False)
        job = Job(os.path.join(folder, name), dataclasses.asdict(trial), name)
        result = runner.run(job).get("score", _WORST)
        trials.append({"values": values, "score": result})
        return result

    best = grid_search(grid, score, at_once)
    trials.sort(key=lambda trial: -trial["score"])
    runner.say(f"best of {len(trials)} combinations: {best}")
    return {"best": best, "trials": trials}


def _with_values(run: Run, values: dict[str, Any]) -> Run:
    config = with_values(from_dict(run.config, "the configuration"), values, "the search")
    return dataclasses.replace(run, config=config.as_dict())


def _submit(predictions: str, output_dir: str) -> None:
    """Puts predictions where those of all tasks lie, ready to be zipped."""
    submission = os.path.join(output_dir, _SUBMISSION)
    for name in files.list_dir(predictions):
        files.make_dirs(submission)
        content = files.read_bytes(os.path.join(predictions, name))
        files.write_bytes(os.path.join(submission, name), content)

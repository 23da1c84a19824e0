"""A fine-tuning experiment: search, several seeds, and what they say together.

OUT/
  results.md, results.json        all experiments of the folder
  submission/RTE.tsv              the best run's predictions for the leaderboard
  rte/                            one experiment
    results.json
    search/learning_rate=1e-05/   a run of the search
    seed_0/                       a run, see `jobs`: preset/, predictions/
"""

import dataclasses
import itertools
import os
import shutil
import statistics
from typing import Any

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.classification_run import ClassificationRun, read_task
from cocolm_tf.finetuning.config import FinetuningConfig, Grid, with_values
from cocolm_tf.finetuning.jobs import Job, JobRunner, write_json
from cocolm_tf.finetuning.presets import fingerprint
from cocolm_tf.finetuning.results import RESULTS_FILENAME, summarize_runs, write_results
from cocolm_tf.finetuning.search import grid_search

# Not imported: its processes are what needs TensorFlow.
_MODULE = "cocolm_tf.finetuning.classification"
_PREDICTIONS, _SUBMISSION = "predictions", "submission"

# What a run that diverged counts as in a search. No metric goes lower.
_WORST = -1.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seeds, and the search before them.

    Args:
        name: Of its folder.
        preset: The folder of the encoder to start from.
        data: See `ClassificationRun`.
        config: Of every run.
        grid: What to search through first, on the dev set and with the first seed; empty for no
            search.
        seeds: int. How many runs.
        train_fraction: The share of the training examples to learn from.
        from_scratch: Whether to start from random weights in the preset's architecture.

    Example:
    ```python
    Experiment("rte", "runs/first/preset", {"glue": {"task": "rte"}}, config, seeds=5)
    ```
    """

    name: str
    preset: str
    data: dict[str, dict[str, Any]]
    config: FinetuningConfig
    grid: Grid = dataclasses.field(default_factory=dict)
    seeds: int = 1
    train_fraction: float = 1.0
    from_scratch: bool = False

    @property
    def folder(self) -> str:
        """Its name, and what sets it apart from other experiments on the same task."""
        fraction = f"-{self.train_fraction:g}" if self.train_fraction < 1 else ""
        return self.name + fraction + ("-from_scratch" if self.from_scratch else "")


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
    data = read_task(experiment.data)  # A mistake in it is told before any process starts.
    folder = os.path.join(output_dir, experiment.folder)
    base = ClassificationRun(
        preset=os.path.abspath(experiment.preset),
        preset_fingerprint=fingerprint(experiment.preset),
        data=experiment.data,
        config=experiment.config.as_dict(),
        train_fraction=experiment.train_fraction,
        from_scratch=experiment.from_scratch,
    )
    trials = len(list(itertools.product(*experiment.grid.values()))) if experiment.grid else 0
    config = experiment.config
    searched = None
    with JobRunner(_MODULE, at_once, trials + experiment.seeds) as runner:
        if trials:
            searched = _search(experiment, base, os.path.join(folder, "search"), runner, at_once)
            config = with_values(config, searched["best"], "the search")
        jobs = [
            Job(
                os.path.join(folder, f"seed_{seed}"),
                dataclasses.asdict(dataclasses.replace(base, config=config.as_dict(), seed=seed)),
                f"{data.name}, seed {seed}",
            )
            for seed in range(experiment.seeds)
        ]
        runs = runner.run_all(jobs)
    for job, run in zip(jobs, runs, strict=True):
        if run.get("diverged"):
            raise UserError(
                f"{job.label} diverged: its outputs are not finite. Lower optimizer.learning_rate "
                "or lengthen optimizer.warmup_fraction."
            )
    best = max(range(len(runs)), key=lambda number: runs[number]["score"])
    write_json(
        {
            "task": data.name,
            "model": experiment.preset,
            "preset_fingerprint": base.preset_fingerprint,
            "train_fraction": experiment.train_fraction,
            "from_scratch": experiment.from_scratch,
            "train_rows": runs[0]["data"]["train"]["rows"],
            "parameters": runs[0]["parameters"],
            "metric": runs[0]["metric"],
            "dev": summarize_runs(runs),
            "seeds": list(range(experiment.seeds)),
            "best_seed": best,
            "best_run": os.path.relpath(jobs[best].folder, output_dir),
            "examples_per_second": statistics.median(run["examples_per_second"] for run in runs),
            "seconds": sum(run["seconds"] for run in runs),
            "config": config.as_dict(),
            "search": searched,
            "data": runs[0]["data"],
            "device": runs[0]["device"],
            "versions": runs[0]["versions"],
        },
        os.path.join(folder, RESULTS_FILENAME),
    )
    if experiment.train_fraction == 1 and not experiment.from_scratch:
        _submit(os.path.join(jobs[best].folder, _PREDICTIONS), output_dir)
    return write_results(output_dir)


def _search(
    experiment: Experiment, base: ClassificationRun, folder: str, runner: JobRunner, at_once: int
) -> dict[str, Any]:
    trials = []

    def score(values: dict[str, Any]) -> float:
        config = with_values(experiment.config, values, "the search")
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
        run = dataclasses.replace(base, config=config.as_dict(), save_preset=False)
        job = Job(os.path.join(folder, name), dataclasses.asdict(run), name)
        result = runner.run(job).get("score", _WORST)
        trials.append({"values": values, "score": result})
        return result

    os.makedirs(folder, exist_ok=True)
    best = grid_search(experiment.grid, score, folder, at_once)
    trials.sort(key=lambda trial: -trial["score"])
    runner.say(f"best of {len(trials)} combinations: {best}")
    return {"best": best, "trials": trials}


def _submit(predictions: str, output_dir: str) -> None:
    """Puts predictions where those of all tasks lie, ready to be zipped."""
    if not os.path.isdir(predictions):
        return
    submission = os.path.join(output_dir, _SUBMISSION)
    os.makedirs(submission, exist_ok=True)
    for name in os.listdir(predictions):
        shutil.copy(os.path.join(predictions, name), os.path.join(submission, name + ".tmp"))
        os.replace(os.path.join(submission, name + ".tmp"), os.path.join(submission, name))

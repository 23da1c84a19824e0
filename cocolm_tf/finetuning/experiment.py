"""A fine-tuning experiment: a search, runs of several seeds, and their results together.

OUT/
  results.md, results.json        all experiments of the folder
  submission/RTE.tsv              the best run's predictions for the leaderboard
  rte/                            one experiment
    results.json
    search/learning_rate=1e-05/   a run of the search; in search/seed_13/ where each seed has one
    seed_0/                       a run, see `cocolm_tf.finetuning.run`
    ensemble/                     the mean of what all runs predict, in files like a run's
"""

import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import Grid, from_dict, with_values
from cocolm_tf.finetuning.metrics import comparable
from cocolm_tf.finetuning.predictions import PREDICTIONS_DIRECTORY
from cocolm_tf.finetuning.report import summarize_runs, write_results
from cocolm_tf.finetuning.tasks.task import METRICS_FILENAME, RESUMED_BY, STATE_FILENAME, Task
from cocolm_tf.fingerprints import content_fingerprints, fingerprint
from cocolm_tf.jobs import RESULTS_FILENAME, Job, JobRunner, leave_devices, write_json

# Run in processes of its own and not imported here: only they may occupy the devices.
MODULE = "cocolm_tf.finetuning.run"

_SUBMISSION, _ENSEMBLE = "submission", "ensemble"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs of a task that differ in their seeds, after a search where one is wanted.

    Args:
        name: What the experiment's folder is called.
        task: What all runs have in common. Its own `seed` does not count.
        grid: The values to search through first, chosen among by the dev set, by their keys:
            `{"optimizer.learning_rate": [1e-5, 2e-5]}`; empty for no search.
        seeds: One run for each.
        reduction: Successive halving: after each stage of the search, one in so many of the
            combinations is trained further, so many times as long; 1 trains all of them to the end.
        search_each_seed: Whether every seed has a search of its own. Otherwise the one of the first
            seed holds for all.
        ensemble: Whether to measure the mean of what all runs predict as well; see
            `Task.ensemble`.

    Example:
    ```python
    Experiment("rte", ClassificationTask(preset="runs/first/preset", ...), seeds=range(5))
    ```
    """

    name: str
    task: Task
    grid: Grid = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    reduction: int = 3
    search_each_seed: bool = False
    ensemble: bool = False

    @property
    def folder(self) -> str:
        """The folder's name: `name`, and what tells it from other experiments on the same task."""
        fraction = f"-{self.task.train_fraction:g}" if self.task.train_fraction < 1 else ""
        return self.name + fraction + ("-from_scratch" if self.task.from_scratch else "")


def run_experiment(
    experiment: Experiment,
    output_dir: str,
    at_once: int = 1,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Runs an experiment, or resumes it where an earlier call with the same folder was stopped.

    Runs that diverge are listed in the results and left out of their statistics.

    Args:
        experiment: What to run.
        output_dir: The folder of the results. It may hold other experiments.
        at_once: How many runs to do at a time, each in a process of its own.
        options: Arguments of `run_task` that do not change the results, as
            `{"distribution_strategy": "mirrored"}`.

    Returns:
        The path of `results.md`, the table of all experiments in the folder.

    Raises:
        UserError: If the data is not what it should be, the folder holds runs of another
            experiment, or all runs diverged.

    Example:
    ```python
    run_experiment(experiment, "runs/glue", at_once=2)
    ```
    """
    leave_devices()
    title, options = experiment.task.check(), options or {}
    task = dataclasses.replace(
        experiment.task,
        preset=files.absolute(experiment.task.preset),
        # Computed once and not by each run: presets may be large.
        preset_fingerprint=fingerprint(experiment.task.preset),
        content_fingerprints=content_fingerprints(experiment.task.files_read()),
    )
    folder = os.path.join(output_dir, experiment.folder)
    search = _Search(experiment, task, folder, title, options)
    with JobRunner(MODULE, at_once, search.cost + len(experiment.seeds)) as runner:
        tasks = search.run(runner)
        jobs = [
            _job(
                os.path.join(folder, f"seed_{one.seed}"), one, f"{title}, seed {one.seed}", options
            )
            for one in tasks
        ]
        search.move_checkpoints(jobs)
        found = runner.run_all(jobs)
    search.remove_checkpoints()
    done = [(job, results) for job, results in zip(jobs, found, strict=True) if "score" in results]
    if not done:
        raise UserError(
            f"{title}: all {len(jobs)} runs diverged: their outputs are not finite. Lower "
            "optimizer.learning_rate or lengthen optimizer.warmup_fraction."
        )
    summary = _summary(experiment, task, done, output_dir) | {
        "diverged": [
            task.seed for task, one in zip(tasks, found, strict=True) if "score" not in one
        ],
        "config": (tasks[0] if not experiment.search_each_seed else task).config,
        "search": search.report(),
    }
    best_run = os.path.join(output_dir, summary["best_run"])
    if experiment.ensemble:
        best_run = os.path.join(folder, _ENSEMBLE)
        together = task.ensemble([job.folder for job, _ in done], best_run)
        summary["ensemble"] = together | {"seeds": summary["seeds"]}
    write_json(summary, os.path.join(folder, RESULTS_FILENAME))
    if task.has_leaderboard and task.train_fraction == 1 and not task.from_scratch:
        _submit(os.path.join(best_run, PREDICTIONS_DIRECTORY), output_dir)
    return write_results(output_dir)


def _job(folder: str, task: Task, label: str, options: Mapping[str, Any]) -> Job:
    return Job(folder, task.spec(), label, keeps=RESUMED_BY, options=options)


def _summary(
    experiment: Experiment,
    task: Task,
    done: Sequence[tuple[Job, Mapping[str, Any]]],
    output_dir: str,
) -> dict[str, Any]:
    runs = [results for _, results in done]
    first = runs[0]
    best_job, best = max(done, key=lambda one: comparable(first["metric"], one[1]["score"]))
    shared = ("task", "metric", "parameters", "baseline", "data", "device", "versions")
    return {
        **{key: first[key] for key in (*shared, *task.shared_results) if key in first},
        **task.facts_of_experiment(),
        "model": experiment.task.preset,
        "preset_fingerprint": task.preset_fingerprint,
        "train_fraction": task.train_fraction,
        "from_scratch": task.from_scratch,
        "train_rows": first["data"]["train"]["rows"],
        **{
            part: summarize_runs([run[part] for run in runs])
            for part in ("dev", "test")
            if part in first
        },
        "seeds": [job.spec["seed"] for job, _ in done],
        "best_seed": best_job.spec["seed"],
        "best_run": files.relative(best_job.folder, output_dir),
        "assessment": best.get("assessment", {}),
        "examples_per_second": statistics.median(run["examples_per_second"] for run in runs),
        "seconds": sum(run["seconds"] for run in runs),
    }


@dataclasses.dataclass
class _Trial:
    """A combination of values that a search tries, and how good it was so far."""

    values: dict[str, Any]
    job: Job
    score: float | None = None
    share: float = 0.0  # of a run, up to which it was trained; 0 where it diverged
    gain: float = 0.0

    def take(self, results: Mapping[str, Any], share: float) -> None:
        """Takes the results of training up to a share of a run."""
        self.score, self.share, self.gain = None, 0.0, -math.inf
        if "score" in results:  # It did not diverge.
            # In a resumed search the run may have been trained past this stage.
            seen = results["epochs"][: math.ceil(share * results["evaluations"])]
            metric = results["metric"]
            self.score = max(
                (one["score"] for one in seen), key=lambda one: comparable(metric, one)
            )
            self.share, self.gain = share, comparable(metric, self.score)


class _Search:
    """Successive halving over a grid: fewer and fewer combinations are trained further."""

    # A run of the search pauses at the end of its stage, with a checkpoint that it resumes from in
    # the next stage. The first seed's final run resumes from the best combination's checkpoint, so
    # that nothing is trained twice.

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        folder: str,
        title: str,
        options: Mapping[str, Any],
    ) -> None:
        self._experiment, self._task = experiment, task
        grid, seeds = experiment.grid, list(experiment.seeds)
        combinations = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        # By seed, of those that have a search.
        self._trials: dict[int, list[_Trial]] = {}
        for seed in (seeds if experiment.search_each_seed else seeds[:1]) if grid else ():
            name = f"seed_{seed}" if experiment.search_each_seed else ""
            self._trials[seed] = []
            for values in combinations:
                words = ",".join(f"{key.rpartition('.')[2]}={one}" for key, one in values.items())
                label = ", ".join(filter(None, [title, name.replace("_", " "), words]))
                path = os.path.join(folder, "search", name, words)
                trial = dataclasses.replace(self._with(values, seed), save_preset=False)
                self._trials[seed].append(_Trial(values, _job(path, trial, label, options)))
        self._stages = _stages(
            len(combinations),
            min((_evaluations(self._with(values, 0)) for values in combinations), default=1),
            experiment.reduction,
        )

    @property
    def cost(self) -> float:
        """What the search costs, in whole runs."""
        before, cost = 0.0, 0.0
        for share, count in self._stages:
            cost += count * (share - before)
            before = share
        return round(len(self._trials) * cost, 2)

    def run(self, runner: JobRunner) -> list[Task]:
        """Searches, and returns the task of each seed with its best values."""
        left = dict(self._trials)
        for share, count in self._stages if left else ():
            left = {seed: _ranked(trials)[:count] for seed, trials in left.items()}
            trials = [trial for trials in left.values() for trial in trials]
            jobs = [dataclasses.replace(trial.job, until=share) for trial in trials]
            for trial, results in zip(trials, runner.run_all(jobs), strict=True):
                trial.take(results, share)
        for seed, trials in self._trials.items():
            which = f"seed {seed}: " if self._experiment.search_each_seed else ""
            best = _ranked(trials)[0].values
            runner.say(f"{which}best of {len(trials)} combinations: {best}")
        return [self._task_of(seed) for seed in self._experiment.seeds]

    def move_checkpoints(self, jobs: Sequence[Job]) -> None:
        """Moves the checkpoints of the best combinations to the runs, which resume from them."""
        for job in jobs:
            trials = self._trials.get(job.spec["seed"])
            if not trials or job.results() is not None:
                continue
            source = _ranked(trials)[0].job.folder
            for name, move in ((STATE_FILENAME, files.rename), (METRICS_FILENAME, files.copy)):
                if files.is_file(os.path.join(source, name)):
                    files.make_dirs(job.folder)
                    move(os.path.join(source, name), os.path.join(job.folder, name))

    def remove_checkpoints(self) -> None:
        """Removes the search's checkpoints, which nothing will resume from."""
        for trial in itertools.chain.from_iterable(self._trials.values()):
            files.remove(os.path.join(trial.job.folder, STATE_FILENAME))

    def report(self) -> Any:
        """The values tried and their scores, by seed where each had a search; None without one."""
        reports = {}
        for seed, trials in self._trials.items():
            ranked = [
                {"values": trial.values, "score": trial.score, "share": trial.share}
                for trial in _ranked(trials)
            ]
            reports[str(seed)] = {"best": ranked[0]["values"], "trials": ranked}
        if self._experiment.search_each_seed:
            return reports or None
        return next(iter(reports.values()), None)

    def _task_of(self, seed: int) -> Task:
        if not self._trials:
            return dataclasses.replace(self._task, seed=seed)
        trials = self._trials.get(seed) or next(iter(self._trials.values()))
        return self._with(_ranked(trials)[0].values, seed)

    def _with(self, values: Mapping[str, Any], seed: int) -> Task:
        config = from_dict(self._task.config, "the configuration")
        config = with_values(config, dict(values), "the search").as_dict()
        return dataclasses.replace(self._task, config=config, seed=seed)


def _ranked(trials: Sequence[_Trial]) -> list[_Trial]:
    """Orders trials: those trained furthest first, and of these the best first."""
    return sorted(trials, key=lambda trial: (-trial.share, -trial.gain))


def _evaluations(task: Task) -> int:
    """How many measurements on the dev set a run has, by its configuration alone."""
    trainer = from_dict(task.config, "the configuration").trainer
    if trainer.steps and trainer.validation_interval:
        return max(1, trainer.steps // trainer.validation_interval)
    return trainer.epochs


def _stages(combinations: int, evaluations: int, reduction: int) -> list[tuple[float, int]]:
    """The stages of a search: the share of a run to train up to, and how many combinations."""
    count = 0
    while reduction > 1 and reduction ** (count + 1) <= min(combinations, evaluations):
        count += 1
    return [
        (reduction ** (stage - count) if count else 1.0, -(-combinations // reduction**stage))
        for stage in range(count + 1)
    ]


def _submit(predictions: str, output_dir: str) -> None:
    """Copies predictions into the one folder that is zipped for the leaderboard."""
    submission = os.path.join(output_dir, _SUBMISSION)
    for name in files.list_dir(predictions):
        files.make_dirs(submission)
        content = files.read_bytes(os.path.join(predictions, name))
        files.write_bytes(os.path.join(submission, name), content)

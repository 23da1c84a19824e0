"""Runs a suite: pretrains and fine-tunes every row, alike but for what the row changes.

OUT/
  results.md, results.json           the table, from the first result on
  curves/                            the pretrainings on common axes
  pretraining/rtd_only/              a job, see `jobs`; its run/ is a pretraining run
  finetuning/rtd_only/rte/seed_0/    a job
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.data.glue import glue_files
from cocolm_tf.data.pipeline import absolute_datasets
from cocolm_tf.finetuning.tasks.classification import ClassificationTask
from cocolm_tf.finetuning.tasks.task import RESUMED_BY
from cocolm_tf.fingerprints import content_fingerprints, fingerprint
from cocolm_tf.jobs import CONTENT_KEY, Job, JobRunner, refuse_another, write_json
from cocolm_tf.suite.plan import Plan, Row, Run, preset_folder, pretraining_folder, run_folder
from cocolm_tf.suite.results import pretraining_cost, suite_page, suite_results, write_curves
from cocolm_tf.training.distribution import StopSignal
from cocolm_tf.training.identity import dataset_fingerprint

# Named, not imported: the processes that run it need TensorFlow, this one does not.
_MODULE = "cocolm_tf.suite.job"

_RESULTS_FILENAME, _TABLE_FILENAME = "results.json", "results.md"


@dataclasses.dataclass(frozen=True)
class PretrainingInputs:
    """What every row reads.

    Args:
        train_data: Folder or glob of shards, or several with weights, as `wiki=0.7,books=0.3`.
        vocabulary: Folder of the vocabulary that the shards were built with.
        validation_data: Folder or glob of held-out shards; empty for none.

    Example:
    ```python
    PretrainingInputs("data/train", "vocabulary", "data/held_out")
    ```
    """

    train_data: str
    vocabulary: str
    validation_data: str = ""


def run_suite(
    plan: Plan,
    inputs: PretrainingInputs | None,
    output_dir: str,
    processes: int = 1,
    options: Mapping[str, str] | None = None,
) -> str:
    """Runs a suite, or resumes where an earlier call with the same folder stopped.

    All rows are pretrained first, in their order. With the first seed all of them are fine-tuned on
    the first task, on the second and so on; then with the second seed. So whenever it stops, the
    columns of the table compare like with like.

    Args:
        plan: What to run.
        inputs: What to pretrain on; None if no row is pretrained.
        output_dir: OUT above.
        processes: How many runs are done at a time. They share the cores and the GPUs.
        options: On which devices each run is computed, `distribution_strategy` and `tpu` as
            `make_strategy` takes them; one device where they say nothing.

    Returns:
        The path of the table.

    Raises:
        UserError: If something given is not what it should be, the folder holds runs of another
            suite, or a pretraining failed.
        RestartableError: If SIGTERM ends it. Called again, it resumes.

    Example:
    ```python
    run_suite(plan, PretrainingInputs("data/train", "vocabulary"), "runs/table3", processes=2)
    ```
    """
    suite_run = _SuiteRun(plan, inputs, output_dir, options or {})
    suite_run.look()
    with StopSignal(), JobRunner(_MODULE, processes, len(plan.runs())) as runner:
        suite_run.do(runner, processes)
    if plan.configs:
        write_curves(plan, output_dir)
    return suite_run.write_table()


class _SuiteRun:
    """The jobs of a suite, and the results of those that are done."""

    def __init__(
        self,
        plan: Plan,
        inputs: PretrainingInputs | None,
        output_dir: str,
        options: Mapping[str, str],
    ) -> None:
        self._plan, self._inputs, self._output_dir = plan, inputs, output_dir
        self._options = options
        self._contents = {
            task.name: content_fingerprints(glue_files(**task.data["glue"])) for task in plan.tasks
        }
        self._datasets = {
            name: dataset_fingerprint(path)
            for name, path in (dataclasses.asdict(inputs) if inputs else {}).items()
            if name != "vocabulary"  # The shards' manifests have its fingerprint.
        }
        # Many jobs start from one preset, which does not change once its run has ended.
        self._fingerprint = functools.cache(fingerprint)
        self._pretrained: dict[str, dict[str, Any]] = {}
        self._finetuned: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}

    def look(self) -> None:
        """Reads the results of an earlier call; refuses folders of other runs."""
        for run in self._plan.runs():
            if run.task is None:
                refuse_another(self._job(run))
            source = self._plan.source(run.row)
            if run.task is None or source.preset or source.name in self._pretrained:
                self._take(run, self._job(run).results())

    def do(self, runner: JobRunner, processes: int) -> None:
        """Runs all jobs, and writes the table after each of them."""
        pretrainings: dict[str, concurrent.futures.Future] = {}
        futures: dict[concurrent.futures.Future, Run] = {}
        with concurrent.futures.ThreadPoolExecutor(processes) as pool:
            # A job waits only for jobs that began before it, so that one can always proceed.
            for run in self._plan.runs():
                names = run.row.needs()
                if run.task is not None:
                    names = (self._plan.source(run.row).name,)
                needed = [pretrainings[name] for name in names if name in pretrainings]
                future = pool.submit(self._do_one, run, needed, runner)
                futures[future] = run
                if run.task is None:
                    pretrainings[run.row.name] = future
            try:
                for future in concurrent.futures.as_completed(futures):
                    if isinstance(future.exception(), concurrent.futures.CancelledError):
                        continue  # Another job failed: its exception has the reason.
                    self._take(futures[future], future.result())
                    self.write_table()
            except BaseException:
                for future in futures:
                    future.cancel()
                runner.close()
                raise

    def write_table(self) -> str:
        """Writes the results so far, and returns the path of the table."""
        results = suite_results(self._plan, self._pretrained, self._finetuned)
        write_json(results, os.path.join(self._output_dir, _RESULTS_FILENAME))
        path = os.path.join(self._output_dir, _TABLE_FILENAME)
        files.write_text(path, suite_page(results))
        return path

    def _do_one(
        self, run: Run, needed: Sequence[concurrent.futures.Future], runner: JobRunner
    ) -> dict[str, Any]:
        for pretraining in needed:
            pretraining.result()
        return runner.run(self._job(run))

    def _take(self, run: Run, results: dict[str, Any] | None) -> None:
        if results is None:
            return
        name = run.row.name
        if run.task is None:
            cost = pretraining_cost(self._plan.configs[name], run_folder(self._output_dir, name))
            self._pretrained[name] = results | cost
        else:
            self._finetuned.setdefault((name, run.task.name), {})[run.seed] = results

    def _job(self, run: Run) -> Job:
        if run.task is None:
            return self._pretraining_job(run.row)
        source = self._plan.source(run.row)
        preset = source.preset or preset_folder(self._output_dir, source.name)
        name = os.path.join(run.row.name, run.task.name, f"seed_{run.seed}")
        return Job(
            os.path.join(self._output_dir, "finetuning", name),
            {
                "finetuning": ClassificationTask(
                    preset=preset,
                    preset_fingerprint=self._fingerprint(preset),
                    content_fingerprints=self._contents[run.task.name],
                    data=run.task.data,
                    config=run.task.config.as_dict(),
                    seed=run.seed,
                    from_scratch=bool(run.row.random_weights_of),
                    save_preset=False,
                ).spec()
            },
            f"{run.row.title}, {run.task.title}, seed {run.seed}",
            keeps=RESUMED_BY,
            options=self._options,
        )

    def _pretraining_job(self, row: Row) -> Job:
        inputs = {
            name: path and (absolute_datasets if name == "train_data" else files.absolute)(path)
            for name, path in dataclasses.asdict(self._inputs).items()
        }
        return Job(
            pretraining_folder(self._output_dir, row.name),
            {
                "pretraining": {
                    "config": self._plan.configs[row.name].as_dict(),
                    **inputs,
                    CONTENT_KEY: self._datasets,
                }
            },
            row.title,
            resumes=True,
            options=self._options,
        )

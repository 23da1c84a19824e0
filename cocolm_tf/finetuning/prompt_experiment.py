"""Prompt-based fine-tuning over several splits: the paper's Table 4 on any task of GLUE.

OUT/
  results.md, results.json                all experiments of the folder
  sst2-prompts/
    results.json
    split_0/learning_rate=3e-06/          a run, see `jobs`; the best of a split keeps its preset/
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.data.few_shot import few_shot_split
from cocolm_tf.data.glue import glue_files, read_glue
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.jobs import RESULTS_FILENAME, Job, JobRunner, write_json
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.finetuning.results import summarize_runs, write_results
from cocolm_tf.fingerprints import content_fingerprints, fingerprint

# Not imported: its processes are what needs TensorFlow.
_MODULE = "cocolm_tf.finetuning.prompting"
_PRESET = "preset"


def run_prompt_experiment(
    run: PromptRun, output_dir: str, splits: int = 5, at_once: int = 1
) -> str:
    """Runs every learning rate on every split, or goes on where an earlier call was ended.

    Args:
        run: What all have in common.
        output_dir: OUT, see above. It may hold other experiments.
        splits: How many draws of the few examples.
        at_once: int. How many runs to do at a time.

    Returns:
        The path of the table of all results.

    Raises:
        UserError: If the data is not what it should be, the folder holds runs of another
            experiment, all runs of a split diverged, or as `run_prompting`.

    Example:
    ```python
    run_prompt_experiment(run, "runs/prompts", splits=5)
    ```
    """
    # A mistake in the data is told before any process starts.
    few_shot_split(read_glue(run.task, run.data_dir), run.shots, run.seed)
    folder = os.path.join(output_dir, f"{run.task}-prompts")
    base = dataclasses.replace(
        run,
        preset=files.absolute(run.preset),
        preset_fingerprint=fingerprint(run.preset),
        content_fingerprints=content_fingerprints(glue_files(run.task, run.data_dir)),
    )
    rates = run.config["learning_rates"]
    jobs = [
        Job(
            os.path.join(folder, f"split_{seed}", f"learning_rate={rate:g}"),
            dataclasses.asdict(dataclasses.replace(base, seed=seed, learning_rate=rate)),
            f"{run.task}, split {seed}, learning rate {rate:g}",
        )
        for seed in range(splits)
        for rate in rates
    ]
    with JobRunner(_MODULE, at_once, len(jobs)) as runner:
        found = runner.run_all(jobs)
    best = [
        _best(jobs[start : start + len(rates)], found[start : start + len(rates)])
        for start in range(0, len(jobs), len(rates))
    ]
    first = best[0][1]
    shared = ("task", "metric", "label_words", "parameters", "baseline", "device", "versions")
    write_json(
        {
            **{key: first[key] for key in shared},
            "model": run.preset,
            "preset_fingerprint": base.preset_fingerprint,
            "shots": run.shots,
            "template": run.template,
            "test": summarize_runs([results["test"] for _, results in best]),
            "learning_rates": [job.spec["learning_rate"] for job, _ in best],
            "best_runs": [files.relative(job.folder, output_dir) for job, _ in best],
            "seconds": sum(results.get("seconds", 0.0) for results in found),
            "config": run.config,
        },
        os.path.join(folder, RESULTS_FILENAME),
    )
    return write_results(output_dir)


def _best(jobs: Sequence[Job], runs: Sequence[dict[str, Any]]) -> tuple[Job, dict[str, Any]]:
    """The run of a split that is best on its few dev examples; the others lose their presets."""
    done = [pair for pair in zip(jobs, runs, strict=True) if not pair[1].get("diverged")]
    if not done:
        raise UserError(
            f"{jobs[0].label} and its like diverged: their outputs are not finite. Lower "
            "learning_rates."
        )
    best = max(done, key=lambda pair: pair[1]["score"])
    for job in jobs:
        if job is not best[0]:
            files.remove_tree(os.path.join(job.folder, _PRESET))
    return best

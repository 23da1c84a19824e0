"""Fine-tuning on SQuAD with several seeds.

OUT/
  results.md, results.json        all experiments of the folder
  squad/
    results.json
    seed_0/                       a run, see `jobs`: preset/, predictions.json, null_odds.json,
                                  nbest_predictions.json
"""

import dataclasses
import os
import statistics

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.jobs import Job, JobRunner, write_json
from cocolm_tf.finetuning.presets import fingerprint
from cocolm_tf.finetuning.results import RESULTS_FILENAME, summarize_runs, write_results
from cocolm_tf.finetuning.squad_run import SquadRun, read_questions

NAME = "squad"

# Not imported: its processes are what needs TensorFlow.
_MODULE = "cocolm_tf.finetuning.squad"


def run_squad_experiment(run: SquadRun, output_dir: str, seeds: int = 1, at_once: int = 1) -> str:
    """Fine-tunes, or goes on where an earlier call with the same folder was ended.

    Args:
        run: What to do with every seed.
        output_dir: OUT, see above. It may hold experiments on other tasks.
        seeds: int. How many runs.
        at_once: int. How many runs to do at a time.

    Returns:
        The path of the table of all results.

    Raises:
        UserError: If the data or the preset is not what it should be, the folder holds runs of
            another experiment, or a run diverged.

    Example:
    ```python
    run_squad_experiment(run, "runs/squad", seeds=5)
    ```
    """
    for part in ("train", "dev"):
        read_questions(run, part)  # A mistake in it is told before any process starts.
    base = dataclasses.replace(
        run, preset=os.path.abspath(run.preset), preset_fingerprint=fingerprint(run.preset)
    )
    folder = os.path.join(output_dir, NAME + ("-from_scratch" if run.from_scratch else ""))
    jobs = [
        Job(
            os.path.join(folder, f"seed_{seed}"),
            dataclasses.asdict(dataclasses.replace(base, seed=seed)),
            f"SQuAD, seed {seed}",
        )
        for seed in range(seeds)
    ]
    with JobRunner(_MODULE, at_once, seeds) as runner:
        results = runner.run_all(jobs)
    for job, result in zip(jobs, results, strict=True):
        if result.get("diverged"):
            raise UserError(
                f"{job.label} diverged: its outputs are not finite. Lower optimizer.learning_rate "
                "or lengthen optimizer.warmup_fraction."
            )
    best = max(range(seeds), key=lambda number: results[number]["score"])
    shared = ("task", "parameters", "metric", "data", "device", "versions", "always_unanswerable")
    write_json(
        {
            **{key: results[0][key] for key in shared},
            "model": run.preset,
            "preset_fingerprint": base.preset_fingerprint,
            "train_fraction": 1.0,
            "from_scratch": run.from_scratch,
            "train_rows": results[0]["data"]["train"]["rows"],
            "dev": summarize_runs(results),
            "official": results[best]["official"],
            "seeds": list(range(seeds)),
            "best_seed": best,
            "best_run": os.path.relpath(jobs[best].folder, output_dir),
            "examples_per_second": statistics.median(r["examples_per_second"] for r in results),
            "seconds": sum(result["seconds"] for result in results),
            "config": run.config,
        },
        os.path.join(folder, RESULTS_FILENAME),
    )
    return write_results(output_dir)

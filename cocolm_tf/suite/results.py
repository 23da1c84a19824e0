"""What a suite's runs say together: medians and spreads over seeds, and what the rows cost."""

import statistics
from collections.abc import Mapping
from typing import Any

from cocolm_tf.analysis.metrics_log import TRAINING, read_metrics
from cocolm_tf.finetuning.results import summarize, summarize_runs
from cocolm_tf.suite.definition import Row
from cocolm_tf.suite.plan import Plan
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.flops import pretraining_flops
from cocolm_tf.training.stages import Total, tokens_per_step

# What there is of one row and task: from each seed the results of `run_classification`.
Seeds = Mapping[int, Mapping[str, Any]]


def pretraining_cost(config: PretrainingConfig, model_dir: str) -> dict[str, Any]:
    """Reckons what a finished pretraining took.

    Args:
        config: What was run.
        model_dir: Its folder.

    Returns:
        `steps`, `tokens` (padding included), `tokens_per_second` (the median of what was logged),
        `flops` (the model's, of all steps), and `minutes` (validation and all sittings included).

    Example:
    ```python
    pretraining_cost(config, "runs/table3/pretraining/rtd_only/run")["tokens_per_second"]
    ```
    """
    metrics, steps = read_metrics(model_dir), config.trainer.train_steps
    _, rates = metrics.series(TRAINING, "tokens_per_second")
    return {
        "steps": steps,
        "tokens": Total(config, tokens_per_step)(steps),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "flops": Total(config, lambda stage: sum(pretraining_flops(stage).values()))(steps),
        "minutes": metrics.seconds / 60,
    }


def suite_results(
    plan: Plan,
    pretrained: Mapping[str, Mapping[str, Any]],
    finetuned: Mapping[tuple[str, str], Seeds],
) -> dict[str, Any]:
    """Puts together what there is.

    Args:
        plan: The suite.
        pretrained: From the name of a row what its job and `pretraining_cost` returned.
        finetuned: From the names of a row and a task what its jobs returned, by their seeds.

    Returns:
        What JSON can hold: the `rows` in their order, each with its `pretraining`, its
        `finetuning` by tasks and its `average`.

    Example:
    ```python
    suite_results(plan, {}, {})["rows"][0]["title"]
    ```
    """
    return {
        "suite": plan.suite.name,
        "seeds": plan.seeds,
        "tasks": [{"name": task.name, "title": task.title} for task in plan.tasks],
        "rows": [_row(plan, row, pretrained, finetuned) for row in plan.suite.rows],
    }


def _row(
    plan: Plan,
    row: Row,
    pretrained: Mapping[str, Mapping[str, Any]],
    finetuned: Mapping[tuple[str, str], Seeds],
) -> dict[str, Any]:
    of_tasks = {task.name: finetuned.get((row.name, task.name), {}) for task in plan.tasks}
    of_tasks = {name: dict(sorted(seeds.items())) for name, seeds in of_tasks.items()}
    medians = [_of_task(seeds) for seeds in of_tasks.values()]
    complete = bool(medians) and all("score" in one for one in medians)
    return {
        "name": row.name,
        "title": row.title,
        "group": row.group,
        "changes": list(row.changes),
        "auxiliary_of": row.auxiliary_of,
        "random_weights_of": row.random_weights_of,
        "pretraining": pretrained.get(row.name),
        "finetuning": {name: _of_task(seeds) for name, seeds in of_tasks.items() if seeds},
        "average": statistics.fmean(one["score"]["median"] for one in medians)
        if complete
        else None,
        "averages": _averages(of_tasks),
    }


def _of_task(seeds: Seeds) -> dict[str, Any]:
    done = {seed: run for seed, run in seeds.items() if not run.get("diverged")}
    found: dict[str, Any] = {"seeds": list(done), "diverged": len(seeds) - len(done)}
    if done:
        runs = list(done.values())
        found["metric"] = runs[0]["metric"]
        # That of the first dev set, as in the paper's averages.
        found["score"] = summarize([run["score"] for run in runs])
        found["dev"] = summarize_runs([run["dev"] for run in runs])
        found["minutes"] = sum(run["seconds"] for run in runs) / 60
    return found


def _averages(of_tasks: Mapping[str, Seeds]) -> dict[str, Any] | None:
    """The averages over the tasks of each seed that all tasks were fine-tuned with, summed up."""
    averages = []
    for seed in sorted(set.intersection(*map(set, of_tasks.values()))) if of_tasks else ():
        scores = [seeds[seed].get("score") for seeds in of_tasks.values()]
        if None not in scores:
            averages.append(statistics.fmean(scores))
    return summarize(averages) if averages else None

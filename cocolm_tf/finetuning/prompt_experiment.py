"""Prompt-based fine-tuning over several splits: the paper's Table 4 on any task of GLUE.

OUT/
  results.md, results.json                all tasks of the folder
  sst2/
    results.json
    split_0/learning_rate=3e-06/          a run, see `jobs`; the best of a split keeps its preset/
"""

import dataclasses
import glob
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.jobs import Job, JobRunner, write_json
from cocolm_tf.finetuning.presets import fingerprint
from cocolm_tf.finetuning.prompt_config import Prompt, PromptConfig
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.finetuning.results import (
    RESULTS_FILENAME,
    TABLE_FILENAME,
    markdown_table,
    summarize,
)

# Not imported: its processes are what needs TensorFlow.
_MODULE = "cocolm_tf.finetuning.prompting"
_PRESET = "preset"


def run_prompt_experiment(
    preset: str,
    task: str,
    data_dir: str | None,
    config: PromptConfig,
    prompt: Prompt,
    shots: int,
    splits: int,
    output_dir: str,
    at_once: int = 1,
) -> str:
    """Runs every learning rate on every split, or goes on where an earlier call was ended.

    Args:
        preset: The folder of the pretrained model.
        task: One of `GLUE_TASKS`.
        data_dir: As for `read_glue`.
        config: Of every run.
        prompt: Of the task.
        shots: How many examples of each class to learn from, and as many to choose by.
        splits: How many draws of these.
        output_dir: OUT, see above. It may hold other tasks.
        at_once: int. How many runs to do at a time.

    Returns:
        The path of the table of all results.

    Raises:
        UserError: If the folder holds runs of another experiment, all runs of a split diverged,
            or as `run_prompting`.

    Example:
    ```python
    config, prompt = load_prompt_config("configs/finetune/prompts.yaml", "sst2")
    run_prompt_experiment("runs/first/preset", "sst2", None, config, prompt, 16, 5, "runs/prompts")
    ```
    """
    folder = os.path.join(output_dir, task)
    base = PromptRun(
        preset=os.path.abspath(preset),
        preset_fingerprint=fingerprint(preset),
        task=task,
        data_dir=data_dir,
        template=prompt.template,
        words=prompt.words,
        config=config.as_dict(),
        learning_rate=0.0,
        shots=shots,
    )
    jobs = [
        Job(
            os.path.join(folder, f"split_{seed}", f"learning_rate={rate:g}"),
            dataclasses.asdict(dataclasses.replace(base, seed=seed, learning_rate=rate)),
            f"{task}, split {seed}, learning rate {rate:g}",
        )
        for seed in range(splits)
        for rate in config.learning_rates
    ]
    with JobRunner(_MODULE, at_once, len(jobs)) as runner:
        runs = runner.run_all(jobs)
    per_split = len(config.learning_rates)
    best = [
        _best(jobs[start : start + per_split], runs[start : start + per_split])
        for start in range(0, len(jobs), per_split)
    ]
    test = {
        part: {metric: summarize([run["test"][part][metric] for _, run in best]) for metric in one}
        for part, one in best[0][1]["test"].items()
    }
    write_json(
        {
            "task": best[0][1]["task"],
            "model": preset,
            "preset_fingerprint": base.preset_fingerprint,
            "shots": shots,
            "template": prompt.template,
            "label_words": best[0][1]["label_words"],
            "parameters": best[0][1]["parameters"],
            "metric": best[0][1]["metric"],
            "test": test,
            "learning_rates": [job.spec["learning_rate"] for job, _ in best],
            "best_runs": [os.path.relpath(job.folder, output_dir) for job, _ in best],
            "seconds": sum(run.get("seconds", 0.0) for run in runs),
            "config": config.as_dict(),
            "device": best[0][1]["device"],
            "versions": best[0][1]["versions"],
        },
        os.path.join(folder, RESULTS_FILENAME),
    )
    return _write_table(output_dir)


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
            shutil.rmtree(os.path.join(job.folder, _PRESET), ignore_errors=True)
    return best


def _write_table(output_dir: str) -> str:
    experiments = []
    for path in sorted(glob.glob(os.path.join(glob.escape(output_dir), "*", RESULTS_FILENAME))):
        with open(path, encoding="utf-8") as file:
            experiments.append(json.load(file))
    write_json({"experiments": experiments}, os.path.join(output_dir, RESULTS_FILENAME))
    lines = []
    for experiment in experiments:
        for part, metrics in experiment["test"].items():
            name = experiment["task"] if part == "dev" else f"{experiment['task']} {part}"
            for metric, summary in metrics.items():
                lines.append(
                    [
                        name,
                        experiment["model"],
                        metric,
                        f"{100 * summary['mean']:.1f} ({100 * summary['std']:.1f})",
                        f"{100 * summary['min']:.1f}",
                        f"{100 * summary['max']:.1f}",
                        str(len(summary["values"])),
                        str(experiment["shots"]),
                        f"`{experiment['template']}`",
                        ", ".join(experiment["label_words"]),
                    ]
                )
    header = ["Task", "Model", "Metric", "Mean (std)", "Min", "Max", "Splits", "Shots"]
    text = (
        "# Prompt-based fine-tuning\n\n"
        "Dev sets, none of whose examples was learned from or chosen by; all times 100. A split "
        "has so many shots of each class to learn from and as many to choose the learning rate "
        "and the step by. Table 4 of the COCO-LM paper has the mean and the standard deviation "
        "over 5 splits of 16 shots, on MNLI.\n\n"
    )
    path = os.path.join(output_dir, TABLE_FILENAME)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text + markdown_table([*header, "Template", "Label words"], lines) + "\n")
    os.replace(path + ".tmp", path)
    return path

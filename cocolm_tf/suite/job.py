"""The process of one of a suite's jobs: the pretraining or a fine-tuning of a row."""

import os
from typing import Any

import keras
import tensorflow as tf

from cocolm_tf.analysis.runs import measure_run
from cocolm_tf.costs.accelerators import describe_device
from cocolm_tf.finetuning.run import run_task
from cocolm_tf.jobs import STRATEGY_OPTION, Reporter, serve
from cocolm_tf.training.checkpoints import steps_taken
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.distribution import make_strategy
from cocolm_tf.training.preset import read_backbone
from cocolm_tf.training.pretraining import pretrain
from cocolm_tf.versions import own_versions


def run_row_job(
    spec: dict[str, Any], folder: str, reporter: Reporter, **options: str
) -> dict[str, Any]:
    """Runs a job of a suite, on the devices that the options name."""
    ((kind, arguments),) = spec.items()
    if kind == "finetuning":
        return run_task(arguments, folder, reporter, **options)
    strategy = make_strategy(options.get(STRATEGY_OPTION, "one_device"), options.get("tpu", ""))
    return _pretrain(arguments, os.path.join(folder, "run"), reporter, strategy)


def _pretrain(
    arguments: dict[str, Any], model_dir: str, reporter: Reporter, strategy: tf.distribute.Strategy
) -> dict[str, Any]:
    config = PretrainingConfig()
    config.override(arguments["config"])
    preset = pretrain(
        config,
        arguments["train_data"],
        arguments["vocabulary"],
        model_dir,
        strategy,
        arguments["validation_data"],
        callbacks=[_Report(reporter, config.trainer.train_steps)],
    )
    results = {
        "headline": f"pretrained, {config.trainer.train_steps:,} steps",
        "preset": preset,
        "parameters": read_backbone(preset, load_weights=False).count_params(),
        "device": describe_device(),
        "versions": own_versions(),
    }
    if arguments["validation_data"]:
        results["held_out"] = measure_run(model_dir, arguments["validation_data"])
    return results


class _Report(keras.callbacks.Callback):
    """Reports the progress of a pretraining."""

    def __init__(self, reporter: Reporter, train_steps: int) -> None:
        super().__init__()
        self._reporter, self._train_steps = reporter, train_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = steps_taken(self.model)
        loss = f"loss {float(logs['loss']):.2f}" if "loss" in (logs or {}) else ""
        self._reporter.progress(step / self._train_steps, f"step {step}, {loss}")

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._reporter.progress(steps_taken(self.model) / self._train_steps, "validation")


if __name__ == "__main__":
    serve(run_row_job)

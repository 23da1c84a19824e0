"""Runs to compare: their logs, the FLOPs of their steps, their metrics on held-out text."""

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.analysis.metrics_log import Metrics, read_metrics
from cocolm_tf.analysis.presets import load_run
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.augmentation import word_starts
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import UserError
from cocolm_tf.training.build import build_augmentation
from cocolm_tf.training.config import PretrainingConfig, load_config
from cocolm_tf.training.stages import Total, tokens_per_step

# The horizontal axes for curves of runs, and their titles.
X_AXES = {"steps": "step", "tokens": "tokens read", "flops": "model FLOPs", "hours": "hours"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to compare."""

    name: str  # what to call it
    metrics: Metrics  # what it logged
    config: PretrainingConfig  # what it is of

    def abscissa(self, split: str, x_axis: str) -> np.ndarray:
        """The positions of its lines on an axis of `X_AXES`."""
        if x_axis == "hours":
            return self.metrics.elapsed(split) / 3600
        total = self._total(x_axis)
        return np.array([total(line["step"]) for line in self.metrics.lines[split]], np.float64)

    def at(self, step: int, x_axis: str) -> float:
        """The position of a step on an axis of `X_AXES`; hours are those of the log around it."""
        if x_axis != "hours":
            return self._total(x_axis)(step)
        steps, hours = (
            np.concatenate([self.abscissa(split, axis) for split in self.metrics.lines])
            for axis in ("steps", "hours")
        )
        order = np.argsort(steps, kind="stable")
        return float(np.interp(step, [0, *steps[order]], [0, *hours[order]]))

    def series(self, split: str, name: str, x_axis: str) -> tuple[np.ndarray, np.ndarray]:
        """The positions of a metric's values on an axis of `X_AXES`, and the values."""
        lines = self.metrics.lines[split]
        has = np.array([name in line for line in lines], bool)
        values = np.array([line[name] for line in lines if name in line], np.float64)
        return self.abscissa(split, x_axis)[has], values

    def _total(self, x_axis: str) -> Total:
        of_step = {
            "tokens": tokens_per_step,
            "flops": lambda config: sum(pretraining_flops(config).values()),
        }
        return Total(self.config, of_step.get(x_axis, lambda _: 1))


def read_run(name: str, model_dir: str) -> Run:
    """Reads a run for comparison, which may be unfinished.

    Args:
        name: what to call it.
        model_dir: its folder.

    Returns:
        The run.

    Raises:
        UserError: if the folder is not that of a run.

    Example:
    ```python
    read_run("COCO-LM", "runs/first")
    ```
    """
    metrics = read_metrics(model_dir)
    config_file = os.path.join(model_dir, "config.yaml")
    if not files.is_file(config_file):
        raise UserError(f"{model_dir} has no config.yaml: give the --model_dir of a run.")
    return Run(name, metrics, load_config(config_file))


def measure_run(model_dir: str, data: str, batches: int = 20, batch_size: int = 32) -> dict:
    """Measures a finished run's preset on shards.

    The cosines of the two views (paper, figures 7a and 7b) are measured of a run without
    contrastive learning too: of its [CLS] vectors as they are.

    Args:
        model_dir: the run's folder, with its `config.yaml` and `preset/`.
        data: folder or glob of shards, built with the run's vocabulary.
        batches: How many to measure on; fewer if there are not as many.
        batch_size: Sequences of each.

    Returns:
        The losses and measures by their names, means over the batches.

    Raises:
        UserError: if the run is not finished, or the shards are of another vocabulary.

    Example:
    ```python
    measure_run("runs/first", "data/validation")["positive_cosine"]
    ```
    """
    config = load_config(os.path.join(model_dir, "config.yaml"))
    changes = [] if config.objective.scl_weight else _CONTRAST_VECTORS_AS_THEY_ARE
    pretrainer, tokenizer = load_run(model_dir, changes)
    manifest = Manifest.load(data)
    if manifest.vocabulary_fingerprint != tokenizer.fingerprint():
        raise UserError(
            f"--data={data} was built with another vocabulary than {model_dir}'s: build it with "
            f"--vocabulary={os.path.join(model_dir, 'preset')}."
        )
    opened = PretrainingData.open(
        data,
        config.data.sequence_length,
        build_augmentation(
            config, tokenizer.mask_token_id, word_starts(tokenizer.get_vocabulary())
        ),
    )
    measured = opened.validation_batches(min(batch_size, manifest.counts["sequences"]), batches)
    means: dict[str, keras.metrics.Mean] = {}

    @tf.function(autograph=False)
    def measure(batch: dict[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        losses, measures = pretrainer.compute(batch, training=False)
        weights = pretrainer.denominators(batch)
        return measures | {name: (loss, weights[name]) for name, loss in losses.items()}

    for batch in tqdm(measured, desc=os.path.basename(model_dir), unit="batch"):
        for name, (value, weight) in measure(batch).items():
            means.setdefault(name, keras.metrics.Mean(name=name)).update_state(value, weight)
    return {name: float(mean.result()) for name, mean in means.items()}


# The [CLS] vectors as they are: these changes need no weights that a preset may lack.
_CONTRAST_VECTORS_AS_THEY_ARE = ["objective.scl_weight=1", "objective.projection=false"]

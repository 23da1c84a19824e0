"""Pretraining runs: their logs, the horizontal axes of their curves, and held-out measurements."""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.augmentation import Augmentation, SpecialTokens, word_starts
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.build import Pretrainer, build_augmentation, build_pretrainer
from cocolm_tf.training.config import PretrainingConfig, load_config
from cocolm_tf.training.monitoring import METRICS_FILENAME
from cocolm_tf.training.preset import BACKBONE_FILENAME, load_preset
from cocolm_tf.training.stages import Total, tokens_per_step

TRAINING, VALIDATION = "train", "validation"
# The horizontal axes for curves of runs, and their titles.
X_AXES = {"steps": "step", "tokens": "tokens read", "flops": "model FLOPs", "hours": "hours"}
# The [CLS] vectors without a projection: these changes need no weights that a preset may lack.
_CONTRAST_WITHOUT_PROJECTION = ["objective.scl_weight=1", "objective.projection=false"]


def read_metrics(model_dir: str) -> pd.DataFrame:
    """Reads the log of a run, which may be unfinished: a row for each line, sorted by step."""
    # Its columns are `step`, `split` (train or validation) and the metrics, NaN where one was not
    # logged or not finite.
    path = os.path.join(model_dir, METRICS_FILENAME)
    if not files.is_file(path):
        raise UserError(
            f"{model_dir} has no {METRICS_FILENAME}: give the --model_dir of a pretraining run."
        )
    rows = []
    # What follows the last end of a line is being written.
    for number, text in enumerate(files.read_text(path).split("\n")[:-1], start=1):
        try:
            line = dict(json.loads(text))
            step, split = int(line.pop("step")), line.pop("split")
            if split not in (TRAINING, VALIDATION):
                raise ValueError(split)
            values = {name: float(value) for name, value in line.items() if value is not None}
            rows.append({"step": step, "split": split, **values})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}, is not a line of metrics: it must be a JSON object "
                "with step, split (train or validation) and numbers."
            ) from error
    if not rows:
        raise UserError(f"{path} has no lines yet: wait for the run's first log_interval.")
    return pd.DataFrame(rows).sort_values("step", kind="stable", ignore_index=True)


def elapsed_seconds(log: pd.DataFrame) -> pd.Series:
    """The seconds from the start of a run to each line of its log, over all of its attempts."""
    logged = log.sort_values(["step", "seconds"], kind="stable")["seconds"]
    # Each attempt of a resumed run counts from 0.
    passed = logged.diff().fillna(logged)
    return passed.where(passed >= 0, logged).cumsum().reindex(log.index)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A pretraining run."""

    name: str  # what to call it
    log: pd.DataFrame  # what `read_metrics` returns
    config: PretrainingConfig

    def positions(self, x_axis: str) -> pd.Series:
        """The position of each line of the log on an axis of `X_AXES`."""
        if x_axis == "hours":
            return elapsed_seconds(self.log) / 3600
        return self.log["step"].map(self._total(x_axis)).astype(float)

    def at(self, step: int, x_axis: str) -> float:
        """The position of a step on an axis of `X_AXES`; hours are interpolated from the log."""
        if x_axis != "hours":
            return self._total(x_axis)(step)
        return float(np.interp(step, [0, *self.log["step"]], [0, *self.positions("hours")]))

    def series(self, split: str, name: str, x_axis: str = "steps") -> pd.Series:
        """The values of a metric, by their positions on an axis of `X_AXES`."""
        if name not in self.log:
            return pd.Series(dtype=float)
        values = self.log[name].set_axis(self.positions(x_axis))
        return values[(self.log["split"] == split).to_numpy()].dropna()

    def final(self) -> dict[str, float]:
        """The last validation line, or the last training line of a run without validation."""
        lines = self.log[self.log["split"] == VALIDATION]
        return (self.log if lines.empty else lines).iloc[-1].dropna().to_dict()

    def _total(self, x_axis: str) -> Total:
        per_step = {
            "steps": lambda _: 1,
            "tokens": tokens_per_step,
            "flops": lambda config: sum(pretraining_flops(config).values()),
        }
        return Total(self.config, per_step[x_axis])


def read_run(name: str, model_dir: str) -> Run:
    """Reads the log and the configuration of a run, which may be unfinished.

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
    return Run(name, read_metrics(model_dir), load_config(config_file(model_dir)))


def config_file(model_dir: str) -> str:
    """The path of a run's configuration, which must exist."""
    path = os.path.join(model_dir, "config.yaml")
    if not files.is_file(path):
        raise UserError(f"{model_dir} has no config.yaml: give the --model_dir of a run.")
    return path


def load_run(
    model_dir: str, changes: Sequence[str] = ()
) -> tuple[CocoLMPretrainer, CocoLMTokenizer]:
    """Loads the models of a finished run in float32, with its objective, and its tokenizer."""
    config = load_config(config_file(model_dir), ["runtime.precision=float32", *changes])
    preset = os.path.join(model_dir, "preset")
    if not files.is_file(os.path.join(preset, BACKBONE_FILENAME)):
        raise UserError(f"{model_dir} has no preset yet: it is written when the run ends.")
    pretrainer = build_pretrainer(config, mask_token_id=config.model.vocabulary_size - 1)
    with files.local_copy(preset) as local:
        load_preset(pretrainer, local)
        return pretrainer, CocoLMTokenizer.from_preset(local)


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
    config = load_config(config_file(model_dir))
    changes = [] if config.objective.scl_weight else _CONTRAST_WITHOUT_PROJECTION
    pretrainer, tokenizer = load_run(model_dir, changes)
    held_out = held_out_batches(
        data,
        os.path.join(model_dir, "preset"),
        tokenizer,
        batches,
        batch_size,
        config.data.sequence_length,
        build_augmentation(
            config, tokenizer.mask_token_id, word_starts(tokenizer.get_vocabulary())
        ),
    )
    return mean_metrics(pretrainer, tqdm(held_out, desc=files.name(model_dir), unit="batch"))


def held_out_batches(
    data: str,
    preset: str,
    tokenizer: CocoLMTokenizer,
    batches: int,
    batch_size: int,
    sequence_length: int | None = None,
    augmentation: Augmentation | None = None,
) -> tf.data.Dataset:
    """Batches of shards of a preset's vocabulary, masked alike every time."""
    manifest = Manifest.load(data)
    if manifest.vocabulary_fingerprint != tokenizer.fingerprint():
        raise UserError(
            f"--data={data} was built with another vocabulary than {preset}: build it with that "
            "preset as its --vocabulary."
        )
    opened = PretrainingData.open(
        data,
        sequence_length or manifest.sequence_length,
        augmentation or Augmentation(SpecialTokens(mask=tokenizer.mask_token_id)),
    )
    return opened.validation_batches(min(batch_size, manifest.counts["sequences"]), batches)


def mean_metrics(
    pretrainer: Pretrainer, batches: Iterable[dict[str, tf.Tensor]]
) -> dict[str, float]:
    """The means of the losses and measures of a pretrainer over batches."""
    sums: dict[str, np.ndarray] = {}

    @tf.function(autograph=False)
    def measure(batch: dict[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        losses, measures = pretrainer.compute(batch, training=False)
        weights = pretrainer.denominators(batch)
        return measures | {name: (loss, weights[name]) for name, loss in losses.items()}

    for batch in batches:
        for name, (value, weight) in measure(batch).items():
            value, weight = float(value), float(weight)
            sums[name] = sums.get(name, 0.0) + np.array([value * weight, weight])
    return {name: float(total / (weight or 1.0)) for name, (total, weight) in sums.items()}

"""What a run has left, as far as two runs of the same must agree on it."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from cocolm_tf.training.monitoring import METRICS_FILENAME

CLOCK = ("seconds", "tokens_per_second")


def metrics(model_dir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, less what depends on the machine's speed."""
    lines = map(json.loads, (model_dir / METRICS_FILENAME).read_text().splitlines())
    return [{name: line[name] for name in line if name not in CLOCK} for line in lines]


def weights(model_dir: Path, step: int) -> dict[str, np.ndarray]:
    """All that a checkpoint holds: weights, moments, counters."""
    checkpoint = tf.train.load_checkpoint(str(model_dir / "checkpoints" / f"ckpt-{step}"))
    names = checkpoint.get_variable_to_shape_map()
    return {name: checkpoint.get_tensor(name) for name in names if name.startswith("state/")}


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """To the bit: the checkpoint of a step, and all metrics."""
    first, second = weights(one, step), weights(other, step)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert metrics(one) == metrics(other)

"""The smallest model with everything that a training step deals with."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf.losses import weighted_mean
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.modeling.transformer import Dropout


class Toy(TrainingStep):
    """A linear map, with the means of two errors over two kinds of weights.

    In eager execution `masks` collects where each pass dropped its inputs, by replica.
    """

    loss_weights = {"near": 1.0, "far": 3.0}

    def __init__(self, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(0)
        self.drop = Dropout(dropout, self.generator)
        self.linear = keras.layers.Dense(2, use_bias=False)
        self.linear.build((None, 3))
        self.linear.kernel.assign(np.linspace(-1, 1, 6).reshape(3, 2))
        self.built = True
        self.masks: list[tuple[int, np.ndarray]] = []

    def compute(self, batch, training):
        dropped = self.drop(batch["x"], training=training)
        if tf.executing_eagerly() and training:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            self.masks.append((int(replica), dropped.numpy() == 0))
        errors = tf.reduce_sum((self.linear(dropped) - batch["y"]) ** 2, axis=1)
        losses = {
            "near": weighted_mean(errors, batch["near"]),
            "far": weighted_mean(errors, batch["far"]),
        }
        weight = tf.reduce_sum(batch["far"])
        return losses, {"size": (weighted_mean(batch["x"][:, 0], batch["far"]), weight)}

    def denominators(self, batch):
        return {name: tf.reduce_sum(batch[name]) for name in ("near", "far")}

    def seed_generators(self):
        yield self.generator

    def meter_names(self):
        return ["near", "far", "size"]

    @property
    def kernel(self) -> np.ndarray:
        return self.linear.kernel.numpy()


def toy_batch(seed: int = 0, rows: int = 8) -> dict[str, np.ndarray]:
    """A batch whose weights are uneven over any parts that it is cut into."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=(rows, 2)).astype(np.float32),
        "near": np.array([1, 1, 1, 1, 1, 1, 0, 1] * (rows // 8), np.float32),
        "far": np.array([0, 0, 0, 0, 1, 0, 1, 1] * (rows // 8), np.float32),
    }


def toy_objective(batch, kernel) -> tuple[float, dict[str, float], np.ndarray]:
    """The objective, the losses and the gradient, in float64."""
    x, y = np.float64(batch["x"]), np.float64(batch["y"])
    residuals = x @ kernel - y
    losses, gradient = {}, 0
    for name, weight in Toy.loss_weights.items():
        share = batch[name] / batch[name].sum()
        losses[name] = float(share @ (residuals**2).sum(axis=1))
        gradient = gradient + weight * 2 * x.T @ (share[:, np.newaxis] * residuals)
    return sum(Toy.loss_weights[name] * loss for name, loss in losses.items()), losses, gradient


def toy_dataset(*batches: dict[str, np.ndarray]) -> tf.data.Dataset:
    """The batches one after the other, over and over."""
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    size = len(batches[0]["x"])
    return tf.data.Dataset.from_tensor_slices(rows).batch(size, drop_remainder=True).repeat()

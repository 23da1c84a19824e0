"""Learning rate schedules: a warm-up, then a decay, at once or in the last steps only."""

import math
from typing import Any

import keras
import tensorflow as tf

# `optimizer.schedule`: the shape of the decay, and whether a stable phase comes before it.
SCHEDULES = {
    "linear": ("linear", False),
    "cosine": ("cosine", False),
    "wsd": ("linear", True),
    "wsd_sqrt": ("sqrt", True),
}


@keras.saving.register_keras_serializable(package="cocolm_tf")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to a peak, stays there until the decay begins, then falls to an end."""

    # With r, the share of the decay's steps that are left, the share of the peak is r (`linear`),
    # (1 - cos(pi r)) / 2 (`cosine`) or 1 - sqrt(1 - r) (`sqrt`: Haegele et al., 2024). Without
    # `decay_steps`, it falls from the end of the warm-up on.

    def __init__(
        self,
        peak: float,
        warmup_steps: int,
        total_steps: int,
        end: float = 0.0,
        shape: str = "linear",
        decay_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.end = end
        self.shape = shape
        self.decay_steps = decay_steps

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The learning rate of the given step, counted from 0."""
        step = tf.cast(step, tf.float32)
        # Step 0 already learns, and the last step of the warm-up has the peak.
        rising = tf.minimum((step + 1) / max(1, self.warmup_steps), 1.0)
        decay_steps = self.decay_steps or self.total_steps - self.warmup_steps
        left = tf.clip_by_value((self.total_steps - step) / max(1, decay_steps), 0.0, 1.0)
        share = {
            "linear": lambda: left,
            "cosine": lambda: (1 - tf.cos(math.pi * left)) / 2,
            "sqrt": lambda: 1 - tf.sqrt(1 - left),
        }[self.shape]()
        return tf.where(
            step < self.warmup_steps, self.peak * rising, self.end + (self.peak - self.end) * share
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "end": self.end,
            "shape": self.shape,
            "decay_steps": self.decay_steps,
        }

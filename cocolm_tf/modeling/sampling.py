"""The temperature schedule of the auxiliary model's sampling."""

import dataclasses

import tensorflow as tf

# The forward passes to sample from; see `CocoLMPretrainer`.
SAMPLING_MODES = ("eval", "train", "zero_dropout")


@dataclasses.dataclass(frozen=True)
class SamplingTemperature:
    """T(u) = 1 + (start - 1) * exp(-u / decay), u being the share of the run's steps that are done.

    Fast-ELECTRA (Dong et al., ICLR 2024): the auxiliary model's logits are divided by it, so that
    early replacements are easy to detect, also those of an auxiliary model that has converged.

    Args:
        start: T(0).
        decay: The share of the run after which 1/e is left of what exceeds 1.
        steps: The length of the run.

    Example:
    ```python
    SamplingTemperature(2.0, 0.1, 1000).at(tf.constant(100))  # 1.37
    ```
    """

    start: float
    decay: float
    steps: int

    def at(self, step: tf.Tensor | int) -> tf.Tensor:
        """The temperature of a step, a float32 scalar."""
        done = tf.cast(step, tf.float32) / self.steps
        return 1.0 + (self.start - 1.0) * tf.exp(-done / self.decay)

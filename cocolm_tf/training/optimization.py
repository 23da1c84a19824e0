"""AdamW and its learning rate."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="cocolm_tf")
class LinearWarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to a peak, then falls linearly to an end.

    Args:
        peak: float. The highest learning rate.
        warmup_steps: int. Steps until the peak.
        total_steps: int. Steps until the end; the rate stays there afterwards.
        end: float. The last learning rate.

    Example:
    ```python
    LinearWarmupDecay(peak=5e-4, warmup_steps=10_000, total_steps=125_000)(10_000)  # 5e-4
    ```
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0) -> None:
        super().__init__()
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.end = end

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The learning rate of the given step, counted from 0."""
        step = tf.cast(step, tf.float32)
        # Step 0 already learns: with it, the warm-up's last step is the peak.
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        share = tf.clip_by_value(tf.minimum(rising, falling), 0.0, 1.0)
        return tf.where(
            step < self.warmup_steps, self.peak * share, self.end + (self.peak - self.end) * share
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "end": self.end,
        }


@keras.saving.register_keras_serializable(package="cocolm_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW, updating each variable in one pass and able to leave a step out.

    Loss scaling and gradient clipping multiply all gradients by one number, and a step with
    non-finite gradients is left out by every replica: `apply_scaled` takes that number, 0 for a
    step to leave out, and needs neither a copy of the gradients nor a branch, which distribution
    strategies and XLA dislike.

    The arguments are those of `keras.optimizers.AdamW`, `amsgrad`, averaging and accumulation
    excepted; `exclude_from_weight_decay` works as there.

    Example:
    ```python
    optimizer = AdamW(LinearWarmupDecay(5e-4, 10_000, 125_000), weight_decay=0.01)
    ```
    """

    def apply_scaled(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], scale: tf.Tensor
    ) -> None:
        """Updates the variables by `scale * gradients`, in replica context.

        Args:
            gradients: dense, summed over replicas already.
            variables: those that the optimizer was built with, in the order of the gradients.
            scale: float32 scalar. 0 leaves variables and moments as they are, whatever the
                gradients hold; the step is counted all the same.
        """
        step = tf.cast(self.iterations + 1, tf.float32)
        settings = {
            "learning_rate": self.learning_rate,
            "beta_1_power": tf.pow(self.beta_1, step),
            "beta_2_power": tf.pow(self.beta_2, step),
            "scale": scale,
        }
        slots = [
            [slot[self._get_variable_index(variable)].value for variable in variables]
            for slot in (self._momentums, self._velocities)
        ]
        decays = [self._use_weight_decay(variable) for variable in variables]
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._update_everywhere,
            self._distribution_strategy,
            gradients,
            [variable.value for variable in variables],
            *slots,
            decays,
            settings,
        )
        self.iterations.assign_add(1)

    def _update_everywhere(
        self,
        strategy: tf.distribute.Strategy,
        gradients: list[tf.Tensor],
        variables: list[tf.Variable],
        momentums: list[tf.Variable],
        velocities: list[tf.Variable],
        decays: list[bool],
        settings: dict[str, tf.Tensor],
    ) -> None:
        for variable, gradient, momentum, velocity, decay in zip(
            variables, gradients, momentums, velocities, decays, strict=True
        ):
            strategy.extended.update(
                variable,
                self._update_one,
                args=(gradient, momentum, velocity, settings),
                kwargs={"weight_decay": self.weight_decay if decay else 0.0},
                group=False,
            )

    def _update_one(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        momentum: tf.Variable,
        velocity: tf.Variable,
        settings: dict[str, tf.Tensor],
        weight_decay: float,
    ) -> None:
        scale = settings["scale"]
        accepted = tf.cast(scale > 0, tf.float32)
        rate = settings["learning_rate"] * accepted
        if weight_decay:
            variable.assign_sub(variable * (weight_decay * rate))
        # With both betas 1 the moments stay as they are.
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=settings["beta_1_power"],
            beta2_power=settings["beta_2_power"],
            lr=rate,
            beta1=1 - (1 - self.beta_1) * accepted,
            beta2=1 - (1 - self.beta_2) * accepted,
            epsilon=self.epsilon,
            grad=tf.math.multiply_no_nan(gradient, scale),
        )

"""AdamW."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="cocolm_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW, updating each variable in one pass and able to leave a step out."""

    # Loss scaling and gradient clipping multiply all gradients by one number, and a step whose
    # gradients are not finite is left out by every replica: `apply_scaled` takes that number, 0 for
    # a step to leave out, and needs neither a copy of the gradients nor a branch, which
    # distribution strategies and XLA dislike.
    # The arguments are those of `keras.optimizers.AdamW`, `amsgrad`, averaging and accumulation
    # excepted; `exclude_from_weight_decay` and `apply`, which `fit()` calls, work as there.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rate_factors: dict[str, float] = {}

    def scale_learning_rate(self, variables: Sequence[keras.Variable], factor: float) -> None:
        """Lets some variables learn, and decay, at a rate of their own."""
        self._rate_factors |= {self._var_key(variable): factor for variable in variables}

    def slots(self, variable: keras.Variable) -> dict[str, keras.Variable]:
        """The moments that the optimizer keeps of a variable, by name."""
        index = self._get_variable_index(variable)
        return {"momentum": self._momentums[index], "velocity": self._velocities[index]}

    def apply(
        self,
        grads: Sequence[tf.Tensor | tf.IndexedSlices | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Updates variables; Keras calls it in `fit()`."""
        # Of a row that occurs several times, Keras would square each part of its gradient.
        dense = [None if one is None else tf.convert_to_tensor(one) for one in grads]
        super().apply(dense, trainable_variables)

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one variable; Keras calls it."""
        index = self._get_variable_index(variable)
        self._update_one(
            variable,
            gradient,
            self._momentums[index].value,
            self._velocities[index].value,
            self._settings(learning_rate, tf.constant(1.0)),
            **self._options(variable),
        )

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Keras's own pass over the variables: `update_step` decays them."""

    def apply_scaled(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], scale: tf.Tensor
    ) -> None:
        """Updates the variables by `scale * gradients`, in replica context."""
        slots = [
            [slot[self._get_variable_index(variable)].value for variable in variables]
            for slot in (self._momentums, self._velocities)
        ]
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._update_everywhere,
            self._distribution_strategy,
            gradients,
            [variable.value for variable in variables],
            *slots,
            [self._options(variable) for variable in variables],
            self._settings(self.learning_rate, scale),
        )

    def _settings(self, learning_rate: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
        """What holds for all variables in this step."""
        step = tf.cast(self.iterations + 1, tf.float32)
        return {
            "learning_rate": learning_rate,
            "beta_1_power": tf.pow(self.beta_1, step),
            "beta_2_power": tf.pow(self.beta_2, step),
            "scale": scale,
        }

    def _options(self, variable: keras.Variable | tf.Variable) -> dict[str, float]:
        """What holds for one variable in all steps."""
        return {
            "weight_decay": (self.weight_decay or 0.0) * self._use_weight_decay(variable),
            "rate_factor": self._rate_factors.get(self._var_key(variable), 1.0),
        }

    def _update_everywhere(
        self,
        strategy: tf.distribute.Strategy,
        gradients: list[tf.Tensor],
        variables: list[tf.Variable],
        momentums: list[tf.Variable],
        velocities: list[tf.Variable],
        options: list[dict[str, float]],
        settings: dict[str, tf.Tensor],
    ) -> None:
        for variable, gradient, momentum, velocity, own in zip(
            variables, gradients, momentums, velocities, options, strict=True
        ):
            strategy.extended.update(
                variable,
                self._update_one,
                args=(gradient, momentum, velocity, settings),
                kwargs=own,
                group=False,
            )
        # Keras's own way would talk to the other replicas, which a compiled step cannot do.
        strategy.extended.update(self.iterations.value, lambda count: count.assign_add(1))

    def _update_one(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        momentum: tf.Variable,
        velocity: tf.Variable,
        settings: dict[str, tf.Tensor],
        weight_decay: float,
        rate_factor: float,
    ) -> None:
        scale = settings["scale"]
        accepted = tf.cast(scale > 0, tf.float32)
        rate = settings["learning_rate"] * accepted * rate_factor
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

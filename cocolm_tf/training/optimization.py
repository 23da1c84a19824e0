"""AdamW, moments shared out among replicas, and the schedules of the learning rate."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf.losses.replicas import gather_over_replicas

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
        """Multiplies the learning rate of some variables, and their decay, by a factor."""
        self._rate_factors |= {self._var_key(variable): factor for variable in variables}

    def slots(self, variable: keras.Variable) -> "dict[str, keras.Variable | ShardedSlot]":
        """The moments that the optimizer keeps of a variable, by name."""
        index = self._get_variable_index(variable)
        return {"momentum": self._momentums[index], "velocity": self._velocities[index]}

    def counters(self) -> list[keras.Variable]:
        """The optimizer's variables that are no moments: above all, the number of steps."""
        moments = {id(slot) for slot in (*self._momentums, *self._velocities)}
        return [variable for variable in self.variables if id(variable) not in moments]

    def apply(
        self,
        grads: Sequence[tf.Tensor | tf.IndexedSlices | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Updates variables; Keras calls it in `fit()`."""
        # Keras would square each part of the gradient of a row that occurs several times.
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
        """Nothing, in place of Keras's own pass over the variables: `update_step` decays them."""

    def apply_scaled(
        self,
        gradients: list[tf.Tensor],
        variables: list[keras.Variable],
        scale: tf.Tensor,
        replica: tf.Tensor | int = 0,
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
        """The values that all variables share in this step."""
        step = tf.cast(self.iterations + 1, tf.float32)
        accepted = tf.cast(scale > 0, tf.float32)
        return {
            "scale": scale,
            "learning_rate": learning_rate * accepted,
            # With both betas 1 the moments stay as they are.
            "beta_1": 1 - (1 - self.beta_1) * accepted,
            "beta_2": 1 - (1 - self.beta_2) * accepted,
            "beta_1_power": tf.pow(self.beta_1, step),
            "beta_2_power": tf.pow(self.beta_2, step),
            "epsilon": tf.constant(self.epsilon),
        }

    def _options(self, variable: keras.Variable | tf.Variable) -> dict[str, float]:
        """The values of one variable that all steps share."""
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
        # Keras's own way would communicate with other replicas, which a compiled step cannot.
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
        rate = settings["learning_rate"]
        if rate_factor != 1:
            rate *= rate_factor
        if weight_decay:
            variable.assign_sub(variable * (weight_decay * rate))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=settings["beta_1_power"],
            beta2_power=settings["beta_2_power"],
            lr=rate,
            beta1=settings["beta_1"],
            beta2=settings["beta_2"],
            epsilon=settings["epsilon"],
            grad=tf.math.multiply_no_nan(gradient, settings["scale"]),
        )


@keras.saving.register_keras_serializable(package="cocolm_tf")
class ShardedAdamW(AdamW):
    """AdamW whose moments are shared out among the replicas: the first stage of ZeRO."""

    # Rajbhandari et al., 2020. Of R replicas each keeps one of R equal parts of the moments of each
    # variable, flat and filled up with zeros, updates that part of the variable, and gets the parts
    # that the others have updated. The updates are AdamW's, of gradients that are summed already.
    # It is for training steps that call `apply_scaled`; `fit()` of other models cannot use it.
    #
    # All-reduced gradients are sliced, and parts are gathered by an all-reduce of zeros around
    # them: TensorFlow has no kernel of a reduce-scatter for CPUs (CollectiveReduceScatterV2), XLA
    # none of that and of CollectiveGatherV2. The clipping needs the norm of all gradients, too.

    def add_variable_from_reference(
        self,
        reference_variable: keras.Variable,
        name: str | None = None,
        initializer: str = "zeros",
    ) -> keras.Variable:
        """A replica's part of a slot; Keras calls it."""
        with keras.name_scope(self.name, caller=self):
            part = keras.Variable(
                initializer,
                shape=(_part_size(reference_variable, self._replicas),),
                dtype=reference_variable.dtype,
                trainable=False,
                aggregation="sum",
                synchronization="on_read",  # a value of its own on each replica
                name=f"{reference_variable.path.replace('/', '_')}_{name}",
            )
        self._track_variable(part)
        return part

    def slots(self, variable: keras.Variable) -> "dict[str, ShardedSlot]":
        """The moments that the optimizer keeps of a variable, by name, each as a whole."""
        return {
            name: ShardedSlot(part, variable.shape, self._distribution_strategy)
            for name, part in super().slots(variable).items()
        }

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Refuses Keras's own loop, in which replicas do not communicate."""
        raise NotImplementedError("ShardedAdamW is for a TrainingStep, which calls apply_scaled.")

    def apply_scaled(
        self,
        gradients: list[tf.Tensor],
        variables: list[keras.Variable],
        scale: tf.Tensor,
        replica: tf.Tensor | int = 0,
    ) -> None:
        """Updates the variables by `scale * gradients`, in replica context."""
        settings = self._settings(self.learning_rate, scale)
        parts = [
            self._updated_part(variable, gradient, replica, settings, **self._options(variable))
            for variable, gradient in zip(variables, gradients, strict=True)
        ]
        wholes = [
            tf.reshape(whole[: variable.shape.num_elements()], variable.shape)
            for variable, whole in zip(
                (variable.value for variable in variables),
                gather_over_replicas(parts, replica),
                strict=True,
            )
        ]
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._assign_everywhere,
            self._distribution_strategy,
            [variable.value for variable in variables],
            wholes,
        )

    @property
    def _replicas(self) -> int:
        return self._distribution_strategy.num_replicas_in_sync

    def _updated_part(
        self,
        variable: keras.Variable,
        gradient: tf.Tensor,
        replica: tf.Tensor | int,
        settings: dict[str, tf.Tensor],
        weight_decay: float,
        rate_factor: float,
    ) -> tf.Tensor:
        """This replica's part of the variable after the step, and its moments' update in place."""
        # Number by number what `_update_one` does.
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index].value, self._velocities[index].value
        rate = settings["learning_rate"] * rate_factor
        size = _part_size(variable, self._replicas)
        value = _part(tf.convert_to_tensor(variable.value), replica, size, self._replicas)
        gradient = _part(gradient, replica, size, self._replicas)
        gradient = tf.math.multiply_no_nan(gradient, settings["scale"])
        first = momentum + (gradient - momentum) * (1 - settings["beta_1"])
        second = velocity + (gradient**2 - velocity) * (1 - settings["beta_2"])
        momentum.assign(first)
        velocity.assign(second)
        correction = tf.sqrt(1 - settings["beta_2_power"]) / (1 - settings["beta_1_power"])
        value -= value * (weight_decay * rate)
        return value - rate * correction * first / (tf.sqrt(second) + settings["epsilon"])

    def _assign_everywhere(
        self, strategy: tf.distribute.Strategy, variables: list[tf.Variable], values: list[Any]
    ) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, lambda v, x: v.assign(x), args=(value,), group=False)
        strategy.extended.update(self.iterations.value, lambda count: count.assign_add(1))


class ShardedSlot:
    """A moment that is shared out among the replicas, to be read and written as one array."""

    # Several hosts read it together, and write it together: each has its own replicas' parts.

    def __init__(
        self, part: keras.Variable, shape: tuple[int, ...], strategy: tf.distribute.Strategy
    ) -> None:
        self.shape, self.dtype = tf.TensorShape(shape), part.value.dtype
        self._part, self._strategy = part, strategy

    @property
    def value(self) -> "ShardedSlot":
        """Itself: it takes the place of a Keras variable and of the tensor behind one."""
        return self

    def numpy(self) -> np.ndarray:
        """The whole array."""
        parts = self._local_parts()
        rows = np.zeros(self._rows(), self.dtype.as_numpy_dtype)
        for replica, part in parts.items():
            rows[replica] = part.numpy()
        if len(parts) < len(rows):  # The others have zeros in their place.
            rows = self._strategy.reduce("SUM", tf.constant(rows), axis=None).numpy()
        return rows.ravel()[: self.shape.num_elements()].reshape(self.shape)

    def assign(self, value: np.ndarray) -> None:
        """Gives each of this host's replicas its part of the whole."""
        rows = np.zeros(self._rows(), self.dtype.as_numpy_dtype)
        rows.ravel()[: self.shape.num_elements()] = np.ravel(value)
        for replica, part in self._local_parts().items():
            part.assign(rows[replica])

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        return tf.convert_to_tensor(self.numpy(), dtype, name=name)

    def _rows(self) -> tuple[int, int]:
        return self._strategy.num_replicas_in_sync, self._part.shape[0]

    def _local_parts(self) -> dict[int, tf.Variable]:
        """This host's parts, by the numbers of their replicas."""
        numbers = self._strategy.experimental_distribute_values_from_function(
            lambda context: context.replica_id_in_sync_group
        )
        local = self._strategy.experimental_local_results
        return dict(zip(map(int, local(numbers)), local(self._part.value), strict=True))


def _part_size(variable: keras.Variable, replicas: int) -> int:
    return -(-int(np.prod(variable.shape)) // replicas)


def _part(x: tf.Tensor, replica: tf.Tensor | int, size: int, replicas: int) -> tf.Tensor:
    """A replica's part of a tensor, flat: [size]."""
    padding = replicas * size - x.shape.num_elements()
    flat = tf.pad(tf.reshape(x, [-1]), [[0, padding]]) if padding else tf.reshape(x, [-1])
    # Not `tf.slice`: XLA would make the number part of the program.
    return tf.gather(tf.reshape(flat, [replicas, size]), replica)

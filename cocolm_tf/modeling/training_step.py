"""The training step: gradients of one global batch, and one update for all replicas.

Everything here holds for any model that states its losses; what COCO-LM's losses are stands in
`cocolm_tf.modeling.pretrainer`.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import keras
import tensorflow as tf

from cocolm_tf.losses.replicas import sum_over_replicas

Batch = dict[str, tf.Tensor]

_LOSS_SCALE_GROWTH_STEPS = 2000


@runtime_checkable
class WithholdingOptimizer(Protocol):
    """An optimizer that can leave a step out on every device alike, without a branch."""

    def apply_scaled(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], scale: tf.Tensor
    ) -> None:
        """Updates by `scale * gradients`; not at all where `scale` is 0."""


class TrainingStep(keras.Model):
    """A `keras.Model` whose step is the global batch's, on however many replicas.

    A subclass states what it minimizes:

    - `coefficients`, a dict from the name of each loss to its factor in the objective;
    - `loss_weights(batch)`, a dict from the same names to the sum of weights that each mean is
      taken over (masked positions, tokens, sequences);
    - `compute(batch, training)`, which returns the losses, each a weighted mean over its own
      `batch`, and further measures as pairs of value and weight.

    Each loss's mean is weighted by its share in the global batch before the gradients are summed,
    so that losses, gradients, clipping and metrics are those of the global batch also when
    replicas or micro-batches hold different numbers of masked tokens. The one loss that is not a
    mean over independent rows, the contrastive one, compares within a micro-batch of all replicas.

    A step whose gradients are not finite is left out by every replica and counted in
    `skipped_updates`. `skipped_at` has the number of the latest, or the first of several in a row,
    `skipped_norms` its gradients' norms in the order of the trainable variables. In `mixed_float16`
    the loss is scaled, and the scale adapts to overflows.

    Randomness is a function of (`seed`, step, replica, micro-batch): the state of every seed
    generator is set from them in each step, none is carried from step to step.
    """

    coefficients: dict[str, float]

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = seed
        self._meters: dict[str, keras.metrics.Metric] = {}
        self.skipped_in_a_row = self.add_weight(
            name="skipped_in_a_row",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.loss_scale = self.add_weight(
            name="loss_scale",
            shape=(),
            dtype="float32",
            initializer=keras.initializers.Constant(1.0),
            trainable=False,
            aggregation="only_first_replica",
        )
        self.steps_since_overflow = self.add_weight(
            name="steps_since_overflow",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    # What a subclass states.

    def loss_weights(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The sum of the weights that each loss is a mean over, float32 scalars."""
        raise NotImplementedError

    def compute(
        self, batch: Batch, training: bool
    ) -> tuple[dict[str, tf.Tensor], dict[str, tuple[tf.Tensor, tf.Tensor]]]:
        """The losses of a batch, and further measures as (value, weight)."""
        raise NotImplementedError

    def seed_generators(self) -> Iterator[keras.random.SeedGenerator]:
        """Every seed generator that a forward pass may draw from."""
        raise NotImplementedError

    def meter_names(self) -> list[str]:
        """The names of all losses and measures that `compute` returns."""
        raise NotImplementedError

    # What Keras calls.

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer,
        clip_norm: float = 0.0,
        micro_batches: int = 1,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
    ) -> None:
        """Prepares for `fit()`.

        Args:
            optimizer: a Keras optimizer. One of `WithholdingOptimizer`'s kind leaves a step with
                non-finite gradients out; any other sees zero gradients then.
            clip_norm: float. Bound on the global norm of the gradients; 0 for none.
            micro_batches: int. Each batch is cut into this many parts whose gradients are added:
                the memory of a small batch, the gradients of a large one.
            steps_per_execution: int. Steps run inside one compiled function; the progress bar,
                callbacks and the host see every so many steps only.
            jit_compile: bool. Compile the whole step with XLA, on one device without a strategy.
                On a TPU leave it off: there the strategy compiles.

        Raises:
            ValueError: if `jit_compile` is asked for under several replicas.
        """
        if jit_compile and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError("jit_compile compiles the step of one device, not of a strategy.")
        super().compile(
            optimizer=optimizer,
            steps_per_execution=steps_per_execution,
            jit_compile=False,
            auto_scale_loss=False,
        )
        self.compile_step = jit_compile
        self.clip_norm = clip_norm
        self.micro_batches = micro_batches
        if self.compute_dtype == "float16":
            self.loss_scale.assign(2.0**15)
        optimizer.build(self.trainable_variables)
        # No weights: what they tell is of no use to a run that goes on from a checkpoint.
        self.skipped_at, self.skipped_norms = (
            tf.Variable(value, trainable=False)
            for value in (tf.constant(0), tf.zeros([len(self.trainable_variables)]))
        )
        training = ["gradient_norm", "learning_rate", "skipped_updates"]
        for name in ["loss", *self.meter_names(), *training]:
            kind = keras.metrics.Sum if name == "skipped_updates" else keras.metrics.Mean
            self._meters.setdefault(name, kind(name=name))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit()` and `evaluate()` report, reset at the start of each epoch."""
        return list(self._meters.values())

    def train_step(self, batch: Batch) -> None:
        """One update from one batch. Runs in replica context.

        Args:
            batch: dict of tensors whose first dimension is this replica's batch size.
        """
        totals = sum_over_replicas(self.loss_weights(batch))
        self._update(sum_over_replicas(self._accumulate(batch, totals)))

    def test_step(self, batch: Batch) -> None:
        """Measures one batch without an update. Runs in replica context."""
        weights = self.loss_weights(batch)
        with self._seeded(micro_batch=0):
            losses, measures = self.compute(batch, training=False)
        objective = self._objective(losses, weights, sum_over_replicas(weights))
        self._record(objective, losses, weights, measures, micro_batches=1)

    def make_train_function(self, force: bool = False) -> Callable:
        """The function that `fit()` calls for every `steps_per_execution` steps."""
        if self.train_function is None or force:
            strategy, step = self.distribute_strategy, self._unconverted(self.train_step)

            @tf.autograph.experimental.do_not_convert
            def step_of(batch: Batch) -> None:
                # Where the data has ended, what does not depend on it, as counting, must not run.
                with tf.control_dependencies(list(batch.values())):
                    step(batch)

            @tf.function
            def run(iterator: tf.data.Iterator) -> dict[str, tf.Tensor]:
                for _ in tf.range(self.steps_per_execution):
                    strategy.run(step_of, args=(next(iterator),))
                return self.get_metrics_result()

            def function(iterator: tf.data.Iterator) -> dict[str, tf.Tensor]:
                try:
                    return run(iterator)
                except tf.errors.OutOfRangeError as end:
                    raise StopIteration from end

            self.train_function = function
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        """The function that `evaluate()` and `fit()`'s validation call."""
        if self.test_function is None or force:
            strategy, step = self.distribute_strategy, self._unconverted(self.test_step)

            @tf.function
            def run(batch: Batch) -> dict[str, tf.Tensor]:
                strategy.run(step, args=(batch,))
                return self.get_metrics_result()

            def function(iterator: tf.data.Iterator) -> dict[str, tf.Tensor]:
                # Keras counts executions; the last one may find fewer batches than it may take.
                logs = run(next(iterator))
                for batch in itertools.islice(iterator, self.steps_per_execution - 1):
                    logs = run(batch)
                return logs

            self.test_function = function
        return self.test_function

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # The model is built before it is compiled. Keras, to build it, would average a batch over
        # the replicas, which fails on boolean masks, and drop that batch.
        pass

    # How the step works.

    def _unconverted(self, step: Callable[[Batch], None]) -> Callable[[Batch], None]:
        # Only the loop over steps is Python to convert; converting the model too takes a minute.
        step = tf.autograph.experimental.do_not_convert(step)
        return tf.function(step, jit_compile=True, autograph=False) if self.compile_step else step

    def _accumulate(self, batch: Batch, totals: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """This replica's part of the gradients of the global batch's objective."""
        if self.micro_batches == 1:
            return self._gradients(batch, totals, micro_batch=0)
        parts = {
            name: tf.reshape(value, [self.micro_batches, -1, *value.shape[1:]])
            for name, value in batch.items()
        }

        def add(micro_batch: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            part = {name: value[micro_batch] for name, value in parts.items()}
            gradients = self._gradients(part, totals, micro_batch)
            return micro_batch + 1, [s + g for s, g in zip(sums, gradients, strict=True)]

        state = (tf.constant(0), [tf.zeros(v.shape, tf.float32) for v in self.trainable_variables])
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # Replicas cannot talk to each other inside a loop of the graph: unrolled.
            for _ in range(self.micro_batches):
                state = add(*state)
            return state[1]
        return tf.while_loop(lambda micro_batch, _: micro_batch < self.micro_batches, add, state)[1]

    def _gradients(
        self, batch: Batch, totals: dict[str, tf.Tensor], micro_batch: tf.Tensor | int
    ) -> list[tf.Tensor]:
        weights = self.loss_weights(batch)
        with self._seeded(micro_batch), tf.GradientTape() as tape:
            losses, measures = self.compute(batch, training=True)
            objective = self._objective(losses, weights, totals)
            scaled = objective * self.loss_scale
        self._record(objective, losses, weights, measures, self.micro_batches)
        gradients = tape.gradient(
            scaled,
            [variable.value for variable in self.trainable_variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _update(self, gradients: list[tf.Tensor]) -> None:
        # As `tf.linalg.global_norm`, whose terms say whose gradient was not finite.
        squares = 2 * tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])
        norm = tf.sqrt(tf.reduce_sum(squares)) / self.loss_scale
        finite = tf.math.is_finite(norm)
        clipping = self.clip_norm / tf.maximum(norm, self.clip_norm) if self.clip_norm else 1.0
        scale = tf.where(finite, clipping / self.loss_scale, 0.0)
        self._meters["learning_rate"].update_state(self.optimizer.learning_rate)
        self._meters["gradient_norm"].update_state(
            tf.math.multiply_no_nan(norm, tf.cast(finite, norm.dtype)), tf.cast(finite, norm.dtype)
        )
        if isinstance(self.optimizer, WithholdingOptimizer):
            self.optimizer.apply_scaled(gradients, self.trainable_variables, scale)
        else:
            # Keras's own optimizers add up over replicas what is the whole sum on each already.
            scale /= self.distribute_strategy.num_replicas_in_sync
            self.optimizer.apply(
                [tf.math.multiply_no_nan(gradient, scale) for gradient in gradients],
                self.trainable_variables,
            )
        self._count_skips(finite, tf.sqrt(squares) / self.loss_scale)

    def _count_skips(self, finite: tf.Tensor, norms: tf.Tensor) -> None:
        skipped = 1 - tf.cast(finite, tf.int32)
        is_first = (skipped > 0) & ((self.skipped_in_a_row < 1) | (self.skipped_at < 1))
        step = tf.cast(self.optimizer.iterations, tf.int32)
        self.skipped_at.assign(tf.where(is_first, step, self.skipped_at))
        self.skipped_norms.assign(
            tf.where(is_first, tf.cast(norms, tf.float32), self.skipped_norms)
        )
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        first_replica = tf.cast(tf.equal(replica, 0), tf.float32)
        self._meters["skipped_updates"].update_state(tf.cast(skipped, tf.float32) * first_replica)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * skipped)
        if self.compute_dtype == "float16":
            steps = (self.steps_since_overflow + 1) * (1 - skipped)
            grows = tf.equal(steps, _LOSS_SCALE_GROWTH_STEPS)
            self.loss_scale.assign(
                tf.maximum(1.0, tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5) * self.loss_scale)
            )
            self.steps_since_overflow.assign(tf.where(grows, 0, steps))

    def _seeded(self, micro_batch: tf.Tensor | int) -> keras.StatelessScope:
        """A scope in which every seed generator's state follows from where the run stands."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.constant([self.seed, 0x5EED], tf.int32)
        for position in (self.optimizer.iterations, replica, micro_batch):
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(position, tf.int32))
        mapping = [
            (
                generator.state,
                tf.cast(tf.random.experimental.stateless_fold_in(seed, number), tf.uint32),
            )
            for number, generator in enumerate(self.seed_generators())
        ]
        return keras.StatelessScope(state_mapping=mapping)

    def _objective(
        self,
        losses: dict[str, tf.Tensor],
        weights: dict[str, tf.Tensor],
        totals: dict[str, tf.Tensor],
    ) -> tf.Tensor:
        """What this batch adds to the objective of the global batch."""
        return tf.add_n(
            [
                coefficient * losses[name] * tf.math.divide_no_nan(weights[name], totals[name])
                for name, coefficient in self.coefficients.items()
            ]
        )

    def _record(
        self,
        objective: tf.Tensor,
        losses: dict[str, tf.Tensor],
        weights: dict[str, tf.Tensor],
        measures: dict[str, tuple[tf.Tensor, tf.Tensor]],
        micro_batches: int,
    ) -> None:
        parts = self.distribute_strategy.num_replicas_in_sync * micro_batches
        self._meters["loss"].update_state(objective * parts, 1 / parts)
        for name, loss in losses.items():
            self._meters[name].update_state(loss, weights[name])
        for name, (value, weight) in measures.items():
            self._meters[name].update_state(value, weight)

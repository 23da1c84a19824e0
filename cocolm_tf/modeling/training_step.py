"""The training step: gradients of one global batch, and one update for all replicas.

Everything here holds for any model that states its losses; COCO-LM's losses are in
`cocolm_tf.modeling.pretrainer`.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import keras
import tensorflow as tf

from cocolm_tf.losses.replicas import compiles_communication, sum_over_replicas
from cocolm_tf.modeling.corruption import SamplingTemperature
from cocolm_tf.modeling.measures import Measures
from cocolm_tf.ops.fusion import sums_of_squares

Batch = dict[str, tf.Tensor]
Losses = dict[str, tf.Tensor]

_LOSS_SCALE_GROWTH_STEPS = 2000


@runtime_checkable
class SkippingOptimizer(Protocol):
    """An optimizer that can leave a step out on every device alike, without a branch."""

    def apply_scaled(
        self,
        gradients: list[tf.Tensor],
        variables: list[keras.Variable],
        scale: tf.Tensor,
        replica: tf.Tensor | int = 0,
    ) -> None:
        """Updates by `scale * gradients`; not at all where `scale` is 0."""


class TrainingStep(keras.Model):
    """A `keras.Model` whose step is the global batch's, on however many replicas.

    A subclass states what it minimizes:

    - `loss_weights`, a dict from the name of each loss to its factor in the objective;
    - `denominators(batch)`, a dict from the same names to the sum of weights that each mean is
      taken over (masked positions, tokens, sequences);
    - `compute(batch, training)`, which returns the losses, each a weighted mean over its own
      `batch`, and further measures as pairs of value and weight.

    Each loss's mean is weighted by its share in the global batch before the gradients are summed,
    so that losses, gradients, clipping and metrics are those of the global batch also when
    replicas or micro-batches hold different numbers of masked tokens.

    A loss that compares the batch's sequences with each other is no such mean. A subclass that has
    one sets `contrasts`, how many vectors of which width stand for a sequence in it, states it in
    `contrast(*vectors)`, and lets `compute` take another function in its place. It compares within
    a micro-batch of all replicas or, where `contrasts_whole_batch`, within the global batch: all
    vectors are computed first, then their gradients, then each micro-batch is computed again and
    its backward pass begins with those (GradCache: Gao et al., 2021). That costs one more forward
    pass, and no more memory.

    A step whose gradients are not finite is left out by every replica and counted in
    `skipped_updates`. `skipped_at` has the number of the latest, or the first of several in a row,
    `skipped_norms` its gradients' norms in the order of the trainable variables. In `mixed_float16`
    the loss is scaled, and the scale adapts to overflows.

    Randomness is a function of (`seed`, step, replica, micro-batch): the state of every seed
    generator is set from them in each step, none is carried from step to step.

    Args:
        seed: Of all randomness in the step.
        **kwargs: As for `keras.Model`.

    Example:
    ```python
    class Regressor(TrainingStep):
        loss_weights = {"squared_error": 1.0}

        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def denominators(self, batch):
            return {"squared_error": tf.cast(tf.shape(batch["x"])[0], tf.float32)}

        def compute(self, batch, training):
            errors = self.dense(batch["x"]) - batch["y"]
            return {"squared_error": tf.reduce_mean(errors**2)}, {}

        def seed_generators(self):
            return iter(())

        def meter_names(self):
            return ["squared_error"]
    ```
    """

    loss_weights: dict[str, float]
    contrasts: tuple[int, int] | None = None
    contrasts_whole_batch = False
    # Whether `compute` communicates between replicas, contrasts aside.
    communicates = False

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = seed
        self._meters: dict[str, keras.metrics.Metric] = {}
        self.skipped_in_a_row = self._scalar("skipped_in_a_row", "int32")
        self.loss_scale = self._scalar("loss_scale", "float32", initializer="ones")
        self.steps_since_overflow = self._scalar("steps_since_overflow", "int32")

    def _scalar(self, name: str, dtype: str, initializer: str = "zeros") -> keras.Variable:
        return self.add_weight(
            name=name, shape=(), dtype=dtype, initializer=initializer, trainable=False
        )

    # What a subclass states.

    def denominators(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The sum of the weights that each loss is a mean over, float32 scalars."""
        raise NotImplementedError

    def compute(
        self,
        batch: Batch,
        training: bool,
        contrast: Callable[..., tuple[Losses, Measures]] | None = None,
    ) -> tuple[Losses, Measures]:
        """The losses of a batch, and further measures as (value, weight).

        `contrast` is given where the subclass `contrasts`, to be called instead of its own.
        """
        raise NotImplementedError

    def contrast(self, *vectors: tf.Tensor) -> tuple[Losses, Measures]:
        """The loss of vectors [B, H] that are compared with each other, and its measures."""
        raise NotImplementedError

    def seed_generators(self) -> Iterator[keras.random.SeedGenerator]:
        """Every seed generator that a forward pass may draw from."""
        raise NotImplementedError

    def meter_names(self) -> list[str]:
        """The names of all losses and measures that `compute` returns."""
        raise NotImplementedError

    # What a subclass may ask for.

    def temperature_now(self, schedule: SamplingTemperature | None) -> tf.Tensor | float:
        """The temperature of this step; of the run's end for a model that is not trained."""
        if schedule is None:
            return 1.0
        return schedule.at(self.optimizer.iterations if self.compiled else schedule.steps)

    # What Keras calls.

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer,
        clip_norm: float = 0.0,
        micro_batches: int = 1,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        ema_decay: float = 0.0,
    ) -> None:
        """Prepares for `fit()`.

        Args:
            optimizer: A `SkippingOptimizer` leaves a step with non-finite gradients out; any
                other sees zero gradients then.
            clip_norm: Bound on the global norm of the gradients; 0 for none.
            micro_batches: Each batch is cut into this many parts whose gradients are added: the
                memory of a small batch, the gradients of a large one.
            steps_per_execution: Steps run inside one compiled function; the progress bar,
                callbacks and the host see every so many steps only.
            jit_compile: Whether XLA compiles the whole step, on one device or, with a
                `SkippingOptimizer`, on the GPUs of one host. On a TPU leave it off: there the
                strategy compiles.
            ema_decay: The decay of an exponential moving average of the weights, `averages`, which
                `averaged_weights()` puts in their place; 0 for none. In step t it is
                (1 + t) / (10 + t) if that is less.

        Raises:
            ValueError: If `jit_compile` is asked for where XLA compiles no communication.
        """
        strategy = self.distribute_strategy
        several = strategy.num_replicas_in_sync > 1
        if jit_compile and not compiles_communication(strategy):
            raise ValueError("jit_compile is for one device, or for the GPUs of one host.")
        if jit_compile and several and not isinstance(optimizer, SkippingOptimizer):
            raise ValueError("Keras's optimizers cannot be compiled in a step of several replicas.")
        super().compile(
            optimizer=optimizer,
            steps_per_execution=steps_per_execution,
            jit_compile=False,
            auto_scale_loss=False,
        )
        self.compile_step = jit_compile
        self._compiled = jit_compile or isinstance(strategy, tf.distribute.TPUStrategy)
        self.clip_norm = clip_norm
        self.micro_batches = micro_batches
        if self.compute_dtype == "float16":
            self.loss_scale.assign(2.0**15)
        optimizer.build(self.trainable_variables)
        # Not weights, which checkpoints hold: a run that resumes has no use for their values.
        self.skipped_at, self.skipped_norms = (
            tf.Variable(value, trainable=False)
            for value in (tf.constant(0), tf.zeros([len(self.trainable_variables)]))
        )
        self.ema_decay = ema_decay
        learned = self.trainable_variables if ema_decay else []
        self.averages = [
            tf.Variable(tf.convert_to_tensor(variable), trainable=False) for variable in learned
        ]
        names = ["loss", *self.meter_names(), "gradient_norm", "learning_rate", "skipped_updates"]
        for name in names:
            kind = keras.metrics.Sum if name == "skipped_updates" else _WeightedMean
            self._meters.setdefault(name, kind(name=name))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the weights are their moving averages."""
        weights = [variable.numpy() for variable in self.trainable_variables]
        for variable, average in zip(self.trainable_variables, self.averages, strict=True):
            variable.assign(average.numpy())
        try:
            yield
        finally:
            for variable, weight in zip(self.trainable_variables, weights, strict=True):
                variable.assign(weight)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that `fit()` and `evaluate()` report, reset at the start of each epoch."""
        return list(self._meters.values())

    def train_step(self, batch: Batch) -> None:
        """One update from one batch, of this replica's size. Runs in replica context."""
        self._train(batch, _own_number())

    def test_step(self, batch: Batch) -> None:
        """Measures one batch without an update. Runs in replica context."""
        self._test(batch, _own_number())

    def _train(self, batch: Batch, replica: tf.Tensor | int) -> None:
        totals = sum_over_replicas(self.denominators(batch))
        self._update(sum_over_replicas(self._accumulate(batch, totals, replica)), replica)
        self._average()

    def _average(self) -> None:
        """Moves the averages towards the weights; every replica has, and updates, its own copy."""
        step = tf.cast(self.optimizer.iterations, tf.float32)  # this step included
        rest = 1 - tf.minimum(self.ema_decay, (1 + step) / (10 + step))
        for average, variable in zip(self.averages, self.trainable_variables, strict=False):
            average.assign_add(rest * (variable.value - average))

    def _test(self, batch: Batch, replica: tf.Tensor | int) -> None:
        weights = self.denominators(batch)
        with self._seeded(replica, micro_batch=0):
            losses, measures = self.compute(batch, training=False)
        objective = self._objective(losses, weights, sum_over_replicas(weights))
        self._record(objective, losses, weights, measures, micro_batches=1)

    def make_train_function(self, force: bool = False) -> Callable:
        """The function that `fit()` calls for every `steps_per_execution` steps."""
        if self.train_function is None or force:
            strategy, step = self.distribute_strategy, self._unconverted(self._train)
            replicas = _numbers_of_replicas(strategy)

            @tf.autograph.experimental.do_not_convert
            def step_of(batch: Batch, replica: tf.Tensor) -> None:
                # Once the data has ended, operations without it, as counting, must not run.
                with tf.control_dependencies(list(batch.values())):
                    step(batch, replica)

            @tf.function
            def run(iterator: tf.data.Iterator) -> dict[str, tf.Tensor]:
                for _ in tf.range(self.steps_per_execution):
                    strategy.run(step_of, args=(next(iterator), replicas))
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
            strategy, step = self.distribute_strategy, self._unconverted(self._test)
            replicas = _numbers_of_replicas(strategy)

            @tf.function
            def run(batch: Batch) -> dict[str, tf.Tensor]:
                strategy.run(step, args=(batch, replicas))
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

    def _unconverted(self, step: Callable[..., None]) -> Callable[..., None]:
        # Only the loop over steps is Python to convert; converting the model too takes a minute.
        step = tf.autograph.experimental.do_not_convert(step)
        return tf.function(step, jit_compile=True, autograph=False) if self.compile_step else step

    def _accumulate(
        self, batch: Batch, totals: dict[str, tf.Tensor], replica: tf.Tensor | int
    ) -> list[tf.Tensor]:
        """This replica's part of the gradients of the global batch's objective."""
        if self.micro_batches == 1:
            return self._gradients(batch, totals, replica, micro_batch=0)
        parts = {
            name: tf.reshape(value, [self.micro_batches, -1, *value.shape[1:]])
            for name, value in batch.items()
        }
        whole = self._contrast_whole_batch(batch, parts, totals, replica)

        def add(micro_batch: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            part, contrast = _at(micro_batch, parts), whole and _at(micro_batch, whole)
            gradients = self._gradients(part, totals, replica, micro_batch, contrast)
            return micro_batch + 1, [s + g for s, g in zip(sums, gradients, strict=True)]

        state = (tf.constant(0), [tf.zeros(v.shape, tf.float32) for v in self.trainable_variables])
        communicates = self.communicates or (self.contrasts and not self.contrasts_whole_batch)
        several = self.distribute_strategy.num_replicas_in_sync > 1
        if communicates and several and not self._compiled:
            # Without XLA, replicas cannot talk to each other inside a loop of the graph: unrolled,
            # yet one after the other.
            for _ in range(self.micro_batches):
                with tf.control_dependencies(state[1]):
                    state = add(*state)
            return state[1]
        return tf.while_loop(
            lambda micro_batch, _: micro_batch < self.micro_batches,
            add,
            state,
            parallel_iterations=1,  # more would hold the activations of several
        )[1]

    def _contrast_whole_batch(
        self, batch: Batch, parts: Batch, totals: dict[str, tf.Tensor], replica: tf.Tensor | int
    ) -> tuple[list[tf.Tensor], tf.Tensor] | None:
        """For each micro-batch, its vectors' gradients and its part of the objective, if asked."""
        if not self.contrasts_whole_batch:
            return None

        def vectors_of(micro_batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # Operations that only the other losses need are pruned from the graph.
            found = []
            with self._seeded(replica, micro_batch):
                self.compute(_at(micro_batch, parts), training=True, contrast=_keeping(found))
            return tuple(found)

        count, width = self.contrasts
        rows_of_part = next(iter(parts.values())).shape[1]
        vector = tf.TensorSpec([rows_of_part, width], self.compute_dtype)
        vectors = tf.map_fn(
            vectors_of,
            tf.range(self.micro_batches),
            parallel_iterations=1,
            fn_output_signature=(vector,) * count,
        )
        rows = [tf.reshape(x, [-1, x.shape[-1]]) for x in vectors]
        weights = self.denominators(batch)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            losses, measures = self.contrast(*rows)
            objective = self._objective(losses, weights, totals)
            scaled = objective * self.loss_scale
        self._record_losses(losses, weights, measures)
        gradients = tape.gradient(scaled, rows)
        share = tf.fill([self.micro_batches], objective / self.micro_batches)
        return [tf.reshape(g, x.shape) for g, x in zip(gradients, vectors, strict=True)], share

    def _gradients(
        self,
        batch: Batch,
        totals: dict[str, tf.Tensor],
        replica: tf.Tensor | int,
        micro_batch: tf.Tensor | int,
        contrast: tuple[list[tf.Tensor], tf.Tensor] | None = None,
    ) -> list[tf.Tensor]:
        """The gradients of one micro-batch, with its part of the whole contrast if given."""
        weights, vectors = self.denominators(batch), []
        instead = {"contrast": _keeping(vectors)} if contrast else {}
        with self._seeded(replica, micro_batch), tf.GradientTape() as tape:
            losses, measures = self.compute(batch, training=True, **instead)
            objective = self._objective(losses, weights, totals)
            targets = [objective * self.loss_scale, *vectors]
        gradients = tape.gradient(
            targets,
            [variable.value for variable in self.trainable_variables],
            output_gradients=[tf.ones([]), *contrast[0]] if contrast else None,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        if contrast:
            objective += contrast[1]
        self._record(objective, losses, weights, measures, self.micro_batches)
        return [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _update(self, gradients: list[tf.Tensor], replica: tf.Tensor | int) -> None:
        # As `tf.linalg.global_norm`; the terms say which gradient was not finite.
        squares = sums_of_squares(gradients)
        norm = tf.sqrt(tf.reduce_sum(squares)) / self.loss_scale
        finite = tf.math.is_finite(norm)
        clipping = self.clip_norm / tf.maximum(norm, self.clip_norm) if self.clip_norm else 1.0
        scale = tf.where(finite, clipping / self.loss_scale, 0.0)
        self._meters["learning_rate"].update_state(self.optimizer.learning_rate)
        self._meters["gradient_norm"].update_state(
            tf.math.multiply_no_nan(norm, tf.cast(finite, norm.dtype)), tf.cast(finite, norm.dtype)
        )
        if isinstance(self.optimizer, SkippingOptimizer):
            self.optimizer.apply_scaled(gradients, self.trainable_variables, scale, replica)
        else:
            # Keras's own optimizers sum over the replicas, each of which has the whole sum already.
            scale /= self.distribute_strategy.num_replicas_in_sync
            self.optimizer.apply(
                [tf.math.multiply_no_nan(gradient, scale) for gradient in gradients],
                self.trainable_variables,
            )
        self._count_skips(finite, tf.sqrt(squares) / self.loss_scale, replica)

    def _count_skips(self, finite: tf.Tensor, norms: tf.Tensor, replica: tf.Tensor | int) -> None:
        skipped = 1 - tf.cast(finite, tf.int32)
        is_first = (skipped > 0) & ((self.skipped_in_a_row < 1) | (self.skipped_at < 1))
        step = tf.cast(self.optimizer.iterations, tf.int32)
        self.skipped_at.assign(tf.where(is_first, step, self.skipped_at))
        self.skipped_norms.assign(
            tf.where(is_first, tf.cast(norms, tf.float32), self.skipped_norms)
        )
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

    def _seeded(
        self, replica: tf.Tensor | int, micro_batch: tf.Tensor | int
    ) -> keras.StatelessScope:
        """A scope in which every seed generator's state is a function of step and micro-batch."""
        states = generator_states(self.seed, self.optimizer.iterations, replica, micro_batch)
        mapping = [
            (generator.state, state)
            for generator, state in zip(self.seed_generators(), states, strict=False)
        ]
        return keras.StatelessScope(state_mapping=mapping)

    def _objective(
        self,
        losses: Losses,
        weights: dict[str, tf.Tensor],
        totals: dict[str, tf.Tensor],
    ) -> tf.Tensor:
        """What this batch adds to the objective of the global batch."""
        terms = [
            weight * losses[name] * tf.math.divide_no_nan(weights[name], totals[name])
            for name, weight in self.loss_weights.items()
            if name in losses
        ]
        return tf.add_n(terms) if terms else tf.zeros([])

    def _record(
        self,
        objective: tf.Tensor,
        losses: Losses,
        weights: dict[str, tf.Tensor],
        measures: Measures,
        micro_batches: int,
    ) -> None:
        parts = self.distribute_strategy.num_replicas_in_sync * micro_batches
        self._meters["loss"].update_state(objective * parts, 1 / parts)
        self._record_losses(losses, weights, measures)

    def _record_losses(
        self, losses: Losses, weights: dict[str, tf.Tensor], measures: Measures
    ) -> None:
        for name, loss in losses.items():
            self._meters[name].update_state(loss, weights[name])
        for name, (value, weight) in measures.items():
            self._meters[name].update_state(value, weight)


def generator_states(seed: int, *place: tf.Tensor | int) -> Iterator[tf.Tensor]:
    """The states, uint32 [2], of all seed generators in a step, on a replica, in a micro-batch."""
    fold_in = tf.random.experimental.stateless_fold_in
    state = tf.constant([seed, 0x5EED], tf.int32)
    for position in place:
        state = fold_in(state, tf.cast(position, tf.int32))
    for number in itertools.count():
        yield tf.cast(fold_in(state, number), tf.uint32)


class _WeightedMean(keras.metrics.Mean):
    """`keras.metrics.Mean` of scalars in replica context, in a quarter of its operations."""

    def update_state(self, value: tf.Tensor, weight: tf.Tensor | float = 1.0) -> None:
        self.total.value.assign_add(value * weight)
        self.count.value.assign_add(weight)


def _own_number() -> tf.Tensor | int:
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def _numbers_of_replicas(strategy: tf.distribute.Strategy) -> tf.distribute.DistributedValues:
    """Each replica's number, as an input of the program."""
    # As an input it leaves all replicas the same program. XLA may order the messages of different
    # programs differently, and the replicas would then wait for each other without end.
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(context.replica_id_in_sync_group)
    )


def _at(index: tf.Tensor, parts: Any) -> Any:
    """One part of each of a structure of tensors."""
    return tf.nest.map_structure(lambda x: x[index], parts)


def _keeping(found: list[tf.Tensor]) -> Callable[..., tuple[Losses, Measures]]:
    """A function that takes the place of a contrast and only keeps the vectors."""

    def keep(*vectors: tf.Tensor) -> tuple[Losses, Measures]:
        found.extend(vectors)
        return {}, {}

    return keep

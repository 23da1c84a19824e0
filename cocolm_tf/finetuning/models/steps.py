"""The steps of `fit()`, `evaluate()` and `predict()` of models that take texts."""

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_hub
import tensorflow as tf

from cocolm_tf.losses.replicas import sum_over_replicas
from cocolm_tf.modeling.training_step import SkippingOptimizer
from cocolm_tf.ops.fusion import sums_of_squares
from cocolm_tf.training.distribution import compiles_step

# After how many batches a shape that was not known before gets a program of its own, and the most
# such programs.
_TIMES_OF_A_SHAPE, _MOST_SHAPES = 8, 16


def task_with_steps(base: type[keras_hub.models.Task]) -> type[keras_hub.models.Task]:
    """Derives a KerasHub task whose steps run at the device's speed and may be in micro-batches."""
    # Where the shapes of batches are known, as of those that `fit()` makes of texts, there is one
    # program for each of few widths; batches of unknown shapes share one program. A row of weight 0
    # is neither learned from nor counted, in the loss or in a metric, so that a batch may be filled
    # with such rows; all other rows count as they do without them.
    # A function and not a mixin: Keras rewrites the bases of a functional model's class, which
    # fails with a mixin among them.

    class TaskWithSteps(base):
        """See `task_with_steps`."""

        def compile(
            self,
            *args: Any,
            jit_compile: bool | None = None,
            micro_batches: int = 1,
            **kwargs: Any,
        ) -> None:
            if micro_batches < 1:
                raise ValueError(f"micro_batches={micro_batches} must be at least 1.")
            strategy = self.distribute_strategy
            self._whole_step = compiles_step(jit_compile, strategy)
            self._any_shape = bool(jit_compile)
            self._micro_batches = micro_batches
            with strategy.scope():
                super().compile(*args, jit_compile=False, **kwargs)

        # What Keras calls.

        def make_train_function(self, force: bool = False) -> None:
            if self.train_function is not None and not force:
                return
            # Keras would build the optimizer while it traces the step, and then trace it again.
            if not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.trainable_variables)
            programs = self._programs(self._train)
            self.train_function = _on_iterator(programs, self, _has_fixed_rows)

        def make_test_function(self, force: bool = False) -> None:
            if self.test_function is not None and not force:
                return
            programs = self._programs(self._test)
            self.test_function = _on_iterator(programs, self, lambda _: False)

        def make_predict_function(self, force: bool = False) -> None:
            if self.predict_function is not None and not force:
                return
            programs = self._programs(lambda batch, _: self.predict_step(batch), is_prediction=True)

            def function(batches: Sequence[Any]) -> Any:
                found = [programs(batch) for batch in batches]
                return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *found)

            self.predict_function = function

        # How a step works.

        def _programs(
            self, step: Callable[[Any, Any], Any], is_prediction: bool = False
        ) -> "_Programs":
            strategy = self.distribute_strategy
            # AutoGraph has nothing to convert in the model, and takes a minute to find out.
            step = tf.autograph.experimental.do_not_convert(step)
            whole = tf.function(step, jit_compile=True, autograph=False)
            # An input, so that all replicas have the same program: see `TrainingStep`.
            replicas = strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(context.replica_id_in_sync_group)
            )

            def run(step: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
                @tf.autograph.experimental.do_not_convert
                def on_replicas(batch: Any) -> Any:
                    outputs = strategy.run(step, args=(batch, replicas))
                    if not is_prediction:
                        return self.get_metrics_result()
                    return tf.nest.map_structure(
                        lambda x: tf.concat(strategy.experimental_local_results(x), 0), outputs
                    )

                return on_replicas

            return _Programs(
                run(whole if self._whole_step else step),
                run(whole if self._any_shape else step),
                eager=self.run_eagerly,
                # TPUs compile no program for unknown shapes.
                only_fixed=isinstance(strategy, tf.distribute.TPUStrategy),
            )

        def _train(self, batch: Any, replica: tf.Tensor | int) -> None:
            x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
            total = sum_over_replicas(_count(x, weights))

            if self._micro_batches == 1:
                gradients = self._gradients((x, y, weights), total, replica, 0)
            else:
                parts = cut((x, y, weights), self._micro_batches)
                gradients = sum_over_parts(
                    lambda number: self._gradients(part_of(parts, number), total, replica, number),
                    self._micro_batches,
                    self.trainable_variables,
                )
            self._update(sum_over_replicas(gradients))

        def _test(self, batch: Any, replica: tf.Tensor | int) -> None:
            x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
            y_pred = self(x, training=False)
            self._loss(x, y, y_pred, weights, training=False)
            self._measure(y, y_pred, weights)

        def _gradients(
            self, batch: Any, total: tf.Tensor, replica: Any, micro_batch: Any
        ) -> list[tf.Tensor]:
            """A part's share of the gradients of the global batch's mean loss."""
            x, y, weights = batch
            with tf.GradientTape() as tape:
                with self._seeded(replica, micro_batch):
                    y_pred = self(x, training=True)
                loss = self._loss(x, y, y_pred, weights, training=True)
                loss *= tf.math.divide_no_nan(_count(x, weights), total)
                loss = self.optimizer.scale_loss(loss)
            self._measure(y, y_pred, weights)
            gradients = tape.gradient(
                loss,
                [variable.value for variable in self.trainable_variables],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return [tf.convert_to_tensor(gradient) for gradient in gradients]

        def _loss(self, x: Any, y: Any, y_pred: Any, weights: Any, training: bool) -> tf.Tensor:
            """The mean loss over all whose weight is not 0; the loss tracker gets it, too."""
            if weights is not None:
                is_there = tf.not_equal(weights, 0)
                for output in tf.nest.flatten(y_pred):
                    # Makes Keras average over these, whatever the loss.
                    output._keras_mask = is_there
            loss = self._compute_loss(x, y, y_pred, weights, training=training)
            # Keras has divided it by the number of replicas.
            loss *= self.distribute_strategy.num_replicas_in_sync
            self._loss_tracker.update_state(loss, sample_weight=_count(x, weights))
            return loss

        def _measure(self, y: Any, y_pred: Any, weights: Any) -> None:
            """Updates the metrics; unweighted ones by all rows or tokens whose weight is not 0."""
            compiled = self._compile_metrics
            if compiled is None:
                return
            if weights is None:
                compiled.update_state(y, y_pred)
                return
            if not compiled.built:
                compiled.build(y, y_pred)
            is_there = tf.cast(tf.not_equal(weights, 0), weights.dtype)
            y, y_pred = compiled._flatten_y(y), compiled._flatten_y(y_pred)
            for metrics, factor in (
                (compiled._flat_metrics, is_there),
                (compiled._flat_weighted_metrics, weights),
            ):
                for metric, true, predicted in zip(metrics, y, y_pred, strict=True):
                    if metric is not None:
                        metric.update_state(true, predicted, factor)

        def _update(self, gradients: list[tf.Tensor]) -> None:
            optimizer, replicas = self.optimizer, self.distribute_strategy.num_replicas_in_sync
            clips_each = getattr(optimizer, "clipnorm", None) or getattr(
                optimizer, "clipvalue", None
            )
            if isinstance(optimizer, SkippingOptimizer) and not clips_each:
                scale = tf.constant(1.0)
                if limit := optimizer.global_clipnorm:
                    norm = tf.sqrt(tf.reduce_sum(sums_of_squares(gradients)))
                    clipping = limit / tf.maximum(norm, limit)
                    # Gradients that are not finite reach the weights, as elsewhere in Keras.
                    scale = tf.where(tf.math.is_finite(norm), clipping, 1.0)
                optimizer.apply_scaled(gradients, self.trainable_variables, scale)
                return
            # Keras's own optimizers add up over replicas, and each has the whole sum already.
            optimizer.apply([g / replicas for g in gradients], self.trainable_variables)

        def _seeded(self, replica: Any, micro_batch: Any) -> keras.StatelessScope:
            """A scope in which dropout follows from the step, the replica and the micro-batch."""
            state = self.backbone.seed_generator.state
            seed = tf.cast(tf.convert_to_tensor(state), tf.int32)
            for position in (self.optimizer.iterations, replica, micro_batch):
                seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(position, tf.int32))
            return keras.StatelessScope(state_mapping=[(state, tf.cast(seed, state.dtype))])

    return TaskWithSteps


class _Programs:
    """Calls a function of batches by a program for each of few shapes, and one for all others."""

    # Programs for one shape are fast, and take long to compile.

    def __init__(
        self,
        fixed: Callable[[Any], Any],
        free: Callable[[Any], Any],
        eager: bool,
        only_fixed: bool,
    ) -> None:
        self._fixed, self._free = fixed, free
        if not eager:
            self._fixed = tf.function(fixed, autograph=False)
            self._free = tf.function(free, autograph=False, reduce_retracing=True)
        self._only_fixed = only_fixed
        self._times: collections.Counter[Any] = collections.Counter()
        self._shapes: set[Any] = set()
        self.step = fixed  # for `_on_iterator`, which loops over it in a graph

    def __call__(self, batch: Any, has_few_shapes: bool = False) -> Any:
        # Keras may pass missing labels as an `Optional`.
        batch = tf.nest.map_structure(
            lambda x: None if isinstance(x, tf.experimental.Optional) else x, batch
        )
        if self._only_fixed:
            return self._fixed(batch)
        leaves = tf.nest.flatten(batch, expand_composites=True)
        shape = tuple(tuple(leaf.shape) for leaf in leaves if leaf is not None)
        self._times[shape] += 1
        is_worth_it = has_few_shapes or self._times[shape] > _TIMES_OF_A_SHAPE
        if is_worth_it and len(self._shapes) < _MOST_SHAPES:
            self._shapes.add(shape)
        return self._fixed(batch) if shape in self._shapes else self._free(batch)


def _on_iterator(
    programs: _Programs, model: keras.Model, has_few_shapes: Callable[[Any], bool]
) -> Callable[[Any], Any]:
    """The function of an iterator that Keras calls for `steps_per_execution` batches."""
    steps = model.steps_per_execution

    @tf.function
    def loop(iterator: Any) -> Any:
        logs = programs.step(next(iterator))
        for _ in tf.range(steps - 1):
            logs = programs.step(next(iterator))
        return logs

    def function(iterator: Any) -> Any:
        spec = getattr(iterator, "element_spec", None)
        if steps > 1 and _is_static(spec) and not model.run_eagerly:
            try:
                return loop(iterator)
            except tf.errors.OutOfRangeError as end:
                raise StopIteration from end
        few, logs = has_few_shapes(spec), None
        for batch in itertools.islice(iterator, steps):
            logs = programs(batch, few)
        if logs is None:
            raise StopIteration
        return logs

    return function


def _has_fixed_rows(spec: Any) -> bool:
    """Whether the batches of a dataset all have as many rows; their widths may differ."""
    leaves = tf.nest.flatten(spec, expand_composites=True)
    return spec is not None and all(bool(x.shape.rank and x.shape[0]) for x in leaves)


def _is_static(spec: Any) -> bool:
    leaves = tf.nest.flatten(spec, expand_composites=True)
    return spec is not None and all(leaf.shape.is_fully_defined() for leaf in leaves)


def _count(x: Any, weights: tf.Tensor | None) -> tf.Tensor:
    """The number of rows, or of rows or tokens with a weight, that the loss is a mean of."""
    if weights is None:
        return tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
    return tf.reduce_sum(tf.cast(tf.not_equal(weights, 0), tf.float32))


def sum_over_parts(
    gradients_of: Callable[[tf.Tensor], list[tf.Tensor]], parts: int, variables: Sequence[Any]
) -> list[tf.Tensor]:
    """The sums of the gradients of parts, by their numbers, computed one after the other."""

    def add(number: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return number + 1, [s + g for s, g in zip(sums, gradients_of(number), strict=True)]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    return tf.while_loop(
        lambda number, _: number < parts,
        add,
        (tf.constant(0), zeros),
        parallel_iterations=1,  # more would keep the activations of several parts
    )[1]


def cut(batch: Any, parts: int) -> Any:
    """Cuts the [B, ...] tensors of a batch into parts, [parts, B / parts, ...]."""

    def of_tensor(x: tf.Tensor | None) -> tf.Tensor | None:
        if x is None:
            return None
        rest = x.shape[1:] if x.shape[1:].is_fully_defined() else tf.shape(x)[1:]
        return tf.reshape(x, tf.concat([[parts, -1], rest], 0))

    return tf.nest.map_structure(of_tensor, batch)


def part_of(parts: Any, number: tf.Tensor) -> Any:
    """One part of a batch that `cut` cut."""
    return tf.nest.map_structure(lambda x: None if x is None else x[number], parts)

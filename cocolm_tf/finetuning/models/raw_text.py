"""What models whose `fit()` takes raw text have in common."""

import collections
import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import (
    TOKENIZED_AT_ONCE,
    Column,
    Tokens,
    prediction_batches,
    training_batches,
    trimmed,
    without_padding,
)
from cocolm_tf.losses.replicas import sum_over_replicas
from cocolm_tf.modeling.training_step import SkippingOptimizer
from cocolm_tf.ops.fusion import sums_of_squares
from cocolm_tf.training.distribution import compiles_step
from cocolm_tf.training.optimization import AdamW

# Rows of a batch where `batch_size` is None.
BATCH_SIZE = 32

# After how many batches a shape that was not known before gets a program of its own, and the most
# such programs.
_TIMES_OF_A_SHAPE, _MOST_SHAPES = 8, 16

Columns = tuple[list[str | bytes], ...]

_NO_NAMES = (
    "labels are strings: say what the classes are called, label_names=[...], when you make the "
    "classifier, or give their numbers."
)
# Marks the errors of a dataset's labels, which are checked in the graph when it runs.
_UNFIT = "the dataset has a label that is no class: "


def text_columns(x: Any, names: Sequence[str] = ("first texts", "second texts")) -> Columns | None:
    """Texts, or the two texts of pairs, as lists; None where `x` is tokens or a dataset."""
    # Pairs are a tuple of two lists, arrays, tensors or columns of strings, or a list, array or
    # table of rows of two. A `ValueError` names what is none of these.
    if isinstance(x, str | bytes) or getattr(x, "ndim", 1) == 0:
        raise ValueError(f"texts come in batches: give a list of texts instead of {x!r}.")
    if isinstance(x, tuple):
        columns = [*x]
    elif isinstance(x, Sequence):
        is_pairs = bool(x) and all(isinstance(row, list | tuple | np.ndarray) for row in x)
        columns = [*zip(*x, strict=True)] if is_pairs else [x]
    elif hasattr(x, "__array__"):
        array = np.asarray(x)
        columns = [*array.T] if array.ndim == 2 else [array]
    else:
        return None
    if len(columns) not in (1, 2):
        raise ValueError(
            f"a row is a text or a pair of texts, not {len(columns)} texts: give the columns of "
            "pairs as a tuple, (first, second)."
        )
    found = tuple(map(_strings, columns))
    if len(found[0]) != len(found[-1]):
        raise ValueError(
            f"{len(found[0])} {names[0]}, {len(found[1])} {names[1]}: each row has one of both."
        )
    return found


def as_model_input(columns: Columns) -> Any:
    """Columns as KerasHub takes them, in arrays of objects: NumPy's strings waste memory."""
    arrays = tuple(np.fromiter(column, object, len(column)) for column in columns)
    return arrays if len(arrays) > 1 else arrays[0]


def class_numbers(
    labels: Any, rows: int, num_classes: int, label_names: Sequence[str] | None, strict: bool
) -> np.ndarray:
    """The numbers [N] of classes, given as numbers or names; `ValueError` names a wrong one."""
    # With `strict` every label must be the number of a class, as sparse cross entropy needs it;
    # otherwise labels may be anything that another loss takes, and are left as they are.
    labels = _counted(labels, rows)
    if labels.dtype.kind in "OSU" and any(isinstance(one, str | bytes) for one in labels.flat):
        return _numbers_of_names(labels, label_names)
    if not strict:
        return labels
    if labels.ndim > 1:
        raise ValueError(
            f"labels are [N], the number of each text's class, not {[*labels.shape]}: for shares "
            "of classes compile with keras.losses.CategoricalCrossentropy(from_logits=True)."
        )
    numbers = finite_numbers(labels, rows)
    is_class = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < num_classes)
    if not is_class.all():
        row = int(np.argmin(is_class))
        counts_from_1 = (numbers.min(), numbers.max()) == (1, num_classes)
        raise ValueError(
            f"label {row} is {numbers[row]:g}, but the {num_classes} classes are 0 to "
            f"{num_classes - 1}{': count them from 0' if counts_from_1 else ''}."
        )
    return numbers.astype(np.int32)


def multi_hot(
    labels: Any, rows: int, num_classes: int, label_names: Sequence[str] | None
) -> np.ndarray:
    """Several labels a text as [N, num_classes] of 0 and 1; `ValueError` names a wrong row."""
    # `labels` are such rows, or for each text a list of the names of its labels.
    if labels is None:
        raise ValueError("there are no labels: give y.")
    if len(labels) != rows:
        raise ValueError(f"{rows} texts, but labels of {len(labels)}: each text has some or none.")
    if not rows:
        raise ValueError("there are no texts.")
    wanted = f"0 or 1 for each of the {num_classes} labels, or a list of names"
    numbers = {name: number for number, name in enumerate(label_names or ())}
    table = np.zeros([rows, num_classes], np.float32)
    for row, given in enumerate(labels):
        if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
            raise ValueError(f"row {row} has the labels {given!r}: give {wanted}.")
        names = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in given]
        if all(isinstance(name, str) for name in names):
            for name in names:
                if name not in numbers:
                    known = ", ".join(numbers) or "as there are no label_names"
                    raise ValueError(f"row {row} has the label {name!r}, none of {known}.")
                table[row, numbers[name]] = 1.0
        elif len(names) == num_classes and all(one in (0, 1) for one in names):
            table[row] = names
        else:
            raise ValueError(f"row {row} has the labels {given!r}: give {wanted}.")
    return table


def finite_numbers(labels: Any, rows: int, bounds: Sequence[float] | None = None) -> np.ndarray:
    """A regression's labels as float32; `ValueError` names one not finite or out of bounds."""
    labels = _counted(labels, rows)
    if labels.dtype.kind in "biuf":
        numbers = labels.astype(np.float64).ravel()
    else:
        numbers = np.array([_number(label) for label in labels.flat])
    low, high = bounds or (-math.inf, math.inf)
    is_good = np.isfinite(numbers) & (numbers >= low) & (numbers <= high)
    if not is_good.all():
        place = int(np.argmin(is_good))
        wanted = f"a number from {low:g} to {high:g}" if bounds else "a finite number"
        row = place // max(1, labels.size // rows)
        raise ValueError(f"label {row} is {labels.ravel().tolist()[place]!r}, not {wanted}.")
    return numbers.astype(np.float32).reshape(labels.shape)


def check_weights(weights: Any, rows: int) -> None:
    """Raises `ValueError` unless each text has a weight, or there are none."""
    if weights is not None and len(weights) != rows:
        raise ValueError(f"{rows} texts, but {len(weights)} sample weights: each text has one.")


def check_dataset(
    dataset: tf.data.Dataset, label_names: Sequence[str] | None, has_labels: bool
) -> None:
    """Raises `ValueError` for a dataset of texts whose element types show that it cannot work."""
    spec = dataset.element_spec
    x, *y = spec if isinstance(spec, tuple) else (spec,)
    texts = [one for one in tf.nest.flatten(x) if getattr(one, "dtype", None) == tf.string]
    if not texts:
        return
    if any(text.shape.rank == 0 for text in texts):
        raise ValueError("the dataset gives one text at a time: make batches, dataset.batch(32).")
    if has_labels and not y:
        raise ValueError("the dataset gives texts alone, where it must give (texts, labels).")
    if has_labels and getattr(y[0], "dtype", None) == tf.string and label_names is None:
        raise ValueError(_NO_NAMES)


def class_numbers_in_graph(
    labels: tf.Tensor, num_classes: int, label_names: Sequence[str] | None, strict: bool
) -> tf.Tensor:
    """What `class_numbers` does, for the labels [B] of a dataset's batch."""
    if labels.dtype == tf.string:
        matches = tf.equal(labels[..., tf.newaxis], tf.constant(label_names))
        is_class = tf.reduce_any(matches, axis=-1)
        labels, message = tf.argmax(matches, axis=-1, output_type=tf.int32), ", ".join(label_names)
    elif strict and labels.dtype != tf.bool:
        number = tf.cast(labels, tf.float64)
        is_class = (number >= 0) & (number < num_classes) & tf.equal(number, tf.floor(number))
        message = f"0 to {num_classes - 1}"
    else:
        return labels
    message = f"{_UNFIT}the {num_classes} classes are {message}."
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_class), [message])]):
        return tf.identity(labels)


@contextlib.contextmanager
def explain_label_errors() -> Iterator[None]:
    """Turns what `class_numbers_in_graph` finds when a dataset runs into a `ValueError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        _, found, rest = error.message.partition(_UNFIT)
        if not found:
            raise
        raise ValueError(found + rest.partition("]")[0].splitlines()[0]) from error


def answer_spans(answers: Any, contexts: Sequence[str]) -> np.ndarray:
    """The answers' [start, end) in contexts, [N, 2] int32; `ValueError` names a wrong one."""
    wanted = "y must say where the answers are: [N, 2], the characters [start, end) of the contexts"
    try:
        spans = np.asarray(answers)
        numbers = spans.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}.") from error
    if spans.shape != (len(contexts), 2):
        raise ValueError(f"{wanted}; there are {len(contexts)} of them, and y is {spans.shape}.")
    lengths = np.array([len(context) for context in contexts])
    start, end = numbers.T
    is_good = (numbers == np.floor(numbers)).all(1) & (start >= 0) & (start <= end)
    is_good &= end <= lengths
    if not is_good.all():
        row = int(np.argmin(is_good))
        raise ValueError(
            f"{wanted}; answer {row} is {spans[row].tolist()}, of a context of {lengths[row]}."
        )
    return numbers.astype(np.int32)


def _strings(column: Any) -> list[str | bytes]:
    if isinstance(column, str | bytes):
        raise ValueError(f"texts come in batches: give a list of texts instead of {column!r}.")
    column = column if isinstance(column, Sequence) else np.asarray(column).tolist()
    for row, text in enumerate(column):
        if not isinstance(text, str | bytes):
            raise ValueError(
                f"text {row} is {text!r}, not a string: leave out the rows that have no text, and "
                "their labels."
            )
    return [*column]


def _counted(labels: Any, rows: int) -> np.ndarray:
    if labels is None:
        raise ValueError("there are no labels: give y.")
    try:
        given, labels = labels, np.asarray(labels)
    except ValueError as error:
        raise ValueError("labels are one number or name for each text.") from error
    if labels.dtype.kind in "SU":
        labels = np.asarray(given, object)  # NumPy turned numbers among the strings into strings.
    if labels.ndim == 0 or len(labels) != rows:
        count = len(labels) if labels.ndim else 1
        raise ValueError(
            f"{rows} texts, but {count} labels: each text has one. Rows that were left out of the "
            "one must be left out of the other."
        )
    if not rows:
        raise ValueError("there are no texts.")
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _numbers_of_names(labels: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    if names is None:
        raise ValueError(_NO_NAMES)
    numbers = {name: number for number, name in enumerate(names)}
    found = []
    for row, label in enumerate(labels.tolist()):
        name = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
        if not isinstance(name, str) or name not in numbers:
            raise ValueError(f"label {row} is {label!r}, none of {', '.join(names)}.")
        found.append(numbers[name])
    return np.array(found, np.int32)


def _number(label: Any) -> float:
    try:
        return math.nan if isinstance(label, str | bytes) else float(label)
    except (TypeError, ValueError):
        return math.nan


def check_row_length(
    preprocessor: keras_hub.models.Preprocessor | None, backbone: keras_hub.models.Backbone
) -> None:
    """Raises `ValueError` if a preprocessor's rows are longer than a model can read."""
    length = getattr(preprocessor, "sequence_length", 0)
    if length > backbone.max_sequence_length:
        raise ValueError(
            f"The preprocessor's sequence_length={length} is more than the backbone's "
            f"max_sequence_length={backbone.max_sequence_length}."
        )


def raw_text_task(base: type[keras_hub.models.Task]) -> type[keras_hub.models.Task]:
    """Derives a KerasHub task that preprocesses, traces and saves no more than it needs."""
    # Its steps run at the device's speed where the shapes of batches are known, as for the batches
    # that `fit()` makes of texts: one program for each of few widths. Batches of unknown shapes
    # share one program. A row of weight 0 is neither learned from nor counted, in the loss or in a
    # metric, so that a batch may be filled with such rows; all other rows count as they do without
    # them.
    # A function and not a mixin: Keras rewrites the bases of a functional model's class, which
    # fails with a mixin among them.
    # A class that derives from it sets `trim_padding`: whether padding that all rows of a batch
    # have in common is cut off; otherwise all batches are as wide as the preprocessor's rows.

    class RawTextTask(base):
        """The base of the exported Keras classes, which have its public methods."""

        trim_padding: bool
        label_names: Sequence[str] | None = None

        def compile(
            self,
            *args: Any,
            jit_compile: bool | None = None,
            micro_batches: int = 1,
            **kwargs: Any,
        ) -> None:
            """Configures the model for `fit()`.

            Args:
                *args: As for `keras.Model.compile`.
                jit_compile: Whether XLA compiles the whole step; None to decide by the devices: on
                    GPUs it does, on CPUs it compiles only the parts that gain by it.
                micro_batches: Into how many parts each batch is cut, whose gradients are added: the
                    memory of a small batch, the gradients of a large one.
                **kwargs: As for `keras.Model.compile`.

            Raises:
                ValueError: If `micro_batches` is less than 1.

            Example:
            ```python
            classifier.compile(keras.optimizers.Adam(1e-5), micro_batches=4)
            ```
            """
            if micro_batches < 1:
                raise ValueError(f"micro_batches={micro_batches} must be at least 1.")
            strategy = self.distribute_strategy
            self._whole_step = compiles_step(jit_compile, strategy)
            self._any_shape = bool(jit_compile)
            self._micro_batches = micro_batches
            with strategy.scope():
                super().compile(*args, jit_compile=False, **kwargs)

        def fit(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            *,
            sample_weight: Any = None,
            class_weight: Mapping[int, float] | None = None,
            validation_split: float = 0.0,
            validation_data: Any = None,
            shuffle: bool = True,
            **kwargs: Any,
        ) -> Any:
            """Fine-tunes the model.

            Texts are tokenized once and shuffled in every epoch, and those of like lengths share a
            batch. Where `shuffle` is off or there is a `validation_split`, Keras makes the batches;
            those of a `tf.data.Dataset` are left as they are.

            Args:
                x: All texts, in the forms of the preprocessor: lists, arrays or columns of strings,
                    a tuple of two of these or a [N, 2] array for pairs; or a `tf.data.Dataset` of
                    batches of `(x, y)`.
                y: [N], the numbers of the classes, or their names where there are `label_names`;
                    the numbers of a regression.
                batch_size: Rows of a batch; None for 32.
                sample_weight: [N], weights of the labels; a row of weight 0 is ignored.
                class_weight: The weight of each class, by its number.
                validation_split: As for `keras.Model.fit`.
                validation_data: `(x, y)` or `(x, y, sample_weight)`, or a dataset.
                shuffle: Whether every epoch has another order.
                **kwargs: As for `keras.Model.fit`.

            Returns:
                Keras's `History`.

            Raises:
                ValueError: Naming the first text or label that is wrong.

            Example:
            ```python
            classifier.fit(["It was great.", "It was not."], [1, 0], batch_size=2, epochs=3)
            ```
            """
            if isinstance(validation_data, tuple | list):
                parts = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
                columns = self._columns(parts[0])
                validation_data = (
                    self._measuring_batches(columns, *parts[1:], batch_size)
                    if columns
                    else (*self.checked(*parts), *parts[2:])
                )
            elif validation_data is not None:
                self.checked(validation_data, None)
            columns = self._columns(x)
            if columns is None or validation_split or not shuffle:
                x, y = self.checked(x, y, sample_weight)
                kwargs |= {"validation_split": validation_split, "shuffle": shuffle}
                kwargs |= {"sample_weight": sample_weight, "class_weight": class_weight}
            else:
                labels, weights = self._labels(columns, y, sample_weight)
                if class_weight:
                    factors = [class_weight.get(int(label), 1.0) for label in labels]
                    weights = np.float32(factors) * (1 if weights is None else weights)
                x, steps = self._learning_batches(
                    columns, labels, self._batch_size(batch_size), weights
                )
                y = batch_size = None
                kwargs = {"steps_per_epoch": steps, **kwargs, "shuffle": False}
            with explain_label_errors():
                return super().fit(x, y, batch_size, validation_data=validation_data, **kwargs)

        def evaluate(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            sample_weight: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Computes the loss and the metrics.

            Args:
                x: As for `fit`.
                y: As for `fit`.
                batch_size: Rows of a batch; None for 32.
                sample_weight: As for `fit`.
                **kwargs: As for `keras.Model.evaluate`.

            Returns:
                What `keras.Model.evaluate` returns.

            Raises:
                ValueError: Naming the first text or label that is wrong.

            Example:
            ```python
            classifier.evaluate(["It was great."], [1], return_dict=True)
            ```
            """
            if columns := self._columns(x):
                x = self._measuring_batches(columns, y, sample_weight, batch_size)
                y = sample_weight = batch_size = None
            else:
                x, y = self.checked(x, y, sample_weight)
            with explain_label_errors():
                return super().evaluate(x, y, batch_size, sample_weight=sample_weight, **kwargs)

        def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
            """Computes the model's outputs.

            Args:
                x: As for `fit`.
                batch_size: Rows of a batch; None for 32.
                **kwargs: As for `keras.Model.predict`.

            Returns:
                What `keras.Model.predict` returns, in the order of `x`.

            Raises:
                ValueError: Naming the first text that is wrong.

            Example:
            ```python
            classifier.predict(["It was great."])
            ```
            """
            # Texts are read in the order of their lengths.
            columns = self._columns(x)
            if columns is None:
                if isinstance(x, tf.data.Dataset):
                    check_dataset(x, None, has_labels=False)
                return super().predict(x, batch_size, **kwargs)
            count = len(columns[0])
            if not count:
                raise ValueError("there are no texts.")
            batches, order = prediction_batches(
                self.tokens_of(columns),
                min(batch_size or BATCH_SIZE, count),
                8 if self.trim_padding else 0,
            )
            found = super().predict(batches, **kwargs)
            outputs = np.empty_like(found[:count])
            outputs[order] = found[:count]
            return outputs

        def tokens_of(self, columns: Columns) -> Tokens:
            """Columns of texts as rows of tokens, without padding."""
            rows, at_once = len(columns[0]), TOKENIZED_AT_ONCE
            features = [
                self.preprocessor(x=tuple(texts[start : start + at_once] for texts in columns))
                for start in range(0, rows, at_once)
            ]
            return without_padding(features, self.preprocessor.sequence_length)

        def checked(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
            """Texts and labels as KerasHub takes them; tokens and datasets are left as they are."""
            if isinstance(x, tf.data.Dataset):
                check_dataset(x, self.label_names, has_labels=True)
                return x, y
            columns = self._columns(x)
            if columns is None:
                return x, y
            return as_model_input(columns), self._labels(columns, y, sample_weight)[0]

        def checked_labels(self, y: Any, rows: int) -> Any:
            """Labels of texts as the loss takes them; `ValueError` names a wrong one."""
            return y

        def labels_in_graph(self, y: Any) -> Any:
            """Labels of a dataset's batch as the loss takes them."""
            return y

        @property
        def _has_class_loss(self) -> bool:
            return self.loss == "sparse_categorical_crossentropy" or isinstance(
                self.loss, keras.losses.SparseCategoricalCrossentropy
            )

        def _columns(self, x: Any) -> Columns | None:
            if self.preprocessor is None or x is None or isinstance(x, tf.data.Dataset):
                return None
            return text_columns(x)

        def _labels(self, columns: Columns, y: Any, weights: Any) -> tuple[Any, Any]:
            """The checked labels of texts, and their weights or None."""
            rows = len(columns[0])
            check_weights(weights, rows)
            weights = None if weights is None else np.asarray(weights, np.float32)
            return self.checked_labels(y, rows), weights

        def _learning_batches(
            self, columns: Columns, labels: Any, batch_size: int, weights: Any
        ) -> tuple[tf.data.Dataset, int]:
            """Endless shuffled batches of texts, and how many of them an epoch has."""
            return training_batches(
                self.tokens_of(columns),
                labels,
                batch_size,
                random.randrange(2**31),  # Python's generator also seeds the weights
                8 if self.trim_padding else 0,
                weights,
            )

        def _measuring_batches(
            self, columns: Columns, y: Any, weights: Any, batch_size: int | None
        ) -> tf.data.Dataset:
            """Batches of texts, the shortest first, with labels and weights."""
            labels, weights = self._labels(columns, y, weights)
            if weights is None:
                weights = np.ones(len(labels), np.float32)
            batches, _ = prediction_batches(
                self.tokens_of(columns),
                min(batch_size or BATCH_SIZE, len(labels)),
                8 if self.trim_padding else 0,
                {"labels": Column(np.asarray(labels)), "weights": Column(weights)},
            )
            return batches.map(lambda x, row: (x, row["labels"], row["weights"] * row["real"]))

        def _batch_size(self, wanted: int | None) -> int:
            """The size of a batch, after checking that replicas and micro-batches divide it."""
            size, replicas = wanted or BATCH_SIZE, self.distribute_strategy.num_replicas_in_sync
            if size % (replicas * self._micro_batches):
                raise ValueError(
                    f"batch_size={size} does not divide into {replicas} replicas of "
                    f"{self._micro_batches} micro-batches: make it a multiple of "
                    f"{replicas * self._micro_batches}."
                )
            return size

        def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
            """Tokenizes a batch of raw texts; tokens are left as they are."""
            if self.preprocessor is None or isinstance(x, dict):
                return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
            if isinstance(y, tf.Tensor):
                y = self.labels_in_graph(y)
            elif y is not None:
                y = self.checked_labels(y, len(y))
            samples = super().preprocess_samples(x, y, sample_weight)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(samples)
            if self.trim_padding:
                x = trimmed(x)
            # Keras adds up the batches of several replicas to see their shapes, and booleans have
            # no sum.
            x["padding_mask"] = tf.cast(x["padding_mask"], tf.int32)
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

        def default_optimizer(self) -> AdamW:
            """AdamW with the released models' settings, and a learning rate of 2e-5."""
            optimizer = AdamW(2e-5, beta_2=0.98, epsilon=1e-6, weight_decay=0.01)
            optimizer.exclude_from_weight_decay(
                var_list=[v for v in self.trainable_variables if len(v.shape) < 2]
            )
            return optimizer

        # What Keras calls.

        def make_train_function(self, force: bool = False) -> None:
            if self.train_function is not None and not force:
                return
            # Keras would build the optimizer while it traces the step, and then trace it again.
            if not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.trainable_variables)
            programs = self._programs(self._train)
            self.train_function = _on_iterator(programs, self, has_fixed_rows)

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

        def train_step(self, batch: Any) -> None:
            self._train(batch, _own_number())

        def test_step(self, batch: Any) -> None:
            self._test(batch, _own_number())

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
                gradients = self._accumulate((x, y, weights), total, replica)
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

        def _accumulate(self, batch: Any, total: tf.Tensor, replica: Any) -> list[tf.Tensor]:
            """The sum of the gradients of the micro-batches, computed one after the other."""
            count = self._micro_batches
            parts = tf.nest.map_structure(lambda x: cut(x, count), batch)

            def add(number: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
                part = tf.nest.map_structure(lambda x: x[number], parts)
                gradients = self._gradients(part, total, replica, number)
                return number + 1, [s + g for s, g in zip(sums, gradients, strict=True)]

            zeros = [tf.zeros(v.shape, v.dtype) for v in self.trainable_variables]
            return tf.while_loop(
                lambda number, _: number < count,
                add,
                (tf.constant(0), zeros),
                parallel_iterations=1,  # more would keep the activations of several parts
            )[1]

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

        def save_task_weights(self, filepath: str) -> None:
            """Saves the weights of the head alone.

            Args:
                filepath: It ends in `.weights.h5`.

            Example:
            ```python
            classifier.save_task_weights("head.weights.h5")
            ```
            """
            keras.saving.save_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def load_task_weights(self, filepath: str) -> None:
            """Loads the weights that `save_task_weights` saved.

            Args:
                filepath: It ends in `.weights.h5`.

            Example:
            ```python
            classifier.load_task_weights("head.weights.h5")
            ```
            """
            keras.saving.load_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def _not_in_the_head(self) -> list[Any]:
            # KerasHub skips the encoder only, and would save the optimizer's moments, too.
            return [*self.backbone._flatten_layers(), self.optimizer]

    return RawTextTask


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


def has_fixed_rows(spec: Any) -> bool:
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


def cut(x: tf.Tensor, parts: int) -> tf.Tensor:
    """Cuts [B, ...] into parts, [parts, B / parts, ...]."""
    rest = x.shape[1:] if x.shape[1:].is_fully_defined() else tf.shape(x)[1:]
    return tf.reshape(x, tf.concat([[parts, -1], rest], 0))


def _own_number() -> tf.Tensor | int:
    return tf.distribute.get_replica_context().replica_id_in_sync_group

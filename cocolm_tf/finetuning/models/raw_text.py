"""What models that `fit()` on raw text have in common."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.training.optimization import AdamW

Columns = tuple[list[str | bytes], ...]

_NO_NAMES = (
    "labels are strings: say what the classes are called, label_names=[...], when you make the "
    "classifier, or give their numbers."
)
# What a dataset is told by, whose labels are seen only when it runs.
_UNFIT = "the dataset has a label that is no class: "


def text_columns(x: Any, names: Sequence[str] = ("first texts", "second texts")) -> Columns | None:
    """Texts, or the first and the second texts of pairs, as lists of strings.

    Args:
        x: A list, array, tensor or column of strings; for pairs a tuple of two of these, or a list,
            array or table of rows of two.
        names: Of the columns, for messages.

    Returns:
        A list for each column. None where `x` are no texts that are all there, as a dict of tokens
        or a dataset.

    Raises:
        ValueError: Saying what is none of these.
    """
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
    """Columns as KerasHub takes them, in arrays of objects: those of strings waste memory."""
    arrays = tuple(np.fromiter(column, object, len(column)) for column in columns)
    return arrays if len(arrays) > 1 else arrays[0]


def class_numbers(
    labels: Any, rows: int, num_classes: int, label_names: Sequence[str] | None, strict: bool
) -> np.ndarray:
    """Classes as numbers.

    Args:
        labels: [N], numbers, or names of the classes.
        rows: N, as the texts have it.
        num_classes: int.
        label_names: The names in order; None where there are none.
        strict: Whether every label must be the number of a class, as the usual cross entropy wants
            it; otherwise they may be what another loss takes.

    Returns:
        [N] int32, or the labels as they are.

    Raises:
        ValueError: Naming the first label that is wrong.
    """
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
    """Several labels a text, [N, num_classes] float32 of 0 and 1.

    Args:
        labels: [N, num_classes], 0 or 1; or for each text a list of the names of its labels.
        rows: N, as the texts have it.
        num_classes: How many labels there are.
        label_names: Their names in order; None where there are none.

    Raises:
        ValueError: Naming the first row that is wrong.
    """
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
    """The labels of a regression, float32; `ValueError` names the first that is none."""
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
    """Makes sure that each text has one."""
    if weights is not None and len(weights) != rows:
        raise ValueError(f"{rows} texts, but {len(weights)} sample weights: each text has one.")


def check_dataset(
    dataset: tf.data.Dataset, label_names: Sequence[str] | None, has_labels: bool
) -> None:
    """Refuses a dataset of texts that cannot work, as far as its kind of elements tells."""
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
def label_errors_told() -> Iterator[None]:
    """Makes a `ValueError` of what `class_numbers_in_graph` finds when a dataset runs."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        _, found, rest = error.message.partition(_UNFIT)
        if not found:
            raise
        raise ValueError(found + rest.partition("]")[0].splitlines()[0]) from error


def answer_spans(answers: Any, contexts: Sequence[str]) -> np.ndarray:
    """Where the contexts answer, [N, 2] int32; `ValueError` names the first that cannot be."""
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
        labels = np.asarray(given, object)  # NumPy makes strings of the numbers beside them.
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


# Widths are multiples of it: each new shape costs a moment, and accelerators like round numbers.
WIDTH_STEP = 8


def batch_width(longest: tf.Tensor, limit: tf.Tensor | int) -> tf.Tensor:
    """Rounds a width up.

    Args:
        longest: int32 scalar, the length of a batch's longest row.
        limit: The width that no batch may exceed.

    Returns:
        int32 scalar.

    Example:
    ```python
    batch_width(tf.constant(13), 128)  # 16
    ```
    """
    return tf.minimum(-(-longest // WIDTH_STEP) * WIDTH_STEP, limit)


def trimmed(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Cuts off padding that all rows of a batch have in common.

    Args:
        features: `token_ids` [B, S] and `padding_mask` [B, S].

    Returns:
        The same, as wide as `batch_width` says.

    Example:
    ```python
    trimmed(tokenizer.pack([[5], [5, 6]], sequence_length=512))["token_ids"]  # [2, 8]
    ```
    """
    real = tf.cast(features["padding_mask"], tf.int32)
    width = batch_width(tf.reduce_max(tf.reduce_sum(real, axis=1)), tf.shape(real)[1])
    return {name: feature[:, :width] for name, feature in features.items()}


def check_row_length(
    preprocessor: keras_hub.models.Preprocessor | None, backbone: keras_hub.models.Backbone
) -> None:
    """Makes sure that rows are no longer than a model can read.

    Args:
        preprocessor: Makes the rows; None where others do.
        backbone: The encoder.

    Raises:
        ValueError: If they are.

    Example:
    ```python
    check_row_length(preprocessor, backbone)
    ```
    """
    length = getattr(preprocessor, "sequence_length", 0)
    if length > backbone.max_sequence_length:
        raise ValueError(
            f"The preprocessor's sequence_length={length} is more than the backbone's "
            f"max_sequence_length={backbone.max_sequence_length}."
        )


def raw_text_task(base: type[keras_hub.models.Task]) -> type[keras_hub.models.Task]:
    """Derives a KerasHub task that preprocesses, traces and saves no more than it needs.

    Keras rewrites the bases of a functional model's class, which fails where one is a mixin: so
    this is a function.

    Args:
        base: A task of KerasHub.

    Returns:
        The class. One that derives from it sets `trim_padding`, whether padding that all rows of
        a batch have in common is cut off. TPUs and `jit_compile` want equal shapes: False.

    Example:
    ```python
    class Rater(raw_text_task(keras_hub.models.TextClassifier)):
        trim_padding = True
    ```
    """

    class RawTextTask(base):
        """The task, with what all of them have in common."""

        trim_padding: bool
        label_names: Sequence[str] | None = None

        def fit(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            sample_weight: Any = None,
            validation_data: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Fine-tunes the model, as KerasHub does.

            Args:
                x: Texts, see `text_columns`, or what else `keras.Model.fit` takes.
                y: Labels.
                batch_size: int. 32 where it is None.
                sample_weight: Weights of the labels.
                validation_data: `(x, y)` or `(x, y, sample_weight)`, or a dataset.
                **kwargs: As for `keras.Model.fit`.

            Returns:
                Keras's `History`.

            Raises:
                ValueError: Saying which text or label is wrong.
            """
            x, y = self.checked(x, y, sample_weight)
            if isinstance(validation_data, tuple | list):
                parts = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
                validation_data = (*self.checked(*parts), *parts[2:])
            elif validation_data is not None:
                self.checked(validation_data, None)
            with label_errors_told():
                return super().fit(
                    x,
                    y,
                    batch_size,
                    sample_weight=sample_weight,
                    validation_data=validation_data,
                    **kwargs,
                )

        def evaluate(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            sample_weight: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Computes the loss and the metrics, as KerasHub does.

            Args:
                x: As for `fit`.
                y: As for `fit`.
                batch_size: int. 32 where it is None.
                sample_weight: As for `fit`.
                **kwargs: As for `keras.Model.evaluate`.

            Returns:
                What `keras.Model.evaluate` returns.

            Raises:
                ValueError: Saying which text or label is wrong.
            """
            x, y = self.checked(x, y, sample_weight)
            with label_errors_told():
                return super().evaluate(x, y, batch_size, sample_weight=sample_weight, **kwargs)

        def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
            """Computes the outputs, as KerasHub does.

            Args:
                x: As for `fit`.
                batch_size: int. 32 where it is None.
                **kwargs: As for `keras.Model.predict`.

            Returns:
                What `keras.Model.predict` returns.

            Raises:
                ValueError: Saying which text is wrong.
            """
            if isinstance(x, tf.data.Dataset):
                check_dataset(x, None, has_labels=False)
            elif columns := self._columns(x):
                if not columns[0]:
                    raise ValueError("there are no texts.")
                x = as_model_input(columns)
            return super().predict(x, batch_size, **kwargs)

        def checked(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
            """Texts and labels as KerasHub takes them; what comes by itself stays as it is."""
            if isinstance(x, tf.data.Dataset):
                check_dataset(x, self.label_names, has_labels=True)
                return x, y
            columns = self._columns(x)
            if columns is None:
                return x, y
            check_weights(sample_weight, len(columns[0]))
            return as_model_input(columns), self.checked_labels(y, len(columns[0]))

        def checked_labels(self, y: Any, rows: int) -> Any:
            """Labels of texts as the loss takes them; a `ValueError` says what is wrong."""
            return y

        def labels_in_graph(self, y: Any) -> Any:
            """The same for the labels of a dataset's batch."""
            return y

        @property
        def _has_class_loss(self) -> bool:
            return self.loss == "sparse_categorical_crossentropy" or isinstance(
                self.loss, keras.losses.SparseCategoricalCrossentropy
            )

        def _columns(self, x: Any) -> Columns | None:
            return None if self.preprocessor is None or x is None else text_columns(x)

        def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
            """Turns a batch of raw texts into tokens. Tokens are left as they are.

            Args:
                x: As for the preprocessor, or a dict of `token_ids` and `padding_mask`.
                y: Labels.
                sample_weight: Their weights.

            Returns:
                What `fit()` takes of one batch.
            """
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

        def make_train_function(self, force: bool = False) -> Any:
            """The function that `fit()` calls for every step."""
            # Keras would build the optimizer while it traces the step, and then trace it again.
            if not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.trainable_variables)
            return super().make_train_function(force)

        # AutoGraph finds nothing to convert in the model, but looks for a minute.
        @tf.autograph.experimental.do_not_convert
        def train_step(self, *args: Any, **kwargs: Any) -> Any:
            """One update, as Keras does it."""
            return super().train_step(*args, **kwargs)

        @tf.autograph.experimental.do_not_convert
        def test_step(self, *args: Any, **kwargs: Any) -> Any:
            """The loss and the metrics of a batch, as Keras computes them."""
            return super().test_step(*args, **kwargs)

        @tf.autograph.experimental.do_not_convert
        def predict_step(self, *args: Any, **kwargs: Any) -> Any:
            """The outputs for a batch, as Keras computes them."""
            return super().predict_step(*args, **kwargs)

        def save_task_weights(self, filepath: str) -> None:
            """Saves the head alone.

            Args:
                filepath: It ends in `.weights.h5`.
            """
            keras.saving.save_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def load_task_weights(self, filepath: str) -> None:
            """Loads what `save_task_weights` wrote.

            Args:
                filepath: It ends in `.weights.h5`.
            """
            keras.saving.load_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def _not_in_the_head(self) -> list[Any]:
            # KerasHub skips the encoder only, and so saves the optimizer's moments of all weights.
            return [*self.backbone._flatten_layers(), self.optimizer]

    return RawTextTask

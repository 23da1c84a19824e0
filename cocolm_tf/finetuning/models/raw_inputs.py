"""Texts and labels in the forms that users have them; each error names the first wrong row."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# The texts of rows, or the first and the second texts of pairs.
Columns = tuple[list[str | bytes], ...]

_NO_NAMES = (
    "labels are strings: say what the classes are called, label_names=[...], when you make the "
    "classifier, or give their numbers."
)
# Marks the errors of a dataset's labels, which are checked in the graph when it runs.
_UNKNOWN_LABEL = "the dataset has a label that is no class: "


def text_columns(
    x: Any, names: Sequence[str] = ("first texts", "second texts"), max_columns: int = 2
) -> Columns | None:
    """Texts, or the texts of pairs, as lists; None where `x` is tokens or a dataset."""
    # Pairs are a tuple of two lists, arrays, tensors or columns of strings, or a list, array or
    # table of rows of two. Only a tuple may have more columns than two.
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
    if not 1 <= len(columns) <= (max_columns if isinstance(x, tuple) else 2):
        raise ValueError(
            f"a row is a text or a pair of texts, not {len(columns)} texts: give the columns of "
            "pairs as a tuple, (first, second)."
        )
    found = tuple(map(_strings, columns))
    counts = [len(column) for column in found]
    if len(set(counts)) > 1:
        if len(counts) > 2:
            raise ValueError(f"columns of {counts} texts: each row has one of all.")
        raise ValueError(
            f"{counts[0]} {names[0]}, {counts[1]} {names[1]}: each row has one of both."
        )
    return found


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


def texts_or_words(x: Any) -> list[str] | list[list[str]]:
    """Texts, or for each text the list of its words."""
    if isinstance(x, str | bytes):
        raise ValueError(f"texts come in batches: give a list of texts instead of {x!r}.")
    if isinstance(x, tf.RaggedTensor):
        x = x.to_list()
    elif hasattr(x, "__array__"):
        x = np.asarray(x).tolist()
    texts: list[Any] = []
    for row, text in enumerate(x):
        if isinstance(text, str | bytes):
            texts.append(decoded(text))
        elif isinstance(text, list | tuple | np.ndarray):
            if others := [word for word in text if not isinstance(word, str | bytes)]:
                raise ValueError(
                    f"{others[0]!r} is no word: texts are all strings, or all lists of words."
                )
            texts.append([*map(decoded, text)])
        if len(texts) <= row or type(texts[row]) is not type(texts[0]):
            raise ValueError(
                f"text {row} is {text!r}: texts are all strings, or all lists of words."
            )
    return texts


def decoded(text: str | bytes) -> str:
    """A text as a Python string; invalid UTF-8 becomes U+FFFD."""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def as_model_input(columns: Columns) -> Any:
    """Columns as KerasHub takes them, in arrays of objects: NumPy's strings waste memory."""
    arrays = tuple(np.fromiter(column, object, len(column)) for column in columns)
    return arrays if len(arrays) > 1 else arrays[0]


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels that a model of texts learns from: classes, or the numbers of a regression."""

    num_classes: int  # 1 for a regression
    names: Sequence[str] | None = None
    several: bool = False  # whether a text has any number of the classes
    bounds: Sequence[float] | None = None  # the lowest and the highest number of a regression

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers and not classes."""
        return self.num_classes == 1 and not self.several

    def checked(self, labels: Any, rows: int, strict: bool = True) -> np.ndarray:
        """Labels of texts as the loss takes them."""
        # With `strict` each must be a class, as sparse cross entropy needs it; otherwise they may
        # be anything that another loss takes, and only names become numbers.
        if labels is None:
            raise ValueError("there are no labels: give y.")
        if self.several:
            return self._multi_hot(labels, rows)
        labels = _one_for_each(labels, rows)
        if self.is_regression:
            return self._finite(labels)
        if labels.dtype.kind in "OSU" and any(isinstance(one, str | bytes) for one in labels.flat):
            return self._numbers_of_names(labels)
        if not strict:
            return labels
        if labels.ndim > 1:
            raise ValueError(
                f"labels are [N], the number of each text's class, not {[*labels.shape]}: for "
                "shares of classes compile with "
                "keras.losses.CategoricalCrossentropy(from_logits=True)."
            )
        numbers = self._finite(labels)
        is_class = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < self.num_classes)
        if not is_class.all():
            row = int(np.argmin(is_class))
            counts_from_1 = (numbers.min(), numbers.max()) == (1, self.num_classes)
            raise ValueError(
                f"label {row} is {numbers[row]:g}, but the {self.num_classes} classes are 0 to "
                f"{self.num_classes - 1}{': count them from 0' if counts_from_1 else ''}."
            )
        return numbers.astype(np.int32)

    def in_graph(self, labels: tf.Tensor, strict: bool) -> tf.Tensor:
        """What `checked` does, for the labels [B] of a dataset's batch."""
        if self.is_regression or self.several:
            return labels
        if labels.dtype == tf.string:
            matches = tf.equal(labels[..., tf.newaxis], tf.constant(self.names))
            is_class, message = tf.reduce_any(matches, axis=-1), ", ".join(self.names)
            labels = tf.argmax(matches, axis=-1, output_type=tf.int32)
        elif strict and labels.dtype != tf.bool:
            number = tf.cast(labels, tf.float64)
            is_class = (number >= 0) & (number < self.num_classes)
            is_class &= tf.equal(number, tf.floor(number))
            message = f"0 to {self.num_classes - 1}"
        else:
            return labels
        message = f"{_UNKNOWN_LABEL}the {self.num_classes} classes are {message}."
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_class), [message])]):
            return tf.identity(labels)

    def _finite(self, labels: np.ndarray) -> np.ndarray:
        """Numbers as float32."""
        numbers = labels.astype(np.float64) if labels.dtype.kind in "biuf" else _floats(labels)
        low, high = self.bounds or (-math.inf, math.inf)
        is_good = np.isfinite(numbers) & (numbers >= low) & (numbers <= high)
        if not is_good.all():
            place = int(np.argmin(is_good))
            row, label = place // (labels.size // len(labels)), labels.ravel().tolist()[place]
            wanted = f"a number from {low:g} to {high:g}" if self.bounds else "a finite number"
            raise ValueError(f"label {row} is {label!r}, not {wanted}.")
        return numbers.astype(np.float32)

    def _numbers_of_names(self, labels: np.ndarray) -> np.ndarray:
        if self.names is None:
            raise ValueError(_NO_NAMES)
        numbers = {name: number for number, name in enumerate(self.names)}
        found = []
        for row, label in enumerate(labels.tolist()):
            name = decoded(label)
            if not isinstance(name, str) or name not in numbers:
                raise ValueError(f"label {row} is {label!r}, none of {', '.join(self.names)}.")
            found.append(numbers[name])
        return np.array(found, np.int32)

    def _multi_hot(self, labels: Any, rows: int) -> np.ndarray:
        """Rows of 0 and 1, or lists of names, as [N, num_classes] of 0 and 1."""
        if len(labels) != rows:
            raise ValueError(
                f"{rows} texts, but labels of {len(labels)}: each text has some or none."
            )
        if not rows:
            raise ValueError("there are no texts.")
        numbers = {name: number for number, name in enumerate(self.names or ())}
        table = np.zeros([rows, self.num_classes], np.float32)
        for row, given in enumerate(labels):
            is_list = hasattr(given, "__len__") and not isinstance(given, str | bytes)
            of_row = [decoded(one) for one in given] if is_list else [None]
            if all(isinstance(one, str) for one in of_row):
                for name in of_row:
                    if name not in numbers:
                        known = ", ".join(numbers) or "as there are no label_names"
                        raise ValueError(f"row {row} has the label {name!r}, none of {known}.")
                    table[row, numbers[name]] = 1.0
            elif len(of_row) == self.num_classes and all(one in (0, 1) for one in of_row):
                table[row] = of_row
            else:
                raise ValueError(
                    f"row {row} has the labels {given!r}: give 0 or 1 for each of the "
                    f"{self.num_classes} labels, or a list of names."
                )
        return table


def _one_for_each(labels: Any, rows: int) -> np.ndarray:
    """Labels as an array, after counting them."""
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


def _floats(values: np.ndarray) -> np.ndarray:
    """Objects as float64, NaN where they are no numbers."""
    numbers = np.full(values.shape, math.nan)
    for place, value in np.ndenumerate(values):
        if not isinstance(value, str | bytes):
            with contextlib.suppress(TypeError, ValueError):
                numbers[place] = float(value)
    return numbers


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


@contextlib.contextmanager
def explain_label_errors() -> Iterator[None]:
    """Turns what `Labels.in_graph` finds when a dataset runs into a `ValueError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        _, found, rest = error.message.partition(_UNKNOWN_LABEL)
        if not found:
            raise
        raise ValueError(found + rest.partition("]")[0].splitlines()[0]) from error


def answer_spans(answers: Any, contexts: Sequence[str]) -> np.ndarray:
    """The answers' characters [start, end) in contexts, [N, 2] int32."""
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

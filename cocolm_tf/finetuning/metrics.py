"""What predictions are worth: the metrics of GLUE, by scikit-learn and SciPy."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics

from cocolm_tf.data.examples import TaskData
from cocolm_tf.errors import UserError


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation(stats.pearsonr, labels, predictions)


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation(stats.spearmanr, labels, predictions)


def _correlation(
    of: Callable[[np.ndarray, np.ndarray], object], labels: np.ndarray, predictions: np.ndarray
) -> float:
    # What never changes goes along with nothing; SciPy has no number for it.
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(of(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda labels, predictions: metrics.f1_score(labels, predictions, zero_division=0.0),
    "macro_f1": lambda labels, predictions: metrics.f1_score(
        labels, predictions, average="macro", zero_division=0.0
    ),
    "matthews": metrics.matthews_corrcoef,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Each takes the labels and the predictions, both [N], and gives a number, the higher the better.
`f1` is that of class 1."""


def metrics_of(data: TaskData) -> tuple[str, ...]:
    """Names the metrics of a task: its own, or those of its kind.

    Args:
        data: The task.

    Returns:
        Keys of `METRICS`; the first is the one to choose by.

    Example:
    ```python
    metrics_of(read_glue("stsb", "glue_data"))  # ("spearman", "pearson")
    ```
    """
    if data.metrics:
        return data.metrics
    if data.num_classes == 1:
        return "spearman", "pearson"
    return ("accuracy", "f1") if data.num_classes == 2 else ("accuracy", "macro_f1")


def evaluate(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Scores predictions.

    Args:
        names: Keys of `METRICS`.
        labels: [N], the true classes or numbers.
        predictions: [N], the predicted ones.

    Returns:
        A number for each metric.

    Raises:
        UserError: If there is no such metric.

    Example:
    ```python
    evaluate(["accuracy", "f1"], np.array([0, 1, 1]), np.array([0, 1, 0]))
    # {"accuracy": 0.667, "f1": 0.667}
    ```
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"a metric is one of {', '.join(METRICS)}, not {name!r}.")
    return {name: float(METRICS[name](labels, predictions)) for name in names}


def guesses(train_labels: np.ndarray, count: int) -> np.ndarray:
    """Predicts without looking: what a model must beat.

    Args:
        train_labels: [N], what may be known.
        count: int. How many predictions to make.

    Returns:
        [count], the commonest class, or the mean of the numbers.

    Example:
    ```python
    guesses(np.array([1, 0, 1]), 4)  # [1, 1, 1, 1]
    ```
    """
    is_regression = train_labels.dtype.kind == "f"
    guess = train_labels.mean() if is_regression else np.bincount(train_labels).argmax()
    return np.full(count, guess, train_labels.dtype)


def predicted(outputs: np.ndarray, bounds: tuple[float, float] | None = None) -> np.ndarray:
    """Turns a model's outputs into predictions.

    Args:
        outputs: [N, classes] logits, or [N, 1] numbers.
        bounds: The lowest and the highest number of a regression; None for any.

    Returns:
        [N], the likeliest classes, int32, or the numbers within the bounds, float32.

    Example:
    ```python
    predicted(np.array([[0.1, 0.7]]))  # [1]
    ```
    """
    if outputs.shape[1] == 1:
        numbers = outputs[:, 0].astype(np.float32)
        return np.clip(numbers, *bounds) if bounds else numbers
    return outputs.argmax(axis=1).astype(np.int32)

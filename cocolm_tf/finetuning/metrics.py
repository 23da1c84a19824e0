"""Scores of predictions: the metrics of GLUE, by scikit-learn and SciPy."""

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
    # A constant correlates with nothing; SciPy returns NaN for it.
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(of(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda labels, predictions: metrics.f1_score(labels, predictions, zero_division=0.0),
    "macro_f1": lambda labels, predictions: metrics.f1_score(
        labels, predictions, average="macro", zero_division=0.0
    ),
    "micro_f1": lambda labels, predictions: metrics.f1_score(
        labels, predictions, average="micro", zero_division=0.0
    ),
    "exact_match": metrics.accuracy_score,
    "matthews": metrics.matthews_corrcoef,
    "pearson": _pearson,
    "spearman": _spearman,
    "mae": metrics.mean_absolute_error,
    "rmse": metrics.root_mean_squared_error,
}
"""Functions of the labels and the predictions, both [N], or of several labels [N, K]. `f1` is that
of class 1."""

_OF_CLASSES = ("accuracy", "f1", "macro_f1", "matthews")
_OF_SEVERAL = ("micro_f1", "macro_f1", "exact_match")
_OF_NUMBERS = ("pearson", "spearman", "mae", "rmse")
_LOWER_IS_BETTER = ("mae", "rmse")


def worth(metric: str, value: float) -> float:
    """What scores are compared by: higher is better, whatever the metric."""
    return -value if metric in _LOWER_IS_BETTER else value


def metrics_of(data: TaskData, chosen: str = "") -> tuple[str, ...]:
    """A task's metrics, keys of `METRICS`: first the one to choose by, `chosen` if given."""
    if data.multi_label:
        names = possible = _OF_SEVERAL
    elif data.num_classes == 1:
        names, possible = ("spearman", "pearson", "mae", "rmse"), _OF_NUMBERS
    else:
        usual = ("accuracy", "f1") if data.num_classes == 2 else ("accuracy", "macro_f1")
        names = data.metrics or usual
        possible = [name for name in _OF_CLASSES if name != "f1" or data.num_classes == 2]
    if not chosen:
        return names
    if chosen not in possible:
        kind = "a regression" if data.num_classes == 1 else f"{data.num_classes} classes"
        kind = "several labels a text" if data.multi_label else kind
        raise UserError(f"--metric={chosen}: that of {kind} is one of {', '.join(possible)}.")
    return chosen, *(name for name in names if name != chosen)


def evaluate(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Scores predictions [N] of labels [N] by some keys of `METRICS`."""
    return {name: float(METRICS[name](labels, predictions)) for name in names}


def guesses(train_labels: np.ndarray, count: int) -> np.ndarray:
    """Predictions of the commonest class, or of the mean: the baseline of a model."""
    # Of several labels, those that more than half of the training texts have.
    if train_labels.ndim == 2:
        return np.tile(train_labels.mean(axis=0) > 0.5, [count, 1]).astype(train_labels.dtype)
    is_regression = train_labels.dtype.kind == "f"
    guess = train_labels.mean() if is_regression else np.bincount(train_labels).argmax()
    return np.full(count, guess, train_labels.dtype)


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """The threshold of each label with the best F1, of labels and probabilities [N, K]."""
    # It lies halfway between two of the label's probabilities; 0.5 where no text has the label.
    thresholds = []
    for truth, shares in zip(labels.T, probabilities.T.astype(np.float64), strict=True):
        order = np.argsort(-shares, kind="stable")
        shares, right = shares[order], np.cumsum(truth[order])
        f1 = 2 * right / (np.arange(1, len(shares) + 1) + truth.sum())
        # No threshold lies between two equal probabilities.
        below = np.append(shares[1:], 0.0)
        f1[shares == below] = 0.0
        best = int(f1.argmax())
        threshold = (shares[best] + below[best]) / 2
        thresholds.append(float(threshold) if truth.any() else 0.5)
    return thresholds


def predicted(outputs: np.ndarray) -> np.ndarray:
    """Predictions [N], int32 classes or float32 numbers, of outputs [N, classes] or [N, 1]."""
    if outputs.shape[1] == 1:
        return outputs[:, 0].astype(np.float32)
    return outputs.argmax(axis=1).astype(np.int32)

"""Scores of predictions: of classes and numbers, of labeled spans, and of searches by vectors."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn import metrics

from cocolm_tf.data.examples import TaskData
from cocolm_tf.errors import UserError

Metric = Callable[[np.ndarray, np.ndarray], float]


def _correlation(of: Callable[[np.ndarray, np.ndarray], Any]) -> Metric:
    def correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
        # A constant correlates with nothing; SciPy returns NaN for it.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(of(labels, predictions).statistic)

    return correlation


def _f1(average: str) -> Metric:
    return lambda labels, predictions: metrics.f1_score(
        labels, predictions, average=average, zero_division=0.0
    )


METRICS: dict[str, Metric] = {
    "accuracy": metrics.accuracy_score,
    "f1": _f1("binary"),
    "macro_f1": _f1("macro"),
    "micro_f1": _f1("micro"),
    "exact_match": metrics.accuracy_score,
    "matthews": metrics.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "mae": metrics.mean_absolute_error,
    "rmse": metrics.root_mean_squared_error,
}
"""Functions of the labels and the predictions, both [N], or of several labels [N, K]. `f1` is that
of class 1."""

RANKS = (1, 10, 100)
RETRIEVAL_METRICS = ("ndcg@10", *(f"recall@{rank}" for rank in RANKS), "mrr@10")
STS_METRICS = ("spearman", "pearson")

_OF_CLASSES = ("accuracy", "f1", "macro_f1", "matthews")
_OF_SEVERAL = ("micro_f1", "macro_f1", "exact_match")
_OF_NUMBERS = ("spearman", "pearson", "mae", "rmse")
_LOWER_IS_BETTER = ("mae", "rmse")
# How many scores of a search are in memory at a time.
_SCORES_AT_ONCE = 1 << 24


def comparable(metric: str, value: float) -> float:
    """A score with its sign such that higher is better, whatever the metric."""
    return -value if metric in _LOWER_IS_BETTER else value


def chosen_first(
    chosen: str, names: Sequence[str], kind: str, possible: Sequence[str] = ()
) -> tuple[str, ...]:
    """Metrics, first the one to choose by: `chosen`, or the first if that is empty."""
    possible = possible or names
    if chosen and chosen not in possible:
        raise UserError(f"--metric={chosen}: that of {kind} is one of {', '.join(possible)}.")
    return tuple(dict.fromkeys((chosen or names[0], *names)))


def metrics_of(data: TaskData, chosen: str = "") -> tuple[str, ...]:
    """The metrics of a task of labeled texts, keys of `METRICS`: first the one to choose by."""
    if data.multi_label:
        return chosen_first(chosen, _OF_SEVERAL, "several labels a text")
    if data.num_classes == 1:
        return chosen_first(chosen, _OF_NUMBERS, "a regression")
    is_binary = data.num_classes == 2
    names = data.metrics or ("accuracy", "f1" if is_binary else "macro_f1")
    possible = [name for name in _OF_CLASSES if name != "f1" or is_binary]
    return chosen_first(chosen, names, f"{data.num_classes} classes", possible)


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


# --- Labeled spans, by the definitions of CoNLL's evaluation and `seqeval` ---


def span_scores(
    labels: Sequence[Iterable[tuple]], predictions: Sequence[Iterable[tuple]]
) -> dict[str, float]:
    """F1, precision and recall of all (start, end, label), and macro F1 over the labels."""
    # A span is right if its bounds and its label are. Labels count that are in either side; 0
    # stands for 0/0.
    counts = _span_counts(labels, predictions)
    totals = (sum(of[place] for of in counts.values()) for place in range(3))
    f1 = [_rates(*of)["f1"] for of in counts.values()]
    return _rates(*totals) | {"macro_f1": sum(f1) / max(len(f1), 1)}


def span_scores_by_label(
    labels: Sequence[Iterable[tuple]], predictions: Sequence[Iterable[tuple]]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and `support`, the number of true spans, of each label."""
    counts = _span_counts(labels, predictions)
    return {name: _rates(*counts[name]) | {"support": counts[name][0]} for name in sorted(counts)}


def _span_counts(
    labels: Sequence[Iterable[tuple]], predictions: Sequence[Iterable[tuple]]
) -> dict[str, list[int]]:
    """By label: the number of true spans, of found spans, and of those found that are right."""
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} texts, but predictions for {len(predictions)}.")
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for text_labels, text_predictions in zip(labels, predictions, strict=True):
        true = {tuple(span) for span in text_labels}
        found = {tuple(span) for span in text_predictions}
        for place, spans in enumerate((true, found, true & found)):
            for *_, name in spans:
                counts[name][place] += 1
    return counts


def _rates(true: int, found: int, right: int) -> dict[str, float]:
    return {
        "f1": 2 * right / max(true + found, 1),
        "precision": right / max(found, 1),
        "recall": right / max(true, 1),
    }


# --- Searches by vectors, by the definitions of `trec_eval` and BEIR ---


def nearest(queries: np.ndarray, documents: np.ndarray, count: int) -> np.ndarray:
    """The rows [Q, count] of documents [N, D] with the greatest products with queries [Q, D]."""
    # The greatest first, and of equal ones the first; all where there are fewer than `count`.
    count, rows = min(count, len(documents)), max(1, _SCORES_AT_ONCE // len(documents))
    return np.concatenate(
        [
            tf.math.top_k(queries[start : start + rows] @ documents.T, count).indices.numpy()
            for start in range(0, len(queries), rows)
        ]
    )


def retrieval_scores(
    rankings: Mapping[str, Sequence[str]],
    relevance: Mapping[str, Mapping[str, int]],
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """`ndcg@10`, `recall@K` for the ranks and `mrr@10` of ranked ids, means over the queries."""
    # `rankings` has the ids of found documents, the best first; `relevance` the documents that are
    # relevant, from 1 up. In nDCG a document gains its relevance over log2(1 + its rank), and the
    # sum is divided by the best possible one. The recall is the share of the relevant documents
    # among the first K. MRR is the inverse rank of the first relevant document, 0 where it is not
    # among the first 10.
    discounts = 1 / np.log2(np.arange(2, 12))
    rows = []
    for query, relevant in relevance.items():
        gains = np.array([relevant.get(document, 0) for document in rankings[query]], float)
        best = np.sort([*relevant.values()])[::-1][:10]
        is_found = gains[:10] > 0
        rows.append(
            [
                gains[:10] @ discounts[: len(gains[:10])] / (best @ discounts[: len(best)]),
                *((gains[:rank] > 0).sum() / len(relevant) for rank in ranks),
                1 / (1 + is_found.argmax()) if is_found.any() else 0.0,
            ]
        )
    names = ["ndcg@10", *(f"recall@{rank}" for rank in ranks), "mrr@10"]
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def search_scores(
    query_ids: Sequence[str],
    queries: np.ndarray,
    document_ids: Sequence[str],
    documents: np.ndarray,
    relevance: Mapping[str, Mapping[str, int]],
) -> dict[str, float]:
    """Searches documents [N, D] for queries [Q, D], unit vectors, and scores what is found."""
    # A document with the query's own id is the query itself, and is left out (BEIR's rule).
    found = nearest(queries, documents, max(RANKS) + 1)
    rankings = {
        query: [document_ids[place] for place in places if document_ids[place] != query]
        for query, places in zip(query_ids, found, strict=True)
    }
    return retrieval_scores(rankings, relevance)

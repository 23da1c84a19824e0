"""Scores of labeled spans, by the definitions of CoNLL's evaluation and `seqeval`."""

from collections.abc import Iterable, Sequence

import numpy as np


def span_scores(
    labels: Sequence[Iterable[tuple]], predictions: Sequence[Iterable[tuple]]
) -> dict[str, float]:
    """F1, precision and recall of all (start, end, label), and macro F1 over the labels."""
    # A span is right if its bounds and its label are. Labels count that are in either side; 0
    # stands for 0/0.
    true, found, right = _counts(labels, predictions)
    names = sorted({*true, *found})
    counts = np.array([[of.get(name, 0) for name in names] for of in (true, found, right)], float)
    precision, recall, f1 = _rates(*counts.sum(axis=1))
    macro_f1 = _rates(*counts)[2].mean() if names else 0.0
    return {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "macro_f1": float(macro_f1),
    }


def span_scores_by_label(
    labels: Sequence[Iterable[tuple]], predictions: Sequence[Iterable[tuple]]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and `support`, the number of true spans, of each label."""
    true, found, right = _counts(labels, predictions)
    table = {}
    for name in sorted({*true, *found}):
        rates = _rates(*(np.float64(of.get(name, 0)) for of in (true, found, right)))
        precision, recall, f1 = map(float, rates)
        table[name] = {"precision": precision, "recall": recall, "f1": f1}
        table[name]["support"] = true.get(name, 0)
    return table


def _counts(
    labels: Sequence[Iterable[tuple]], predictions: Sequence[Iterable[tuple]]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """By label: the number of true spans, of found spans, and of those found that are right."""
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} texts, but predictions for {len(predictions)}.")
    counts: tuple[dict[str, int], ...] = ({}, {}, {})
    for text_labels, text_predictions in zip(labels, predictions, strict=True):
        true = {tuple(span) for span in text_labels}
        found = {tuple(span) for span in text_predictions}
        for count, spans in zip(counts, (true, found, true & found), strict=True):
            for *_, name in spans:
                count[name] = count.get(name, 0) + 1
    return counts


def _rates(
    true: np.ndarray, found: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1."""
    precision = right / np.maximum(found, 1)
    recall = right / np.maximum(true, 1)
    return precision, recall, 2 * right / np.maximum(true + found, 1)

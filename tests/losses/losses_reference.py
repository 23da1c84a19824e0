"""The paper's equations in float64 NumPy, term by term, and random rows to compute them of."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass
class Rows:
    """N positions to predict: about half the inputs are original, about a third carry no weight."""

    lm_logits: np.ndarray
    copy_logits: np.ndarray
    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def arguments(self) -> tuple[np.ndarray, ...]:
        return self.lm_logits, self.copy_logits, self.input_ids, self.labels, self.weights


def make_rows(seed: int, n: int = 12, v: int = 11) -> Rows:
    rng = np.random.default_rng(seed)
    labels = rng.integers(v, size=n).astype(np.int32)
    sampled = rng.integers(v, size=n).astype(np.int32)
    weights = rng.uniform(0.1, 2, size=n) * (rng.random(n) < 0.7)
    weights[0] = 1.0
    return Rows(
        lm_logits=rng.normal(0, 3, size=(n, v)).astype(np.float32),
        copy_logits=rng.normal(0, 3, size=n).astype(np.float32),
        input_ids=np.where(rng.random(n) < 0.5, labels, sampled),
        labels=labels,
        weights=weights.astype(np.float32),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum())


def masked_lm_loss(logits, labels, weights) -> float:
    p_label = softmax(np.float64(logits))[np.arange(len(labels)), labels]
    return mean(-np.log(p_label), weights)


def copy_loss(copy_logits, is_original, mask) -> float:
    p_copy = sigmoid(np.float64(copy_logits))
    return mean(-np.where(is_original, np.log(p_copy), np.log(1 - p_copy)), mask)


def corrective_lm_loss(lm_logits, copy_logits, input_ids, labels, weights, use_copy=True) -> float:
    likelihoods = []
    for row, copy, read, label in zip(
        np.float64(lm_logits), np.float64(copy_logits), input_ids, labels, strict=True
    ):
        p_lm = softmax(row)[label]
        p_copy = sigmoid(copy) if use_copy else 0.0
        likelihoods.append((read == label) * p_copy + (1 - p_copy) * p_lm)
    return mean(-np.log(likelihoods), weights)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return one @ other / (np.linalg.norm(one) * np.linalg.norm(other))


def sequence_contrastive_loss(first, second, temperature=1.0) -> float:
    first, second = np.float64(first), np.float64(second)
    views = [*((0, k) for k in range(len(first))), *((1, k) for k in range(len(first)))]
    vector = {(0, k): first[k] for k in range(len(first))}
    vector |= {(1, k): second[k] for k in range(len(first))}
    losses = []
    for side, k in views:
        positive = (1 - side, k)
        similarity = {
            other: np.exp(cosine(vector[side, k], vector[other]) / temperature)
            for other in views
            if other != (side, k)
        }
        losses.append(-np.log(similarity[positive] / sum(similarity.values())))
    return float(np.mean(losses))


def in_batch_negatives_loss(
    queries,
    documents,
    temperature=0.05,
    weights=None,
    document_keys=None,
    query_keys=None,
    dimensions=(),
) -> float:
    queries, documents = np.float64(queries), np.float64(documents)
    rows, per_row, width = documents.shape
    weights = np.ones(rows) if weights is None else weights
    keys = document_keys
    if keys is None:
        keys = np.arange(rows * per_row).reshape(rows, per_row)
    of_query = np.arange(rows) if query_keys is None else query_keys
    losses = []
    for size in dimensions or [width]:
        total = 0.0
        for i in range(rows):
            candidates = [
                (row, place)
                for row in range(rows)
                for place in range(per_row)
                if (row, place) == (i, 0)
                or weights[row]
                and keys[row, place] != keys[i, 0]
                and (place or of_query[row] != of_query[i])
            ]
            similarity = {
                one: np.exp(cosine(queries[i, :size], documents[one][:size]) / temperature)
                for one in candidates
            }
            total -= weights[i] * np.log(similarity[i, 0] / sum(similarity.values()))
        losses.append(total / sum(weights))
    return float(np.mean(losses))


def cosine_regression_loss(first, second, cosines, weights=None, dimensions=()) -> float:
    first, second = np.float64(first), np.float64(second)
    weights = np.ones(len(first)) if weights is None else np.float64(weights)
    losses = []
    for size in dimensions or [first.shape[1]]:
        found = [cosine(a[:size], b[:size]) for a, b in zip(first, second, strict=True)]
        losses.append(mean((np.array(found) - cosines) ** 2, weights))
    return float(np.mean(losses))


def contrastive_cosines(first, second) -> tuple[float, float]:
    first, second = np.float64(first), np.float64(second)
    vectors = [*first, *second]
    positives, negatives = [], []
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            if i != j:
                same_text = i % len(first) == j % len(first)
                (positives if same_text else negatives).append(cosine(one, other))
    return float(np.mean(positives)), float(np.mean(negatives))


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences in float64, with an error of about 1e-9 for the losses here."""
    at = np.array(at, np.float64)
    slopes = np.zeros_like(at)
    step = 1e-5
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = step
        slopes[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return slopes

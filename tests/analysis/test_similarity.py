"""The measures against plain loops and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cocolm_tf.analysis import sentence_space as similarity


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=[20, 6])


def test_cosines_are_those_of_a_loop(vectors: np.ndarray):
    other = vectors[::-1] * 3
    expected = [
        float(a @ b) / (math.sqrt(a @ a) * math.sqrt(b @ b))
        for a, b in zip(vectors, other, strict=True)
    ]
    assert similarity.cosines(vectors, other) == pytest.approx(expected)


def test_a_zero_vector_is_like_nothing():
    assert similarity.cosines(np.zeros([1, 3]), np.ones([1, 3])) == pytest.approx([0.0])


def test_alignment_follows_from_the_mean_cosine(vectors: np.ndarray):
    other = np.roll(vectors, 1, axis=0)
    mean = similarity.cosines(vectors, other).mean()
    assert similarity.alignment(vectors, other) == pytest.approx(2 - 2 * mean)
    assert similarity.alignment(vectors, 5 * vectors) == pytest.approx(0)


def test_uniformity_is_that_of_a_loop(vectors: np.ndarray):
    units = [vector / np.linalg.norm(vector) for vector in vectors]
    terms = [
        math.exp(-2 * float(np.sum((a - b) ** 2)))
        for number, a in enumerate(units)
        for b in units[number + 1 :]
    ]
    assert similarity.uniformity(vectors) == pytest.approx(math.log(np.mean(terms)))


def test_uniformity_of_extremes():
    assert similarity.uniformity(np.eye(7)) == pytest.approx(-4)
    assert similarity.uniformity(np.ones([5, 3])) == pytest.approx(0)


def test_variance_is_that_of_the_covariance(vectors: np.ndarray):
    values = np.sort(np.linalg.eigvalsh(np.cov(vectors.T)))[::-1]
    shares = similarity.explained_variance(vectors, 4)
    assert shares == pytest.approx(values[:4] / values.sum())
    assert similarity.explained_variance(vectors, 100).sum() == pytest.approx(1)
    assert similarity.explained_variance(np.ones([4, 3]), 2).tolist() == [0, 0]


@given(count=st.integers(2, 50), seed=st.integers(0, 1000))
def test_random_pairs_are_of_different_items(count: int, seed: int):
    first, second = similarity.random_pairs(count, 200, seed)
    assert np.all(first != second)
    assert np.all((first >= 0) & (first < count) & (second >= 0) & (second < count))


def test_random_pairs_are_uniform():
    first, second = similarity.random_pairs(4, 12_000, seed=0)
    counts = np.bincount(4 * first + second, minlength=16).reshape(4, 4)
    assert np.all(np.diag(counts) == 0)
    assert counts[~np.eye(4, dtype=bool)] == pytest.approx(1000, rel=0.15)


def test_whitening_leaves_no_direction_preferred(vectors: np.ndarray):
    mixed = vectors @ np.random.default_rng(1).normal(size=[6, 6]) + 5
    white = similarity.whitened(mixed, mixed)
    assert white.mean(axis=0) == pytest.approx(np.zeros(6), abs=1e-9)
    assert white.T @ white / len(white) == pytest.approx(np.eye(6), abs=1e-9)


def test_whitening_drops_what_does_not_vary(vectors: np.ndarray):
    flat = np.concatenate([vectors, np.ones([20, 2])], axis=1)
    assert similarity.whitened(flat, flat).shape == (20, 6)
    assert similarity.whitened(np.ones([3, 2]), np.ones([3, 2])).shape == (3, 0)


def test_rank_correlation_is_scipy_s(vectors: np.ndarray):
    a, b = vectors[:, 0], vectors[:, 1]
    assert similarity.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert similarity.rank_correlation(a, np.exp(3 * a)) == pytest.approx(1)
    assert similarity.rank_correlation(a, np.zeros(20)) == 0

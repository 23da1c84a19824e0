"""Measures of a space of sequence vectors: alignment, uniformity, anisotropy (paper, section 5.2).

All take and return NumPy, and know nothing of models.
"""

import numpy as np
from scipy import stats


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows.

    Args:
        first: [N, H] float.
        second: [N, H] float.

    Returns:
        [N] float64. A zero vector has cosine 0 with every other.

    Example:
    ```python
    cosines(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]]))  # [1.0, 0.0]
    ```
    """
    return np.sum(unit_vectors(first) * unit_vectors(second), axis=1)


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Scales each row to length 1; zero vectors stay zero.

    Example:
    ```python
    unit_vectors(np.array([[3.0, 4.0]]))  # [[0.6, 0.8]]
    ```
    """
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """How near similar pairs are: the mean squared distance of their unit vectors.

    0 where they are the same, 2 where they are orthogonal; 2 - 2 * the mean cosine.

    Args:
        first: [N, H] float.
        second: [N, H] float, row by row similar to `first`.

    Returns:
        The alignment, the lower the better.

    Source:
        Wang and Isola, "Understanding contrastive representation learning through alignment and
        uniformity on the hypersphere", ICML 2020, with alpha = 2.

    Example:
    ```python
    alignment(np.eye(3), np.eye(3))  # 0.0
    ```
    """
    difference = unit_vectors(first) - unit_vectors(second)
    return float(np.mean(np.sum(difference**2, axis=1)))


def uniformity(vectors: np.ndarray) -> float:
    """How evenly vectors spread over the sphere: log mean exp(-2 * squared distance) of all pairs.

    0 where all are the same; -4 where all are orthogonal, which is nearly the least in high
    dimensions.

    Args:
        vectors: [N, H] float, N at least 2.

    Returns:
        The uniformity of the unit vectors, the lower the more uniform.

    Source:
        Wang and Isola, ICML 2020, with t = 2.

    Example:
    ```python
    uniformity(np.eye(8))  # -4.0
    ```
    """
    units = unit_vectors(vectors)
    # |x - y|^2 = |x|^2 + |y|^2 - 2xy, also of a zero vector.
    squares = np.sum(units**2, axis=1)
    distances = squares[:, np.newaxis] + squares - 2 * units @ units.T
    rows, columns = np.triu_indices(len(units), k=1)
    return float(np.log(np.mean(np.exp(-2 * distances[rows, columns]))))


def explained_variance(vectors: np.ndarray, count: int) -> np.ndarray:
    """The share of the variance in each of the first principal components: anisotropy.

    Args:
        vectors: [N, H] float.
        count: int. How many components.

    Returns:
        [min(count, N, H)] float64, from the largest. 1/H each for a space without preferred
        directions; zeros if all vectors are the same.

    Example:
    ```python
    explained_variance(np.array([[1.0, 0.0], [-1.0, 0.0]]), 2)  # [1.0, 0.0]
    ```
    """
    centered = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    variances = np.linalg.svd(centered, compute_uv=False) ** 2
    total = variances.sum()
    return (variances / total if total > 0 else variances)[:count]


def random_pairs(count: int, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws pairs of different items.

    Args:
        count: int. Items to draw from, at least 2.
        pairs: int. Pairs to draw; drawn independently, so one may come twice.
        seed: int.

    Returns:
        [pairs] and [pairs] int, the items' numbers, nowhere the same.

    Example:
    ```python
    random_pairs(count=100, pairs=5, seed=0)
    ```
    """
    generator = np.random.default_rng(seed)
    first = generator.integers(0, count, pairs)
    # A step to another item, all the way round at most.
    return first, (first + generator.integers(1, count, pairs)) % count


def whitened(vectors: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
    """Shifts and turns vectors so that those of a sample have mean 0 and covariance 1.

    Directions in which the sample does not vary are dropped.

    Args:
        vectors: [N, H] float.
        fitted_on: [M, H] float, the sample.

    Returns:
        [N, R] float64, R at most min(M - 1, H).

    Source:
        Su et al., "Whitening sentence representations for better semantics and faster retrieval",
        2021, without the reduction of dimensions.

    Example:
    ```python
    whitened(vectors, fitted_on=vectors)
    ```
    """
    sample = np.asarray(fitted_on, np.float64)
    mean = sample.mean(axis=0)
    _, deviations, directions = np.linalg.svd(sample - mean, full_matrices=False)
    deviations /= np.sqrt(len(sample))
    varies = deviations > 1e-6 * deviations.max(initial=0)
    return (vectors - mean) @ (directions[varies].T / deviations[varies])


def rank_correlation(measured: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's correlation: whether two measures order things alike.

    Args:
        measured: [N] float.
        scores: [N] float.

    Returns:
        From -1 to 1; 0 where one of them is constant.

    Example:
    ```python
    rank_correlation(np.array([0.1, 0.5, 0.9]), np.array([1.0, 2.0, 3.0]))  # 1.0
    ```
    """
    if len(np.unique(measured)) < 2 or len(np.unique(scores)) < 2:
        return 0.0
    return float(stats.spearmanr(measured, scores).statistic)

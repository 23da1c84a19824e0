"""A preset's sentence vectors: alignment, uniformity, anisotropy (paper, section 5.2)."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from scipy import stats
from scipy.spatial import distance
from sklearn.manifold import TSNE
from tqdm import tqdm

from cocolm_tf.analysis.inputs import SentencePairs
from cocolm_tf.errors import UserError
from cocolm_tf.training.preset import HEADS_FILENAME, load_pretrained

# The principal components whose shares of the variance are reported.
COMPONENTS = (1, 3, 10)


class SentenceEncoder:
    """Gives sentences the vectors that they have without fine-tuning: the [CLS] states.

    Args:
        preset: a folder with a main model and its tokenizer.
        projected: Whether they pass the projection of contrastive learning, as they did
            when they were compared in pretraining; for presets that have one.

    Raises:
        UserError: if it is not such a preset, or has no projection.

    Example:
    ```python
    SentenceEncoder("runs/first/preset").encode(["A cat sat.", "It slept."])  # [2, H]
    ```
    """

    def __init__(self, preset: str, projected: bool = False) -> None:
        pretrainer, self.tokenizer = load_pretrained(preset)
        self.backbone = pretrainer.backbone
        self.projection = getattr(pretrainer, "projection", None) if projected else None
        if projected and not self.projection:
            raise UserError(f"--preset={preset} has no projection: {HEADS_FILENAME} lacks it.")

    def encode(self, texts: Sequence[str], batch_size: int = 32, name: str = "") -> np.ndarray:
        """The vectors of sentences, [N, H] float32; too long ones are truncated."""
        limit = self.backbone.max_sequence_length
        ids = [ids[: limit - 2] for ids in self.tokenizer(list(texts))]
        # Sorted by length, for little padding.
        order = np.argsort([len(row) for row in ids], kind="stable")
        vectors = np.zeros([len(ids), self.backbone.hidden_dim], np.float32)
        for start in tqdm(range(0, len(ids), batch_size), desc=name or "encoding", unit="batch"):
            chosen = order[start : start + batch_size]
            rows = [ids[i] for i in chosen]
            length = max(map(len, rows)) + 2
            inputs = self.tokenizer.pack(rows, sequence_length=length)
            mask = tf.cast(inputs["padding_mask"], tf.int32)
            vectors[chosen] = self._starts(inputs["token_ids"], mask).numpy()
        return vectors

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2, autograph=False)
    def _starts(self, token_ids: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        positions = tf.zeros([tf.shape(token_ids)[0], 1], tf.int32)
        states = self.backbone.states_at(inputs, positions)[:, 0]
        return self.projection(states) if self.projection else states


@dataclasses.dataclass(frozen=True)
class SentenceSpace:
    """The sentence vectors of one preset, and measures of them."""

    random_cosines: np.ndarray  # [R] float64, of random pairs of texts
    similar_cosines: np.ndarray  # [N] float64, of the most similar pairs
    first: np.ndarray  # [N, H] float32, the vectors of their first sentences
    second: np.ndarray  # [N, H] float32, of their partners
    # numbers by their names: `similar_cosine` and `random_cosine`, the means; `alignment` of the
    # similar pairs and `uniformity` of the texts (Wang and Isola); `variance_1`, ..., the share of
    # the variance of the texts' vectors in so many principal components; where the pairs have
    # scores, `spearman` of all pairs' cosines with them, and `spearman_whitened` after whitening.
    measures: dict[str, float]


def describe_space(
    encode: Callable[[Sequence[str]], np.ndarray],
    pairs: SentencePairs,
    texts: Sequence[str],
    num_random_pairs: int = 5000,
    seed: int = 0,
) -> SentenceSpace:
    """Measures a space of sentence vectors (paper, section 5.2, figures 1, 5 and 6).

    Args:
        encode: gives a list of sentences their vectors, [N, H]; see `SentenceEncoder`.
        pairs: pairs of sentences; the most similar of them are the similar ones.
        texts: what random pairs are made of, at least two.
        num_random_pairs: how many pairs of texts to draw.
        seed: Decides which texts are paired.

    Returns:
        The vectors and measures.

    Example:
    ```python
    describe_space(SentenceEncoder("runs/first/preset").encode, pairs, texts)
    ```
    """
    text_vectors = encode(texts)
    first, second = encode(pairs.first), encode(pairs.second)
    similar = np.arange(len(pairs))
    measures = {}
    if pairs.scores is not None:
        (similar,) = np.nonzero(pairs.scores == pairs.scores.max())
        measures["spearman"] = rank_correlation(cosines(first, second), pairs.scores)
        sample = np.concatenate([first, second])
        white = [whitened(vectors, sample) for vectors in (first, second)]
        measures["spearman_whitened"] = rank_correlation(cosines(*white), pairs.scores)
    one, other = random_pairs(len(texts), num_random_pairs, seed)
    random_cosines = cosines(text_vectors[one], text_vectors[other])
    similar_cosines = cosines(first[similar], second[similar])
    shares = np.cumsum(explained_variance(text_vectors, max(COMPONENTS)))
    measures = {
        "similar_cosine": float(similar_cosines.mean()),
        "random_cosine": float(random_cosines.mean()),
        "alignment": alignment(first[similar], second[similar]),
        "uniformity": uniformity(text_vectors),
        **{f"variance_{count}": float(shares[min(count, len(shares)) - 1]) for count in COMPONENTS},
        **measures,
    }
    return SentenceSpace(random_cosines, similar_cosines, first[similar], second[similar], measures)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows."""
    return np.sum(unit_vectors(first) * unit_vectors(second), axis=1)


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Scales each row to length 1; zero vectors stay zero."""
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
    squares = distance.pdist(unit_vectors(vectors), "sqeuclidean")
    return float(np.log(np.mean(np.exp(-2 * squares))))


def explained_variance(vectors: np.ndarray, count: int) -> np.ndarray:
    """The share of the variance in each of the first principal components: anisotropy."""
    centered = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    variances = np.linalg.svd(centered, compute_uv=False) ** 2
    total = variances.sum()
    return (variances / total if total > 0 else variances)[:count]


def random_pairs(count: int, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples pairs of different items."""
    generator = np.random.default_rng(seed)
    first = generator.integers(0, count, pairs)
    # An offset to another item, modulo their number.
    return first, (first + generator.integers(1, count, pairs)) % count


def whitened(vectors: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
    """Shifts and rotates vectors such that those of a sample have mean 0 and covariance 1."""
    # Directions in which the sample does not vary are dropped.
    sample = np.asarray(fitted_on, np.float64)
    mean = sample.mean(axis=0)
    _, deviations, directions = np.linalg.svd(sample - mean, full_matrices=False)
    deviations /= np.sqrt(len(sample))
    varies = deviations > 1e-6 * deviations.max(initial=0)
    return (vectors - mean) @ (directions[varies].T / deviations[varies])


def rank_correlation(measured: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's rank correlation."""
    if len(np.unique(measured)) < 2 or len(np.unique(scores)) < 2:
        return 0.0
    return float(stats.spearmanr(measured, scores).statistic)


_PERPLEXITY = 30.0


def map_sentences(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Embeds vectors in the plane by t-SNE of their cosine distances."""
    units = unit_vectors(vectors)
    # Distances of unit vectors order as cosines do. The perplexity must be less than N.
    perplexity = min(_PERPLEXITY, (len(units) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(units)
    return (places - places.min(axis=0)) / (np.ptp(places, axis=0).max() or 1)

"""The space of a preset's sentence vectors: what it does with random and with similar pairs."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from cocolm_tf.analysis.pairs import SentencePairs
from cocolm_tf.analysis.similarity import (
    alignment,
    cosines,
    explained_variance,
    random_pairs,
    rank_correlation,
    uniformity,
    whitened,
)
from cocolm_tf.data.sources import FileSource
from cocolm_tf.errors import UserError

# The principal components whose shares are told.
COMPONENTS = (1, 3, 10)

# Lines of a corpus that texts are drawn from.
_LINES = 200_000


@dataclasses.dataclass(frozen=True)
class SentenceSpace:
    """Sentence vectors of one preset, and what they show.

    Args:
        random_cosines: [R] float64, of random pairs of texts.
        similar_cosines: [N] float64, of the most similar pairs.
        first: [N, H] float32, the vectors of their first sentences.
        second: [N, H] float32, of their partners.
        measures: numbers by their names: `similar_cosine` and `random_cosine`, the means;
            `alignment` of the similar pairs and `uniformity` of the texts (Wang and Isola);
            `variance_1`, ..., the share of the variance of the texts' vectors in so many
            principal components; where the pairs have scores, `spearman` of all pairs' cosines
            with them, and `spearman_whitened` after whitening.

    Example:
    ```python
    space = describe_space(encoder.encode, read_pairs("STS-B/dev.tsv"), texts, seed=0)
    space.measures["similar_cosine"]
    ```
    """

    random_cosines: np.ndarray
    similar_cosines: np.ndarray
    first: np.ndarray
    second: np.ndarray
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
        num_random_pairs: int.
        seed: int. Decides which texts are paired.

    Returns:
        The vectors and measures.

    Example:
    ```python
    describe_space(SentenceEncoder("runs/first/preset").encode, pairs, texts)
    ```
    """
    of_texts = encode(texts)
    first, second = encode(pairs.first), encode(pairs.second)
    similar = np.arange(len(pairs))
    measures = {}
    if pairs.scores is not None:
        (similar,) = np.nonzero(pairs.scores == pairs.scores.max())
        measures["spearman"] = rank_correlation(cosines(first, second), pairs.scores)
        sample = np.concatenate([first, second])
        turned = [whitened(vectors, sample) for vectors in (first, second)]
        measures["spearman_whitened"] = rank_correlation(cosines(*turned), pairs.scores)
    one, other = random_pairs(len(texts), num_random_pairs, seed)
    random_cosines = cosines(of_texts[one], of_texts[other])
    similar_cosines = cosines(first[similar], second[similar])
    shares = np.cumsum(explained_variance(of_texts, max(COMPONENTS)))
    measures = {
        "similar_cosine": float(similar_cosines.mean()),
        "random_cosine": float(random_cosines.mean()),
        "alignment": alignment(first[similar], second[similar]),
        "uniformity": uniformity(of_texts),
        **{f"variance_{count}": float(shares[min(count, len(shares)) - 1]) for count in COMPONENTS},
        **measures,
    }
    return SentenceSpace(random_cosines, similar_cosines, first[similar], second[similar], measures)


def draw_texts(pattern: str, count: int, seed: int, encoding: str = "") -> list[str]:
    """Draws lines of a corpus at random, from its first 200,000.

    Args:
        pattern: as `FileSource` has it.
        count: int. How many; all, if there are fewer.
        seed: int.
        encoding: as `FileSource` has it.

    Returns:
        Different lines, in random order.

    Raises:
        UserError: if there are no files, or fewer than two lines.

    Example:
    ```python
    draw_texts("corpus/*.txt", count=1000, seed=0)
    ```
    """
    lines = FileSource.find(pattern, one_document_per_line=True, encoding=encoding)
    texts = list(dict.fromkeys(itertools.islice(lines, _LINES)))
    if len(texts) < 2:
        raise UserError(f"--corpus={pattern} has no two lines of text: there is nothing to pair.")
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[i] for i in chosen]

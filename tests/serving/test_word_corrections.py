import itertools

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.serving.word_corrections import (
    best_corrections,
    best_spellings,
    replaced_probability,
)


def test_a_word_belongs_if_all_of_its_tokens_do():
    logits = np.float32([3.0, -1.0, 0.5, 30.0, 9.0, 2.0])
    words = [0, 0, 0, 1, 2, 2]
    copied = 1 / (1 + np.exp(-np.float64(logits)))
    found = replaced_probability(tf.constant(logits), tf.constant(words), 3)
    expected = [1 - copied[:3].prod(), np.exp(-30.0), 1 - copied[4:].prod()]
    # The second is 1e-13: small probabilities keep their digits.
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_certainty_is_no_nan():
    logits = tf.constant([200.0, -200.0, -1e30, 1e30])
    found = replaced_probability(logits, tf.constant([0, 1, 2, 3]), 4)
    np.testing.assert_array_equal(found, [0, 1, 1, 0])


def test_no_words():
    empty = tf.zeros([0])
    assert replaced_probability(empty, tf.zeros([0], tf.int32), 0).shape == (0,)
    spelled, scores = best_spellings(
        tf.zeros([0, 3], tf.string), tf.zeros([0, 3]), tf.zeros([0], tf.int64), 4
    )
    assert spelled.shape == scores.shape == (0, 4)
    found, probabilities = best_corrections(spelled, scores, tf.zeros([0], tf.string), 2)
    assert found.shape == probabilities.shape == (0, 2)


def brute_force(
    contents: np.ndarray, probabilities: np.ndarray, lengths: list[int]
) -> list[dict[str, float]]:
    """The probability of every spelling of every word, over all sequences of candidates."""
    first, words = 0, []
    for length in lengths:
        totals = {}
        for choice in itertools.product(range(contents.shape[1]), repeat=length):
            rows = range(first, first + length)
            spelled = "".join(contents[row, c] for row, c in zip(rows, choice, strict=True))
            share = np.prod([probabilities[row, c] for row, c in zip(rows, choice, strict=True)])
            totals[spelled] = totals.get(spelled, 0.0) + share
        words.append(totals)
        first += length
    return words


@pytest.mark.parametrize("seed", range(5))
def test_corrections_are_the_best_of_all_sequences(seed: int):
    rng = np.random.default_rng(seed)
    lengths = [1, 3, 2, 1, 4, 1]
    # One spelling for each token: no two sequences spell the same.
    contents = np.array([[f"<{t}.{c}>" for c in range(4)] for t in range(sum(lengths))])
    probabilities = rng.dirichlet(np.ones(4), sum(lengths))
    own = ["".join(contents[t, 0] for t in range(s, s + n)) for s, n in starts(lengths)]
    spelled, scores = best_spellings(
        tf.constant(contents),
        tf.constant(np.log(probabilities), tf.float32),
        tf.constant(lengths, tf.int64),
        width=7,
    )
    found, shares = best_corrections(spelled, scores, tf.constant(own), count=3)
    for word, totals in enumerate(brute_force(contents, probabilities, lengths)):
        del totals[own[word]]
        best = sorted(totals.items(), key=lambda item: -item[1])[:3]
        assert [x.decode() for x in found[word].numpy()] == [spelling for spelling, _ in best]
        np.testing.assert_allclose(shares[word], [share for _, share in best], rtol=1e-4)


def starts(lengths: list[int]) -> list[tuple[int, int]]:
    return list(zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True))


def test_the_same_spelling_counts_together():
    # "the" by two ways, and the word itself, "her", by another one than its own.
    contents = [["he", "t", "th", "h"], ["r", "he", "e", "er"]]
    probabilities = np.array([[0.1, 0.2, 0.25, 0.45], [0.1, 0.4, 0.3, 0.2]])
    spelled, scores = best_spellings(
        tf.constant(contents),
        tf.constant(np.log(probabilities), tf.float32),
        tf.constant([2], tf.int64),
        width=16,
    )
    found, shares = best_corrections(spelled, scores, tf.constant(["her"]), count=3)
    (totals,) = brute_force(np.array(contents), probabilities, [2])
    assert totals["her"] == pytest.approx(0.1 * 0.1 + 0.45 * 0.2)
    del totals["her"]
    best = sorted(totals.items(), key=lambda item: -item[1])[:3]
    assert ("the", pytest.approx(0.2 * 0.4 + 0.25 * 0.3)) in best
    assert sorted(found[0].numpy().tolist()) == sorted(word.encode() for word, _ in best)
    np.testing.assert_allclose(shares[0], [share for _, share in best], rtol=1e-5)


def test_fewer_candidates_than_asked_for():
    log_probabilities = tf.constant([[np.log(0.9), np.log(0.1), -np.inf]], tf.float32)
    spelled, scores = best_spellings(
        tf.constant([["own", "other", "never"]]), log_probabilities, tf.constant([1], tf.int64), 3
    )
    found, shares = best_corrections(spelled, scores, tf.constant(["own"]), count=2)
    assert found.numpy().tolist() == [[b"other", b""]]
    np.testing.assert_allclose(shares, [[0.1, 0.0]], rtol=1e-6)


def test_a_word_may_be_nothing():
    contents = tf.constant([["re", "receive"], ["cie", ""], ["the", ""]])
    log_probabilities = tf.math.log([[0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    spelled, scores = best_spellings(contents, log_probabilities, tf.constant([2, 1], tf.int64), 4)
    found, shares = best_corrections(spelled, scores, tf.constant(["recie", "the"]), count=2)
    assert found.numpy().tolist() == [[b"receive", b"receivecie"], [b"", b""]]
    np.testing.assert_allclose(shares, [[0.72, 0.18], [0.6, 0.0]], rtol=1e-5)

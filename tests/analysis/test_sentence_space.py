"""Sentence vectors of a preset, and measures against plain loops and closed forms."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cocolm_tf.analysis import sentence_space as similarity
from cocolm_tf.analysis.inputs import SentencePairs, sample_texts
from cocolm_tf.analysis.sentence_space import (
    SentenceEncoder,
    alignment,
    describe_space,
    map_sentences,
    uniformity,
)
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer

# Their vectors: each sentence's is in the direction of its first word.
VECTORS = {"x": [1.0, 0, 0], "y": [0, 1.0, 0], "z": [0, 0, 1.0], "w": [1.0, 1.0, 0]}


def encode(sentences: list[str]) -> np.ndarray:
    return np.array([VECTORS[sentence[0]] for sentence in sentences], np.float32)


def test_measures_of_vectors_that_are_known():
    pairs = SentencePairs(["x", "x", "x"], ["x", "y", "w"], np.array([5.0, 0.0, 3.0]))
    space = describe_space(encode, pairs, ["x", "y", "z"], num_random_pairs=50)
    measures = space.measures
    assert measures["similar_cosine"] == 1 and measures["random_cosine"] == 0
    assert space.similar_cosines.tolist() == [1] and len(space.random_cosines) == 50
    assert measures["alignment"] == alignment(encode(["x"]), encode(["x"])) == 0
    assert measures["uniformity"] == pytest.approx(uniformity(np.eye(3)))
    assert measures["variance_1"] == pytest.approx(0.5)  # a triangle has two equal directions
    assert measures["variance_3"] == measures["variance_10"] == pytest.approx(1)
    assert measures["spearman"] == pytest.approx(1)
    assert "spearman_whitened" in measures


def test_without_scores_all_pairs_are_similar():
    space = describe_space(encode, SentencePairs(["x", "y"], ["w", "z"]), ["x", "y"], 5)
    assert len(space.similar_cosines) == len(space.first) == len(space.second) == 2
    assert "spearman" not in space.measures


def test_texts_are_drawn_from_all_lines_once(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\ntwo\n")
    (tmp_path / "b.txt").write_text("three\n")
    assert sorted(sample_texts(str(tmp_path / "*.txt"), 9, seed=0)) == ["one", "three", "two"]
    assert len(sample_texts(str(tmp_path / "*.txt"), 2, seed=0)) == 2


def test_a_corpus_with_nothing_to_pair_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\n")
    with pytest.raises(UserError, match="has no two lines of text"):
        sample_texts(str(tmp_path / "a.txt"), 2, seed=0)


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


@settings(max_examples=20)
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


def test_partners_lie_near_each_other():
    generator = np.random.default_rng(0)
    first = generator.normal(size=[20, 8])
    # Lengths do not matter, directions do.
    second = (first + 0.02 * generator.normal(size=[20, 8])) * generator.uniform(0.5, 2, [20, 1])
    places = map_sentences(np.concatenate([first, second]))
    assert places.shape == (40, 2)
    assert places.min() == pytest.approx(0) and places.max() == pytest.approx(1)
    apart = np.linalg.norm(places[:20, np.newaxis] - places[np.newaxis, 20:], axis=-1)
    assert np.mean(np.diag(apart) <= apart.min(axis=1) + 1e-9) > 0.9


def test_few_sentences_have_a_map_too():
    assert np.all(np.isfinite(map_sentences(np.eye(4))))


SENTENCES = ["the cat sat", "a dog ran to its house when it was cold outside again", "mat", "on a"]


@pytest.fixture(scope="module")
def encoder(preset: Path) -> SentenceEncoder:
    return SentenceEncoder(str(preset))


def test_vectors_are_those_of_each_sentence_alone(encoder: SentenceEncoder):
    vectors = encoder.encode(SENTENCES, batch_size=3)
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        ids = encoder.tokenizer(sentence)
        inputs = encoder.tokenizer.pack(ids[tf.newaxis], sequence_length=len(ids) + 2)
        alone = encoder.backbone({name: tf.cast(x, tf.int32) for name, x in inputs.items()})
        assert vector == pytest.approx(alone[0, 0].numpy(), abs=1e-5)
    assert vectors.shape == (4, encoder.backbone.hidden_dim)


def test_vectors_can_be_projected_as_in_pretraining(
    preset: Path, encoder: SentenceEncoder, pretrainer: CocoLMPretrainer
):
    expected = pretrainer.projection(tf.constant(encoder.encode(SENTENCES))).numpy()
    projecting = SentenceEncoder(str(preset), projected=True)
    assert projecting.encode(SENTENCES) == pytest.approx(expected, abs=1e-5)


def test_a_preset_without_projection_is_named(preset: Path, tmp_path: Path):
    copied = tmp_path / "preset"
    shutil.copytree(preset, copied)
    (copied / "pretraining_heads.npz").unlink()
    with pytest.raises(UserError, match="has no projection"):
        SentenceEncoder(str(copied), projected=True)


def test_what_is_too_long_is_cut(encoder: SentenceEncoder):
    words = "the cat sat on a mat " * 9
    vectors = encoder.encode([words, words + "again"])
    assert np.array_equal(vectors[0], vectors[1])


def test_a_folder_that_is_no_preset_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a preset: it has no config\.json"):
        SentenceEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a preset: it has no tokenizer\.json"):
        SentenceEncoder(str(tmp_path))

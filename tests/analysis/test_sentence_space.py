from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.analysis.inputs import SentencePairs, draw_texts
from cocolm_tf.analysis.sentence_space import alignment, describe_space, uniformity
from cocolm_tf.errors import UserError

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
    assert sorted(draw_texts(str(tmp_path / "*.txt"), 9, seed=0)) == ["one", "three", "two"]
    assert len(draw_texts(str(tmp_path / "*.txt"), 2, seed=0)) == 2


def test_a_corpus_with_nothing_to_pair_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\n")
    with pytest.raises(UserError, match="has no two lines of text"):
        draw_texts(str(tmp_path / "a.txt"), 2, seed=0)

"""Presets with their heads, and their sentence vectors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.analysis.presets import SentenceEncoder, load_pretrained
from cocolm_tf.errors import UserError
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import head_variables, load_preset


def test_everything_that_was_saved_is_loaded(preset: Path, config: PretrainingConfig):
    pretrainer, tokenizer = load_pretrained(str(preset))
    expected = build_pretrainer(config, config.model.vocabulary_size - 1)
    load_preset(expected, str(preset))
    heads, wanted = head_variables(pretrainer), head_variables(expected)
    assert set(heads) == set(wanted)
    for name, head in heads.items():
        assert np.array_equal(head, wanted[name])
    pairs = zip(
        [*pretrainer.backbone.weights, *pretrainer.auxiliary.backbone.weights],
        [*expected.backbone.weights, *expected.auxiliary.backbone.weights],
        strict=True,
    )
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert pretrainer.compute_dtype == "float32"
    assert tokenizer.mask_token_id == pretrainer.mask_token_id


def test_a_preset_without_heads_has_none(preset: Path, tmp_path: Path):
    copied = tmp_path / "preset"
    shutil.copytree(preset, copied)
    (copied / "pretraining_heads.npz").unlink()
    shutil.rmtree(copied / "auxiliary")
    pretrainer, _ = load_pretrained(str(copied))
    assert not (pretrainer.copy_head or pretrainer.lm_head or pretrainer.projection)
    assert pretrainer.auxiliary is None


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


def test_vectors_can_be_projected_as_in_pretraining(preset: Path, config: PretrainingConfig):
    encoder = SentenceEncoder(str(preset), projected=True)
    pretrainer = build_pretrainer(config, config.model.vocabulary_size - 1)
    load_preset(pretrainer, str(preset))
    states = SentenceEncoder(str(preset)).encode(SENTENCES)
    expected = pretrainer.projection(tf.constant(states)).numpy()
    assert encoder.encode(SENTENCES) == pytest.approx(expected, abs=0.05)  # bfloat16's precision


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

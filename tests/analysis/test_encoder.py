from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.analysis.encoder import SentenceEncoder
from cocolm_tf.errors import UserError

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

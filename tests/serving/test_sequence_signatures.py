from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import ODD_TEXTS, examples, random_texts

from cocolm_tf import CocoLMTextClassifier, CocoLMTextEmbedder, UserError
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.sequence_signatures import Embedder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings

POOLINGS = ("cls", "mean", "projection")


def embedder(parts: ServedPreset, encoder: Encoder, pooling: str) -> Embedder:
    return Embedder(parts, encoder, Settings(pooling=pooling))


def reference(parts: ServedPreset, texts: list, pooling: str) -> np.ndarray:
    tokenizer = parts.tokenizer
    inputs = tokenizer.pack(tokenizer(tf.constant(texts)), sequence_length=24)
    states = parts.backbone(inputs).numpy()
    vectors = states[:, 0]
    if pooling == "mean":
        mask = inputs["padding_mask"].numpy()[..., np.newaxis]
        vectors = (states * mask).sum(axis=1) / mask.sum(axis=1)
    if pooling == "projection":
        vectors = parts.head("projection")(vectors).numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_the_model(parts: ServedPreset, encoder: Encoder, pooling: str):
    texts = ["The cat sat.", "It's 30.5%", "The others weren't there... " * 3, *ODD_TEXTS]
    outputs = embedder(parts, encoder, pooling).embed(tf.constant(texts))
    np.testing.assert_allclose(outputs["embeddings"], reference(parts, texts, pooling), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(outputs["embeddings"], axis=1), 1.0, rtol=1e-5)
    whole = parts.tokenizer.graph_module().tokenize(tf.constant(texts)).row_lengths().numpy() + 2
    np.testing.assert_array_equal(outputs["truncated"], whole > 24)
    assert outputs["truncated"].numpy().any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("filling", [0, 1])
def test_ids_give_the_vectors_of_their_text(
    parts: ServedPreset, encoder: Encoder, pooling: str, filling: int
):
    """Rows filled up with <pad>; or with <s>, as TensorFlow Serving does."""
    texts = ["The cat sat on it.", "", "A", "The others weren't there"]
    ids = [[0, *row, 2] for row in parts.tokenizer(texts)]
    width = max(map(len, ids)) + 3
    rows = [row + [filling] * (width - len(row)) for row in ids]
    both = embedder(parts, encoder, pooling)
    by_ids, by_text = both.embed_ids(tf.constant(rows)), both.embed(tf.constant(texts))
    np.testing.assert_allclose(by_ids["embeddings"], by_text["embeddings"], atol=1e-5)
    assert not by_ids["truncated"].numpy().any()


def test_ids_that_are_none_or_too_many(parts: ServedPreset, encoder: Encoder):
    embed_ids = embedder(parts, encoder, "cls").embed_ids
    odd = tf.constant([[0, -5, 150, 2**31 - 1, 2]])
    unknown = tf.constant([[0, 3, 3, 3, 2]])
    np.testing.assert_array_equal(embed_ids(odd)["embeddings"], embed_ids(unknown)["embeddings"])
    long = tf.constant([[0] + [7] * 40 + [2], [0, 7, 2] + [1] * 39])
    outputs = embed_ids(long)
    assert outputs["truncated"].numpy().tolist() == [True, False]
    cut = embed_ids(long[:1, :24])
    np.testing.assert_allclose(outputs["embeddings"][:1], cut["embeddings"], atol=1e-6)
    for empty in (tf.zeros([0, 5], tf.int32), tf.zeros([0, 0], tf.int32)):
        assert embed_ids(empty)["embeddings"].shape == (0, 16)
    assert np.isfinite(embed_ids(tf.zeros([2, 0], tf.int32))["embeddings"]).all()


def test_vectors_are_those_that_the_presets_embedder_learned(preset, tmp_path):
    model = CocoLMTextEmbedder.from_preset(str(preset), pooling_mode="mean", dimensions=[8, 4])
    model.save_to_preset(str(tmp_path / "preset"))
    parts = ServedPreset(str(tmp_path / "preset"))
    assert parts.embedding() == ("mean", 8)
    assert parts.embedding(dimension=4) == parts.embedding("mean", 4) == ("mean", 4)
    assert parts.embedding("cls") == ("cls", 0)
    with pytest.raises(UserError, match="--dimension=5: the vectors were trained at 8, 4"):
        parts.embedding(dimension=5)
    with pytest.raises(UserError, match="--dimension=17 is more than the 16 of a vector"):
        ServedPreset(str(preset)).embedding(dimension=17)
    texts = ["The cat sat.", "The others weren't there... " * 3]
    served = Embedder(parts, Encoder(InferenceEncoder(parts.backbone)))
    found = served.embed(tf.constant(texts))["embeddings"]
    np.testing.assert_allclose(found, model(model.preprocessor(texts)), atol=1e-5)


CLASSIFIED = [text.encode() if isinstance(text, str) else text for text in ODD_TEXTS]
CLASSIFIED += random_texts(20, seed=5)
PAIRS = (CLASSIFIED, CLASSIFIED[::-1])


def test_classes_are_the_models(load: Any, classifier: CocoLMTextClassifier):
    ask, names = load("classifier"), [b"bad", b"neither", b"good"]
    expected = tf.nn.softmax(classifier.predict(tf.constant(CLASSIFIED), verbose=0)).numpy()
    # Not all the same.
    assert np.ptp(expected[:, 0]) > 0.05
    found = ask("classify", texts=CLASSIFIED)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert found["labels"][7].tolist() == names
    ids = classifier.preprocessor(tf.constant(CLASSIFIED))["token_ids"]
    by_ids = ask("classify_ids", token_ids=ids)
    np.testing.assert_allclose(by_ids["probabilities"], expected, atol=1e-5)
    pairs = tuple(tf.constant(texts) for texts in PAIRS)
    expected = tf.nn.softmax(classifier.predict(pairs, verbose=0)).numpy()
    found = ask("classify_pairs", first=PAIRS[0], second=PAIRS[1])
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    found = ask("classify_examples", inputs=examples(*PAIRS))
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    assert found["classes"][0].tolist() == names


def test_ratings_are_the_models(load: Any, rater: CocoLMTextClassifier):
    ask = load("rater")
    expected = rater.predict(tf.constant(CLASSIFIED), verbose=0)[:, 0]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(ask("classify", texts=CLASSIFIED)["values"], expected, atol=1e-5)
    found = ask("classify_examples", inputs=examples(CLASSIFIED))["outputs"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pairs = tuple(tf.constant(texts) for texts in PAIRS)
    expected = rater.predict(pairs, verbose=0)[:, 0]
    found = ask("classify_pairs", first=PAIRS[0], second=PAIRS[1])["values"]
    np.testing.assert_allclose(found, expected, atol=1e-5)

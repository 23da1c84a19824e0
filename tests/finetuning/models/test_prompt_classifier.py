import random
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_presets import opinions, write_tiny_preset

from cocolm_tf import CocoLMBackbone, CocoLMPromptClassifier
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.prompt_classifier import BoundedCrossentropy
from cocolm_tf.finetuning.presets import language_model_bias

PROMPT = {"template": "{first} It was {mask} .", "label_words": ["bad", "good"]}
TEXTS, LABELS = map(list, zip(*opinions(12, seed=5), strict=True))


@pytest.fixture(scope="module")
def classifier(tiny_preset) -> CocoLMPromptClassifier:
    """One that computes a few batches at once, untraced; tests leave it as it is."""
    random.seed(0)
    model = CocoLMPromptClassifier.from_preset(tiny_preset, **PROMPT, label_names=["bad", "good"])
    model.compile(run_eagerly=True)
    return model


def test_the_logits_are_those_of_the_language_modeling_head(classifier, tiny_preset):
    inputs = classifier.preprocessor(TEXTS)
    mask = np.array(inputs["token_ids"]) == classifier.mask_token_id
    hidden = np.array(classifier.backbone(inputs))[mask]
    matrix = np.array(classifier.backbone.token_embedding.embeddings)
    whole = hidden @ matrix.T + language_model_bias(tiny_preset)
    expected = whole[:, classifier.preprocessor.label_word_ids]
    np.testing.assert_allclose(classifier(inputs), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(classifier.predict(TEXTS, verbose=0), expected, rtol=1e-4, atol=1e-4)


def test_it_has_no_new_weights_but_the_words_own_bias(classifier):
    own = {id(v) for v in classifier.trainable_variables}
    own -= {id(v) for v in classifier.backbone.trainable_variables}
    assert own == {id(classifier.head.bias)}


def test_it_learns_from_raw_strings(tiny_preset):
    random.seed(0)
    backbone = CocoLMBackbone.from_preset(tiny_preset, dropout=0.0)
    classifier = CocoLMPromptClassifier.from_preset(tiny_preset, **PROMPT, backbone=backbone)
    classifier.optimizer.learning_rate = 1e-2
    texts, labels = map(list, zip(*opinions(120, seed=1), strict=True))
    classifier.fit(texts, labels, batch_size=8, epochs=8, verbose=0)
    _, accuracy = classifier.evaluate(texts, labels, verbose=0)
    assert accuracy > 0.9


def test_names_are_labels_and_others_are_said(classifier):
    names = [["bad", "good"][label] for label in LABELS]
    expected = classifier.evaluate(TEXTS, LABELS, verbose=0)
    assert classifier.evaluate(TEXTS, names, verbose=0) == pytest.approx(expected)
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, names)).batch(12)
    assert classifier.evaluate(dataset, verbose=0) == pytest.approx(expected, abs=1e-5)
    for labels, complaint in (
        (LABELS[1:], "12 texts, but 11 labels"),
        (["fine"] * 12, "none of bad, good"),
        ([2] * 12, "2 classes are 0 to 1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            classifier.fit(TEXTS, labels)


def test_it_saves_and_loads(classifier, tmp_path: Path):
    inputs = classifier.preprocessor(TEXTS)
    expected = classifier(inputs)
    classifier.save_to_preset(str(tmp_path / "preset"))
    loaded = CocoLMPromptClassifier.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(loaded(inputs), expected, atol=1e-6)
    assert loaded.label_names == ["bad", "good"]
    assert loaded.preprocessor.template.source == PROMPT["template"]


def test_a_regression_lies_between_its_bounds(tiny_preset, classifier):
    numbers = np.float32(LABELS) * 4 + 0.5
    model = CocoLMPromptClassifier.from_preset(tiny_preset, **PROMPT, bounds=(0, 5))
    model.compile(run_eagerly=True)
    inputs = model.preprocessor(TEXTS)
    logits, found = classifier(inputs), model(inputs)
    shares = tf.nn.softmax(logits).numpy()[:, 1:]
    np.testing.assert_allclose(found, 5 * shares, rtol=1e-4)
    loss = model.evaluate(TEXTS, numbers, verbose=0)
    assert loss == pytest.approx(_cross_entropy(numbers / 5, shares[:, 0]), rel=1e-3)
    model.optimizer.learning_rate = 1e-2
    model.fit(TEXTS, numbers, batch_size=12, epochs=2, verbose=0)
    assert model.evaluate(TEXTS, numbers, verbose=0) < loss


def _cross_entropy(shares, predicted) -> float:
    return float(np.mean(-shares * np.log(predicted) - (1 - shares) * np.log(1 - predicted)))


def test_the_loss_of_a_regression_is_least_at_the_label():
    loss = BoundedCrossentropy((1, 3))
    values = [float(loss([2.5], [[guess]])) for guess in (2.3, 2.5, 2.7, 3.0)]
    assert min(values) == values[1] and np.isfinite(values).all()
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again([2.5], [[2.3]])) == values[0]


@pytest.mark.slow
def test_a_model_without_a_language_modeling_head_is_refused(tmp_path: Path):
    preset = write_tiny_preset(tmp_path, lm_weight=0.0)
    with pytest.raises(UserError, match="has no language modeling head .*never learned to tell"):
        CocoLMPromptClassifier.from_preset(preset, **PROMPT)


def test_a_preset_without_heads_is_refused(fine_tuned):
    with pytest.raises(UserError, match="has no language modeling head"):
        CocoLMPromptClassifier.from_preset(fine_tuned, **PROMPT)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"label_words": None}, "A template needs label_words"),
        ({"bounds": (5, 0)}, "a lower and a higher bound"),
        ({"bounds": (0, 5), "label_words": ["bad", "good", "cat"]}, "A regression has two words"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_preset, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        CocoLMPromptClassifier.from_preset(tiny_preset, **(PROMPT | changes))

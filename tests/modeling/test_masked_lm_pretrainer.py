import keras
import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from modeling_models import MASK, make_backbone, make_batch, randomize, tensors

from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, MaskedLMPretrainer


@pytest.fixture
def pretrainer() -> MaskedLMPretrainer:
    pretrainer = MaskedLMPretrainer(MaskedLanguageModel(make_backbone()), MASK)
    randomize(pretrainer)
    return pretrainer


def test_the_loss_is_that_of_section_3_1(pretrainer: MaskedLMPretrainer):
    batch = make_batch()
    losses, measures = pretrainer.compute(tensors(batch), training=True)
    assert list(losses) == ["mlm_loss"]
    expected = reference.masked_lm_loss(pretrainer.model, batch)
    assert float(losses["mlm_loss"]) == pytest.approx(expected, rel=1e-5)
    assert sorted([*losses, *measures]) == sorted(pretrainer.meter_names())
    weights = pretrainer.denominators(tensors(batch))
    assert {name: float(weight) for name, weight in weights.items()} == {"mlm_loss": 6}


def test_chunks_of_logits_change_nothing(pretrainer: MaskedLMPretrainer):
    batch, found = tensors(make_batch()), []
    for pretrainer.logit_chunk_rows in (0, 5):
        with tf.GradientTape() as tape:
            losses, measures = pretrainer.compute(batch, training=True)
        gradients = tape.gradient(
            losses["mlm_loss"], [v.value for v in pretrainer.trainable_variables]
        )
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        found.append([losses["mlm_loss"], *tf.nest.flatten(measures), *gradients])
    for whole, chunked in zip(*found, strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-5)


def test_a_batch_without_masked_tokens_gives_zero(pretrainer: MaskedLMPretrainer):
    batch = make_batch() | {"masked_weights": np.zeros([4, 3], np.float32)}
    losses, _ = pretrainer.compute(tensors(batch), training=True)
    assert losses["mlm_loss"] == 0


def test_there_is_no_other_part(pretrainer: MaskedLMPretrainer):
    assert pretrainer.auxiliary is pretrainer.copy_head is pretrainer.lm_head is None
    assert {id(v) for v in pretrainer.trainable_variables} == {
        id(v) for v in pretrainer.model.trainable_variables
    }
    assert list(pretrainer.seed_generators()) == [pretrainer.backbone.seed_generator]


def test_fit_trains_it(pretrainer: MaskedLMPretrainer):
    pretrainer.compile(keras.optimizers.AdamW(1e-2), clip_norm=2.0)
    dataset = tf.data.Dataset.from_tensors(make_batch()).repeat()
    history = pretrainer.fit(dataset, epochs=3, steps_per_epoch=10, verbose=0).history
    assert history["mlm_loss"][-1] < history["mlm_loss"][0] / 2
    assert history["loss"] == pytest.approx(history["mlm_loss"])

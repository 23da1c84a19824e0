import keras
import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from modeling_models import MASK, make_auxiliary, make_backbone, make_batch, randomize, tensors

from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, MaskedLMPretrainer

# --- The model ---


def test_predicts_at_the_positions():
    model = MaskedLanguageModel(make_backbone())
    randomize(model)
    batch = make_batch()
    inputs = {name: batch[name] for name in ("token_ids", "padding_mask")}
    logits = model(inputs, positions=batch["masked_positions"])
    assert logits.shape == (12, 60)
    expected = reference.masked_lm_logits(model, inputs, batch["masked_positions"])
    np.testing.assert_allclose(logits, expected.reshape(12, 60), atol=2e-5)


def test_dropout_acts_in_training_only():
    model = MaskedLanguageModel(make_backbone(dropout=0.3))
    batch = make_batch()
    inputs = {name: batch[name] for name in ("token_ids", "padding_mask")}

    def predict(training):
        return model(inputs, positions=batch["masked_positions"], training=training).numpy()

    np.testing.assert_array_equal(predict(False), predict(False))
    assert (predict(True) != predict(True)).any()


def test_has_its_weights_from_the_start():
    model = make_auxiliary(make_backbone(), hidden_dim=8, intermediate_dim=8)
    shapes = [tuple(v.shape) for v in model.head.trainable_variables]
    # The dense layer leads to the width of the shared table.
    assert shapes.count((8, 16)) == 1
    assert shapes.count((60, 16)) == 1
    assert len(model.trainable_variables) == len({id(v) for v in model.trainable_variables})


def test_mixed_precision():
    model = MaskedLanguageModel(make_backbone(dtype="mixed_float16"))
    batch = make_batch()
    inputs = {name: batch[name] for name in ("token_ids", "padding_mask")}
    assert model(inputs, positions=batch["masked_positions"]).dtype == tf.float16
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


# --- Its pretraining ---


@pytest.fixture
def pretrainer() -> MaskedLMPretrainer:
    pretrainer = MaskedLMPretrainer(MaskedLanguageModel(make_backbone(num_layers=1)), MASK)
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

import modeling_reference as reference
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_models import make_auxiliary, make_backbone, make_batch, randomize

from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, gather_positions


@settings(max_examples=40)
@given(st.integers(0, 3), st.integers(1, 6), st.integers(0, 4), st.sampled_from([(), (1,), (3,)]))
def test_gathers_row_by_row(sequences, length, slots, width):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sequences, length, *width)).astype(np.float32)
    positions = rng.integers(0, length, (sequences, slots)).astype(np.int32)
    expected = [x[b, position] for b in range(sequences) for position in positions[b]]
    gathered = gather_positions(tf.constant(x), tf.constant(positions))
    np.testing.assert_array_equal(gathered, np.reshape(expected, [-1, *width]))


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

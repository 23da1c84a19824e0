import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from modeling_models import make_backbone, randomize

from cocolm_tf.modeling.heads import CopyHead, MaskedLMHead, TiedProjection, Transform

HIDDEN = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def embedding():
    backbone = make_backbone(num_layers=1)
    randomize(backbone)
    return backbone.token_embedding


def nudge(layer) -> None:
    """Gives biases and scales values of their own."""
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign_add(rng.normal(0, 0.3, variable.shape))


def test_tied_projection_reads_the_embeddings(embedding):
    projection = TiedProjection(embedding)
    projection.build((None, 16))
    nudge(projection)
    logits = projection(HIDDEN)
    assert logits.shape == (5, 60)
    np.testing.assert_allclose(logits, reference.tied_logits(HIDDEN, projection), atol=1e-5)
    np.testing.assert_array_equal(TiedProjection(embedding)(tf.zeros([1, 16])), np.zeros([1, 60]))


def test_tied_projection_adds_a_bias_alone(embedding):
    projection = TiedProjection(embedding)
    projection.build((None, 16))
    assert [
        tuple(v.shape)
        for v in projection.trainable_variables
        if v.path != embedding.embeddings.path
    ] == [(60,)]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(projection(HIDDEN))
    gradient = tf.convert_to_tensor(tape.gradient(total, embedding.embeddings.value))
    np.testing.assert_allclose(gradient, np.tile(HIDDEN.sum(0), (60, 1)), rtol=1e-4, atol=1e-5)


def test_transform_is_dense_gelu_norm():
    transform = Transform(7, layer_norm_epsilon=1e-3)
    transform.build((None, 16))
    nudge(transform)
    result = transform(HIDDEN)
    assert result.shape == (5, 7)
    np.testing.assert_allclose(result, reference.transform(HIDDEN, transform), atol=1e-5)
    assert transform.norm.epsilon == 1e-3


def test_masked_lm_head_is_both(embedding):
    head = MaskedLMHead(embedding)
    head.build((None, 16))
    nudge(head)
    expected = reference.tied_logits(reference.transform(HIDDEN, head.transform), head.projection)
    np.testing.assert_allclose(head(HIDDEN), expected, atol=1e-5)


def test_masked_lm_head_fits_a_narrow_embedding():
    embedding = make_backbone(num_layers=1, embedding_dim=6).token_embedding
    assert MaskedLMHead(embedding)(HIDDEN).shape == (5, 60)


def test_copy_head_is_one_vector_without_bias():
    head, hidden = CopyHead(), HIDDEN.reshape(1, 5, 16)
    logits = head(hidden)
    assert logits.shape == (1, 5)
    assert [tuple(v.shape) for v in head.trainable_variables] == [(16,)]
    np.testing.assert_allclose(logits, hidden @ head.kernel.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["projection", "transform", "masked_lm", "copy"])
def test_mixed_precision_keeps_float32_weights(head):
    policy = "mixed_bfloat16"
    embedding = make_backbone(num_layers=1, dtype=policy).token_embedding
    layer = {
        "projection": lambda: TiedProjection(embedding, dtype=policy),
        "transform": lambda: Transform(7, dtype=policy),
        "masked_lm": lambda: MaskedLMHead(embedding, dtype=policy),
        "copy": lambda: CopyHead(dtype=policy),
    }[head]()
    result = layer(tf.constant(HIDDEN))
    assert result.dtype == tf.bfloat16
    assert np.isfinite(tf.cast(result, tf.float32)).all()
    assert {v.dtype for v in layer.trainable_variables} == {"float32"}

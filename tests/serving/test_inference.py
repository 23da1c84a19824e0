import random

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.serving.inference import InferenceEncoder

SIZES = {
    "vocabulary_size": 50,
    "num_layers": 3,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 40,
    "max_sequence_length": 20,
    "relative_position_bins": 8,
    "relative_position_max_distance": 12,
}
LENGTHS = [7, 20, 1, 4]


def make(**changes) -> CocoLMBackbone:
    random.seed(0)
    backbone = CocoLMBackbone(**SIZES | changes)
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    return backbone


def ids() -> tf.RaggedTensor:
    tokens = np.random.default_rng(1).integers(2, 50, sum(LENGTHS)).astype(np.int32)
    return tf.RaggedTensor.from_row_lengths(tokens, LENGTHS)


def expected(backbone: CocoLMBackbone) -> np.ndarray:
    mask = tf.sequence_mask(LENGTHS, 20)
    inputs = {"token_ids": ids().to_tensor(1, shape=[None, 20]), "padding_mask": mask}
    return tf.boolean_mask(backbone(inputs), mask).numpy()


@pytest.mark.parametrize("bins", [8, 0])
def test_it_computes_what_the_backbone_does(bins: int):
    backbone = make(relative_position_bins=bins)
    model = InferenceEncoder(backbone)
    states = expected(backbone)
    np.testing.assert_allclose(model(ids()), states, atol=1e-5)
    first = states[np.cumsum([0, *LENGTHS[:-1]])]
    np.testing.assert_allclose(model(ids(), first_only=True), first, atol=1e-5)


def test_logits_are_products_with_the_word_embeddings():
    backbone = make()
    states = np.random.default_rng(2).normal(size=[5, 16]).astype(np.float32)
    matrix = backbone.token_embedding.embeddings.numpy()
    logits = InferenceEncoder(backbone).token_logits(tf.constant(states))
    np.testing.assert_allclose(logits, states @ matrix.T, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "tolerance", "share"),
    [
        ({"precision": "bfloat16"}, 0.1, 0.5),
        ({"int8": True}, 0.2, 0.25),
        ({"int8": True, "precision": "bfloat16"}, 0.3, 0.25),
    ],
    ids=str,
)
def test_smaller_weights_give_about_the_same(
    arguments: dict[str, object], tolerance: float, share: float
):
    backbone = make()
    model = InferenceEncoder(backbone, **arguments)
    states = model(ids())
    assert states.dtype == tf.float32
    difference = np.abs(states - expected(backbone)).max()
    assert 1e-6 < difference < tolerance
    logits = model.token_logits(states)
    whole = InferenceEncoder(backbone).token_logits(states)
    assert 1e-6 < np.abs(logits - whole).max() < tolerance
    # Vectors stay what they are, and so do the tables of 20 positions and 39 distances.
    matrices = [v for v in model.variables if v.shape.rank == 2 and not {20, 39} & {*v.shape}]
    assert matrices
    for matrix in matrices:
        assert matrix.dtype.size == 4 * share


def test_an_untied_width_is_refused():
    with pytest.raises(ValueError, match="embedding_dim"):
        InferenceEncoder(make(embedding_dim=8))

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.finetuning.config import OptimizerConfig
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.run import build_optimizer, layer_depths


@pytest.fixture(scope="module")
def classifier(tiny_preset) -> CocoLMTextClassifier:
    """Tests change its weights."""
    return CocoLMTextClassifier.from_preset(tiny_preset, num_classes=2)


def first_update(classifier, **changes) -> dict[str, float]:
    """How far the first step moves each variable, whose gradients are all 1, at a rate of 1."""
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.0, epsilon=1e-12)
    config.override(changes)
    optimizer = build_optimizer(config, 10, classifier, classifier.backbone)
    variables = classifier.trainable_variables
    before = [np.array(variable) for variable in variables]
    optimizer.build(variables)
    optimizer.apply([tf.ones(variable.shape) for variable in variables], variables)
    return {
        variable.path: (old - np.array(variable)) / 1.0
        for variable, old in zip(variables, before, strict=True)
    }


def test_lower_layers_learn_more_slowly(classifier):
    moves = first_update(classifier, layer_decay=0.5, weight_decay=0.0)
    expected = {
        "logits/kernel": 1,
        "pooled_dense/bias": 1,
        "transformer_block_1/query/kernel": 0.5,
        "transformer_block_0/output_norm/gamma": 0.25,
        "token_embedding/embeddings": 0.125,
        "position_embedding/embeddings": 0.125,
        "embeddings_norm/gamma": 0.125,
        "attention_bias/table": 0.125,
    }
    for path, move in expected.items():
        found = [value for name, value in moves.items() if name.endswith(path)]
        assert len(found) == 1, path
        np.testing.assert_allclose(found[0], move, rtol=1e-3)


def test_by_default_all_learn_alike(classifier):
    moves = first_update(classifier, weight_decay=0.0)
    for path, move in moves.items():
        np.testing.assert_allclose(move, 1, rtol=1e-3, err_msg=path)


def test_matrices_decay_and_vectors_do_not(classifier):
    before = {variable.path: np.array(variable) for variable in classifier.trainable_variables}
    for path, move in first_update(classifier, weight_decay=0.5).items():
        decay = 0.5 * before[path] if before[path].ndim > 1 else 0
        np.testing.assert_allclose(move, 1 + decay, rtol=1e-3, atol=1e-3, err_msg=path)


def test_the_schedule_follows_the_share_of_the_steps(classifier):
    config = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.1)
    optimizer = build_optimizer(config, 105, classifier, classifier.backbone)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 10, 11, 105)]
    assert rates == pytest.approx([1e-3 / 11, 1e-3, 1e-3, 0.0])


def test_gradients_are_clipped_where_asked(classifier):
    assert (
        build_optimizer(OptimizerConfig(), 10, classifier, classifier.backbone).global_clipnorm
        is None
    )
    config = OptimizerConfig(clip_norm=2.0)
    assert build_optimizer(config, 10, classifier, classifier.backbone).global_clipnorm == 2.0


def test_depths_cover_the_encoder(classifier):
    backbone = classifier.backbone
    depths = layer_depths(backbone)
    assert set(depths) == {id(variable) for variable in backbone.variables}
    assert set(depths.values()) == {0, 1, 2}

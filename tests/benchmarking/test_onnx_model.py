import random

import numpy as np
import pytest
import tensorflow as tf

onnxruntime = pytest.importorskip("onnxruntime")

from cocolm_tf.benchmarking.onnx_model import (  # noqa: E402
    classification_model,
    embedding_model,
)
from cocolm_tf.finetuning.text_classifier import CocoLMTextClassifier  # noqa: E402
from cocolm_tf.modeling.backbone import CocoLMBackbone  # noqa: E402

IDS = np.int64([[0, 7, 8, 9, 2, 1], [0, 5, 2, 1, 1, 1], [0, 11, 12, 13, 14, 2]])


def make(bins: int) -> CocoLMBackbone:
    random.seed(0)
    backbone = CocoLMBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=40,
        max_sequence_length=20,
        relative_position_bins=bins,
        relative_position_max_distance=12,
    )
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    return backbone


def run(model: object) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["output"], {"token_ids": IDS})[0]


def inputs() -> dict[str, tf.Tensor]:
    return {"token_ids": tf.constant(IDS, tf.int32), "padding_mask": tf.constant(IDS != 1)}


@pytest.mark.parametrize("bins", [0, 8])
def test_vectors_are_the_models(bins: int):
    backbone = make(bins)
    first = backbone(inputs())[:, 0].numpy()
    expected = first / np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(run(embedding_model(backbone)), expected, atol=1e-5)


def test_probabilities_are_the_models():
    classifier = CocoLMTextClassifier(make(8), num_classes=3)
    rng = np.random.default_rng(0)
    classifier.output_dense.kernel.assign(rng.normal(size=[16, 3]))
    expected = tf.nn.softmax(classifier(inputs())).numpy()
    assert np.ptp(expected[:, 0]) > 1e-3
    np.testing.assert_allclose(run(classification_model(classifier)), expected, atol=1e-5)

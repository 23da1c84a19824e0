import numpy as np
import pytest
import tensorflow as tf
from conversion_backbones import make_backbone

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from cocolm_tf.conversion.onnx_model import (  # noqa: E402
    answering_model,
    classification_model,
    correction_model,
    embedding_model,
    with_precision,
)
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer  # noqa: E402
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier  # noqa: E402
from cocolm_tf.modeling.backbone import CocoLMBackbone  # noqa: E402
from cocolm_tf.modeling.heads import CopyHead, TiedProjection  # noqa: E402

IDS = np.int64([[0, 7, 8, 9, 2, 1], [0, 5, 2, 1, 1, 1], [0, 11, 12, 13, 14, 2]])


def make(bins: int) -> CocoLMBackbone:
    return make_backbone(bins, positions=20)


def run(model: object) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"token_ids": IDS}), strict=True))


def inputs() -> dict[str, tf.Tensor]:
    return {"token_ids": tf.constant(IDS, tf.int32), "padding_mask": tf.constant(IDS != 1)}


def weight_bytes(model: object) -> int:
    return sum(onnx.numpy_helper.to_array(x).nbytes for x in model.graph.initializer)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("bins", [0, 8])
def test_vectors_are_the_models(bins: int):
    backbone = make(bins)
    states = backbone(inputs()).numpy()
    found = run(embedding_model(backbone))["embeddings"]
    np.testing.assert_allclose(found, unit(states[:, 0]), atol=1e-5)
    mean = unit((states * (IDS != 1)[..., np.newaxis]).sum(axis=1))
    found = run(embedding_model(backbone, "mean"))["embeddings"]
    np.testing.assert_allclose(found, mean, atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2e-3), ("int8", 0.1)])
def test_fewer_bits_are_near(precision: str, tolerance: float):
    backbone = make(8)
    exact = run(embedding_model(backbone))["embeddings"]
    model = with_precision(embedding_model(backbone), precision)
    found = run(model)["embeddings"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < tolerance
    assert weight_bytes(model) < 0.8 * weight_bytes(embedding_model(backbone))


@pytest.mark.parametrize("num_classes", [1, 3])
def test_classes_are_the_models(num_classes: int):
    classifier = CocoLMTextClassifier(make(8), num_classes=num_classes)
    rng = np.random.default_rng(0)
    classifier.output_dense.kernel.assign(rng.normal(size=[16, num_classes]))
    outputs = classifier(inputs()).numpy()
    (found,) = run(classification_model(classifier)).values()
    expected = outputs[:, 0] if num_classes == 1 else tf.nn.softmax(outputs).numpy()
    assert np.ptp(expected[..., 0] if num_classes > 1 else expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_corrections_are_the_papers():
    backbone, special = make(8), [0, 1, 2, 3, 49]
    copy_head, lm_head = CopyHead(use_bias=True), TiedProjection(backbone.token_embedding)
    states = backbone(inputs()).numpy()
    copy_head.build(states.shape)
    lm_head.build(states.shape)
    rng = np.random.default_rng(0)
    lm_head.bias.assign(rng.normal(size=50))
    copy_head.bias.assign([0.3])
    found = run(correction_model(backbone, copy_head, lm_head, special, 3))
    is_real = IDS != 1
    replaced = 1 / (1 + np.exp(states @ copy_head.kernel.numpy() + 0.3)) * is_real
    np.testing.assert_allclose(found["probabilities"], replaced, atol=1e-5)
    logits = states @ backbone.token_embedding.embeddings.numpy().T + lm_head.bias.numpy()
    shares = tf.nn.softmax(logits).numpy() * replaced[..., np.newaxis]
    shares[..., special] = 0
    np.put_along_axis(shares, IDS[..., np.newaxis], 0, axis=2)
    ids = np.argsort(-shares, axis=2)[..., :3] * is_real[..., np.newaxis]
    np.testing.assert_array_equal(found["correction_ids"], ids)
    best = np.sort(shares, axis=2)[..., :-4:-1]
    np.testing.assert_allclose(found["correction_probabilities"], best, atol=1e-5)


def test_answers_are_the_models():
    answerer = CocoLMQuestionAnswerer(make(8))
    states = answerer.backbone(inputs())
    start, end = np.moveaxis(answerer.answer_logits(states).numpy(), -1, 0)
    found = run(answering_model(answerer))
    for name, expected in (("start_logits", start), ("end_logits", end)):
        np.testing.assert_allclose(found[name], np.where(IDS != 1, expected, -1e4), atol=1e-5)

"""The steps of all models that `fit()` on raw text."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_presets import opinions

from cocolm_tf import CocoLMBackbone, CocoLMTextClassifier, CocoLMTextClassifierPreprocessor
from cocolm_tf.training.optimization import AdamW

TEXTS, LABELS = map(list, zip(*opinions(12, seed=5), strict=True))
ROWS = 9
WEIGHTS = np.float32([1, 2, 0.5, 1, 1, 3, 1, 1, 1])
# An epsilon keeps the first step from being the sign of the gradient.
ADAMW = {"learning_rate": 1e-2, "epsilon": 1e-2}


@pytest.fixture(scope="module")
def make(tiny_preset):
    """Makes a classifier, always the same, and compiles it."""

    def make(optimizer: keras.optimizers.Optimizer | None = None, dropout: float = 0.0, **options):
        random.seed(3)
        backbone = CocoLMBackbone.from_preset(tiny_preset, dropout=dropout)
        preprocessor = CocoLMTextClassifierPreprocessor.from_preset(tiny_preset)
        model = CocoLMTextClassifier(backbone, 2, preprocessor)
        model.compile(optimizer or AdamW(**ADAMW, global_clipnorm=0.1), **options)
        return model

    return make


@pytest.fixture(scope="module")
def batch(tiny_preset) -> tuple:
    """Nine rows with weights."""
    preprocessor = CocoLMTextClassifierPreprocessor.from_preset(tiny_preset)
    features = preprocessor(TEXTS[:ROWS])
    x = {name: np.int32(values)[:, :16] for name, values in features.items()}
    return x, np.int32(LABELS[:ROWS]), WEIGHTS


def filled(batch: tuple, size: int) -> tuple:
    """The same with rows of weight 0."""
    x, y, weights = batch
    order = np.minimum(np.arange(size), ROWS - 1)
    weights = np.where(np.arange(size) < ROWS, weights[order], 0)
    return {name: values[order] for name, values in x.items()}, y[order], weights


def dataset(batch: tuple, size: int, count: int = 2) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(batch).batch(size, drop_remainder=True).repeat(count)


def learned(model: keras.Model, batch: tuple, size: int, **arguments) -> tuple[dict, list]:
    history = model.fit(dataset(batch, size), verbose=0, shuffle=False, **arguments).history
    return history, [np.array(variable) for variable in model.trainable_variables]


def assert_same(one: tuple[dict, list], two: tuple[dict, list], atol: float = 2e-6) -> None:
    assert one[0].keys() == two[0].keys()
    for name, values in one[0].items():
        np.testing.assert_allclose(values, two[0][name], atol=1e-5, err_msg=name)
    for left, right in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(left, right, atol=atol)


def metrics() -> dict:
    weighted = keras.metrics.SparseCategoricalCrossentropy(from_logits=True)
    return {"metrics": ["accuracy"], "weighted_metrics": [weighted]}


@pytest.fixture(scope="module")
def expected(make, batch) -> tuple[dict, list]:
    """What is learned from twelve rows, three of them of weight 0, in two steps."""
    return learned(make(**metrics()), filled(batch, 12), 12)


def test_rows_of_weight_0_are_as_if_they_were_not_there(make, batch, expected):
    alone = learned(make(**metrics(), run_eagerly=True), batch, ROWS)
    assert_same(alone, expected)
    assert set(alone[0]) == {"loss", "accuracy", "sparse_categorical_crossentropy"}


def test_keras_optimizers_learn_the_same(make, batch):
    def run(batch, size):
        model = make(keras.optimizers.SGD(0.1), **metrics(), run_eagerly=True)
        return learned(model, batch, size)

    assert_same(run(batch, ROWS), run(filled(batch, 12), 12))


def test_what_is_measured_is_the_mean_over_the_rows(make, batch):
    model, (x, y, weights) = make(**metrics(), run_eagerly=True), filled(batch, 12)
    loss, accuracy, weighted = model.evaluate(dataset((x, y, weights), 12, 1), verbose=0)
    logits = np.array(model(batch[0]))
    errors = -tf.nn.log_softmax(logits).numpy()[np.arange(ROWS), batch[1]]
    assert loss == pytest.approx((errors * WEIGHTS).sum() / ROWS, rel=1e-5)
    assert weighted == pytest.approx((errors * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == batch[1]).mean())


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batches": 3},
        {"steps_per_execution": 2},
        {"jit_compile": True, "micro_batches": 2},
    ],
    ids=str,
)
def test_however_a_step_is_computed_it_learns_the_same(make, batch, expected, options):
    model = make(**metrics(), **options)
    assert_same(expected, learned(model, filled(batch, 12), 12), atol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_replicas_learn_as_one_device(make, batch, expected, mirrored_strategy, micro_batches):
    with mirrored_strategy.scope():
        model = make(**metrics(), micro_batches=micro_batches)
    # One of the two has three rows of nine.
    assert_same(expected, learned(model, filled(batch, 12), 12), atol=5e-6)
    if micro_batches == 1:
        np.testing.assert_allclose(
            model.predict(TEXTS, verbose=0), model(model.preprocessor(TEXTS)), atol=1e-5
        )


def test_dropout_follows_from_the_step(make, batch):
    def run(first: int) -> list:
        model = make(keras.optimizers.SGD(0.0), dropout=0.5, run_eagerly=True)
        model.optimizer.iterations.assign(first)
        return learned(model, batch, ROWS)[0]["loss"]

    assert run(0) == run(0) != run(1)


def test_each_width_is_one_program(make, monkeypatch):
    model, shapes = make(), []
    step = model._gradients
    monkeypatch.setattr(
        model, "_gradients", lambda batch, *x: shapes.append(batch[1].shape) or step(batch, *x)
    )
    texts = ["a cat", "a cat saw the red house on its hill and then some bird"] * 128
    model.fit(texts, [0, 1] * 128, batch_size=4, epochs=2, verbose=0)
    assert shapes == [(4,), (4,)]
    # Batches of unknown size share one.
    unknown = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(5)
    model.fit(unknown, epochs=2, verbose=0)
    assert len(shapes) <= 4 and shapes[-1].as_list() == [None]


def test_batches_must_divide(make):
    with pytest.raises(ValueError, match="batch_size=4 does not divide into 1 replicas of 3"):
        make(micro_batches=3).fit(TEXTS, LABELS, batch_size=4)
    with pytest.raises(ValueError, match="micro_batches=0"):
        make(micro_batches=0)

import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.measures import (
    corrective_lm_measures,
    detection_measures,
    top_corrected_tokens,
    top_tokens,
)


@pytest.fixture(params=range(3))
def rng(request) -> np.random.Generator:
    return np.random.default_rng(request.param)


def check(measures, expected) -> None:
    """Expected: a name and the events of weight 1 that it is the share of."""
    assert measures.keys() == expected.keys()
    for name, events in expected.items():
        value, weight = measures[name]
        assert float(weight) == len(events), name
        assert float(value) == pytest.approx(np.mean(events) if len(events) else 0), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copy(rng, dtype):
    logits = tf.cast(rng.normal(size=(5, 12)), dtype)
    is_original, is_real = rng.random((5, 12)) < 0.8, rng.random((5, 12)) < 0.7
    positive = tf.cast(logits, tf.float32).numpy() > 0
    check(
        detection_measures("copy", logits, tf.constant(is_original), tf.constant(is_real)),
        {
            "copy_accuracy_replaced": ~positive[is_real & ~is_original],
            "copy_accuracy_original": positive[is_real & is_original],
            "copy_replacement_rate": ~is_original[is_real],
        },
    )


@pytest.mark.parametrize("copies", [False, True])
def test_corrective_lm(rng, copies):
    logits = (3 * rng.normal(size=(200, 4))).astype(np.float32)
    copy_logits = rng.normal(size=200).astype(np.float32)
    ids, labels = rng.integers(0, 4, (2, 200)).astype(np.int32)
    weights = rng.integers(0, 2, 200)
    right = []
    for row, copy, read, label in zip(logits, copy_logits, ids, labels, strict=True):
        likelihood = reference.softmax(np.float64(row))
        if copies:
            p_copy = reference.sigmoid(np.float64(copy))
            likelihood = (1 - p_copy) * likelihood + p_copy * (np.arange(4) == read)
        right.append(likelihood.argmax() == label)
    right, used = np.array(right), weights == 1
    predictions = top_corrected_tokens(logits, copy_logits, ids) if copies else top_tokens(logits)
    measures = corrective_lm_measures(predictions, ids, labels, tf.constant(weights, tf.float32))
    check(
        measures,
        {
            "lm_accuracy_replaced": right[used & (ids != labels)],
            "lm_accuracy_original": right[used & (ids == labels)],
        },
    )


def test_nothing_to_measure_gives_zero_of_weight_zero():
    ids = tf.constant([1, 2])
    check(
        corrective_lm_measures(ids, ids, ids, tf.zeros([2])),
        {"lm_accuracy_replaced": [], "lm_accuracy_original": []},
    )

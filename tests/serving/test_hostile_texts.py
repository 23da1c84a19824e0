"""No text makes a signature fail, and every answer is within its bounds."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import long_texts, mutated_texts, random_texts

pytestmark = pytest.mark.slow

BATCH_SIZES = (0, 1, 1, 2, 7, 16, 33)
COUNTS = [80, pytest.param(10_000, marks=pytest.mark.exhaustive)]

Outputs = dict[str, np.ndarray]


def batches(count: int) -> Iterator[list[bytes]]:
    texts = random_texts(count // 2, seed=11) + mutated_texts(count - count // 2, seed=12)
    if count > 1000:
        texts += long_texts(count // 100, seed=14)
    draw = random.Random(13)
    draw.shuffle(texts)
    while texts:
        size = draw.choice(BATCH_SIZES)
        yield texts[:size]
        texts = texts[size:]


def strings(values: list[bytes]) -> tf.Tensor:
    return tf.constant(values, tf.string, [len(values)])


def texts_inputs(texts: list[bytes]) -> dict[str, tf.Tensor]:
    return {"texts": strings(texts)}


def pair_inputs(first: str, second: str) -> Callable[[list[bytes]], dict[str, tf.Tensor]]:
    return lambda texts: {first: strings(texts[::-1]), second: strings(texts)}


def ids_inputs(texts: list[bytes]) -> dict[str, tf.Tensor]:
    draw = np.random.default_rng(len(texts))
    shape = [len(texts), draw.integers(0, 60)]
    extremes = [-(2**31), 2**31 - 1, -1, 0, 1, 2]
    ids = np.where(draw.random(shape) < 0.2, draw.choice(extremes, shape), draw.integers(0, 160))
    return {"token_ids": tf.constant(ids, tf.int32)}


def examples_inputs(texts: list[bytes]) -> dict[str, tf.Tensor]:
    examples = []
    for number, text in enumerate(texts):
        example = tf.train.Example()
        # None, one or both of the features, with none to two texts each.
        for place, name in enumerate(("first", "second", "other")):
            values = [text] * ((number // 3**place) % 3)
            if number % 5 != place:
                example.features.feature[name].bytes_list.value.extend(values)
        examples.append(example.SerializeToString())
    return {"inputs": strings(examples)}


def check_probabilities(*arrays: np.ndarray) -> None:
    for array in arrays:
        assert np.all(array >= 0) and np.all(array <= 1 + 1e-6)


def check_embed(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    np.testing.assert_allclose(np.linalg.norm(outputs["embeddings"], axis=1), 1, rtol=1e-4)


def check_correct(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    check_probabilities(outputs["probabilities"], outputs["correction_probabilities"])
    together = outputs["correction_probabilities"].sum(axis=-1)
    assert np.all(together <= outputs["probabilities"] + 1e-4)
    for row, text in enumerate(inputs["texts"].numpy()):
        text, end = text.decode("utf-8", "replace"), 0
        for index in range(outputs["num_words"][row]):
            previous, start, end = end, outputs["starts"][row, index], outputs["ends"][row, index]
            assert previous <= start < end <= len(text)
            assert outputs["words"][row, index].decode() == text[start:end]
        for correction in outputs["corrections"][row].ravel():
            correction.decode()


def check_correct_ids(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    check_probabilities(outputs["probabilities"], outputs["correction_probabilities"])
    assert outputs["probabilities"].shape == inputs["token_ids"].shape


def check_classes(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    probabilities = outputs["scores" if "scores" in outputs else "probabilities"]
    check_probabilities(probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)


def check_answer(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    for row, context in enumerate(inputs["contexts"].numpy()):
        context = context.decode("utf-8", "replace")
        start, end = outputs["starts"][row], outputs["ends"][row]
        assert 0 <= start <= end <= len(context)
        assert outputs["answers"][row].decode() == context[start:end]


def check_tag(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    check_probabilities(outputs["scores"])
    for row, text in enumerate(inputs["texts"].numpy()):
        text, end = text.decode("utf-8", "replace"), 0
        for index in range(outputs["num_spans"][row]):
            previous, start, end = end, outputs["starts"][row, index], outputs["ends"][row, index]
            assert previous <= start < end <= len(text)
            assert outputs["spans"][row, index].decode() == text[start:end]


def no_check(outputs: Outputs, inputs: dict[str, tf.Tensor]) -> None:
    pass


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("model", "signature", "make_inputs", "check"),
    [
        ("pretrained", "embed", texts_inputs, check_embed),
        ("pretrained", "embed_ids", ids_inputs, check_embed),
        ("pretrained", "correct", texts_inputs, check_correct),
        ("pretrained", "correct_ids", ids_inputs, check_correct_ids),
        ("classifier", "classify", texts_inputs, check_classes),
        ("classifier", "classify_pairs", pair_inputs("first", "second"), check_classes),
        ("classifier", "classify_ids", ids_inputs, check_classes),
        ("classifier", "classify_examples", examples_inputs, check_classes),
        ("rater", "classify_examples", examples_inputs, no_check),
        ("answerer", "answer", pair_inputs("questions", "contexts"), check_answer),
        ("answerer", "answer_ids", ids_inputs, no_check),
        ("tagger", "tag", texts_inputs, check_tag),
        ("tagger", "tag_tsv", texts_inputs, no_check),
        ("tagger", "tag_ids", ids_inputs, no_check),
    ],
)
def test_no_text_is_too_odd(
    load: Callable[[str], Any],
    model: str,
    signature: str,
    make_inputs: Callable[[list[bytes]], dict[str, tf.Tensor]],
    check: Callable[[Outputs, dict[str, tf.Tensor]], Any],
    count: int,
):
    export = load(model)
    answered = 0
    for texts in batches(count):
        inputs = make_inputs(texts)
        outputs = export(signature, **inputs)
        for value in outputs.values():
            assert len(value) == len(texts)
            assert value.dtype.kind != "f" or np.isfinite(value).all()
        check(outputs, inputs)
        answered += len(texts)
    assert answered >= count

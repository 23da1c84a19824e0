"""Exports, loaded without cocolm_tf and Keras, say what the Keras models do."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import MAX_LENGTH, ODD_TEXTS, WORDS, random_texts

from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.models.token_classifier import CocoLMTokenClassifier
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.serving.client import find_version
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("bare_client.py")
TEXTS = [
    *(text if isinstance(text, bytes) else text.encode() for text in ODD_TEXTS),
    *random_texts(40, seed=5),
]
QUESTIONS = [b"Who sat?", b"", b"\xff?", " ".join(WORDS * 2).encode()] * 15

Answers = dict[str, np.ndarray]
Ask = Callable[[str, str], Answers]


@pytest.fixture(scope="module")
def token_ids(tokenizer: CocoLMTokenizer) -> np.ndarray:
    inputs = tokenizer.pack(tokenizer(tf.constant(TEXTS)), sequence_length=MAX_LENGTH)
    return inputs["token_ids"].numpy()


@pytest.fixture(scope="module")
def ask(exports: dict[str, Path], token_ids: np.ndarray, tmp_path_factory: Any) -> Ask:
    """The answers of a separate process to everything that the tests ask."""
    texts, ids = {"texts": TEXTS}, {"token_ids": token_ids.tolist()}
    pair = {"first": TEXTS, "second": TEXTS[::-1]}
    questions = {
        ("pretrained", "embed"): texts,
        ("pretrained", "embed_ids"): ids,
        ("pretrained", "correct_ids"): ids,
        ("pretrained", "correct"): texts,
        ("pretrained", "serving_default"): texts,
        ("classifier", "classify"): texts,
        ("classifier", "classify_pairs"): pair,
        ("classifier", "classify_ids"): ids,
        ("classifier", "classify_examples"): {"inputs": examples(TEXTS, TEXTS[::-1])},
        ("classifier", "embed"): texts,
        ("rater", "classify"): texts,
        ("rater", "classify_pairs"): pair,
        ("rater", "classify_examples"): {"inputs": examples(TEXTS)},
        ("answerer", "answer"): {"questions": QUESTIONS, "contexts": TEXTS},
        ("answerer", "answer_ids"): ids,
        ("tagger", "tag"): texts,
        ("tagger", "tag_tsv"): texts,
        ("tagger", "tag_ids"): ids,
    }
    folder = tmp_path_factory.mktemp("bare")
    asked = [
        (find_version(str(exports[model])), signature, encoded(inputs))
        for (model, signature), inputs in questions.items()
    ]
    (folder / "questions.json").write_text(json.dumps(asked))
    files = [str(folder / f"{name}.json") for name in ("questions", "answers")]
    subprocess.run([sys.executable, str(PROGRAM), *files], check=True, cwd=folder)
    found = dict(zip(questions, json.loads((folder / "answers.json").read_text()), strict=True))
    return lambda model, signature: {
        name: np.array(values) for name, values in found[model, signature].items()
    }


def encoded(inputs: dict[str, Sequence[Any]]) -> dict[str, list]:
    return {
        name: [base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in values]
        for name, values in inputs.items()
    }


def decoded(strings: np.ndarray) -> list[str]:
    return [base64.b64decode(string).decode() for string in strings]


def examples(first: Sequence[bytes], second: Sequence[bytes] | None = None) -> list[bytes]:
    found = []
    for row, text in enumerate(first):
        example = tf.train.Example()
        example.features.feature["first"].bytes_list.value.append(text)
        if second:
            example.features.feature["second"].bytes_list.value.append(second[row])
        found.append(example.SerializeToString())
    return found


@pytest.fixture(scope="module")
def states(pretrainer: CocoLMPretrainer, token_ids: np.ndarray) -> np.ndarray:
    mask = (token_ids != 1).astype(np.int32)
    return pretrainer.backbone({"token_ids": token_ids, "padding_mask": mask}).numpy()


@pytest.mark.parametrize(
    ("model", "signature"),
    [("pretrained", "embed"), ("pretrained", "embed_ids"), ("classifier", "embed")],
)
def test_embed(ask: Ask, states: np.ndarray, model: str, signature: str):
    vectors = states[:, 0] / np.linalg.norm(states[:, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(ask(model, signature)["embeddings"], vectors, atol=1e-5)


def test_correct(
    ask: Ask,
    pretrainer: CocoLMPretrainer,
    tokenizer: CocoLMTokenizer,
    states: np.ndarray,
    token_ids: np.ndarray,
):
    copy_logits = pretrainer.copy_head(states).numpy().astype(np.float64)
    replaced = 1 / (1 + np.exp(copy_logits))
    is_real = token_ids != 1
    by_token = ask("pretrained", "correct_ids")
    np.testing.assert_allclose(by_token["probabilities"], replaced * is_real, atol=1e-5)

    logits = (
        states @ pretrainer.backbone.token_embedding.embeddings.numpy().T
        + pretrainer.lm_head.bias.numpy()
    )
    share = replaced[..., np.newaxis] * tf.nn.softmax(logits).numpy()
    at_ids = np.take_along_axis(share, by_token["correction_ids"], axis=2) * is_real[..., None]
    np.testing.assert_allclose(by_token["correction_probabilities"], at_ids, atol=1e-5)

    by_word = ask("pretrained", "correct")
    starts, ends, words = (
        part.to_list() for part in tokenizer.tokenize_with_offsets(tf.constant(TEXTS))[1:]
    )
    compared = 0
    for row, text in enumerate(TEXTS):
        if len(words[row]) > MAX_LENGTH - 2:
            continue
        expected = []
        for word in dict.fromkeys(words[row]):
            tokens = [t for t, other in enumerate(words[row]) if other == word]
            span = min(starts[row][t] for t in tokens), max(ends[row][t] for t in tokens)
            belongs = np.prod([1 - replaced[row, 1 + t] for t in tokens])
            if span[0] < span[1]:
                expected.append((*span, 1 - belongs))
        count = by_word["num_words"][row]
        assert count == len(expected)
        found = [by_word[name][row, :count] for name in ("starts", "ends", "probabilities")]
        if expected:
            np.testing.assert_allclose(found, np.transpose(expected), atol=1e-5)
        whole = text.decode("utf-8", "replace")
        spans = zip(found[0], found[1], strict=True)
        assert decoded(by_word["words"][row, :count]) == [whole[a:b] for a, b in spans]
        compared += count
    assert compared > 50


def test_the_default_is_the_signature_asked_for(ask: Ask):
    default, correct = ask("pretrained", "serving_default"), ask("pretrained", "correct")
    assert default.keys() == correct.keys()
    for name, values in correct.items():
        np.testing.assert_array_equal(default[name], values)


def test_classify(ask: Ask, classifier: CocoLMTextClassifier):
    expected = tf.nn.softmax(classifier.predict(tf.constant(TEXTS), verbose=0)).numpy()
    # Not all the same.
    assert np.ptp(expected[:, 0]) > 0.05
    for signature in ("classify", "classify_ids"):
        found = ask("classifier", signature)
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
        assert decoded(found["labels"][7]) == ["bad", "neither", "good"]
    pairs = (tf.constant(TEXTS), tf.constant(TEXTS[::-1]))
    expected = tf.nn.softmax(classifier.predict(pairs, verbose=0)).numpy()
    found = ask("classifier", "classify_pairs")
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    found = ask("classifier", "classify_examples")
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    assert decoded(found["classes"][0]) == ["bad", "neither", "good"]


def test_rate(ask: Ask, rater: CocoLMTextClassifier):
    expected = rater.predict(tf.constant(TEXTS), verbose=0)[:, 0]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(ask("rater", "classify")["values"], expected, atol=1e-5)
    np.testing.assert_allclose(ask("rater", "classify_examples")["outputs"], expected, atol=1e-5)
    expected = rater.predict((tf.constant(TEXTS), tf.constant(TEXTS[::-1])), verbose=0)[:, 0]
    np.testing.assert_allclose(ask("rater", "classify_pairs")["values"], expected, atol=1e-5)


def test_answer(ask: Ask, answerer: CocoLMQuestionAnswerer):
    found = ask("answerer", "answer")
    texts = [text.decode("utf-8", "replace") for text in TEXTS]
    questions = [question.decode("utf-8", "replace") for question in QUESTIONS]
    compared = 0
    for row, prediction in enumerate(answerer.predict((questions, texts))):
        if not prediction.candidates:
            assert found["starts"][row] == found["ends"][row] == 0
            assert not found["answerable"][row]
            continue
        if found["truncated"][row] and len(texts[row]) > 100:
            continue
        best = prediction.candidates[0]
        np.testing.assert_allclose(found["scores"][row], best.score, atol=1e-4)
        assert (found["starts"][row], found["ends"][row]) == (best.start, best.end)
        assert decoded(found["answers"][[row]]) == [texts[row][best.start : best.end]]
        odds = found["no_answer_scores"][row] - found["scores"][row]
        np.testing.assert_allclose(odds, prediction.null_odds, atol=1e-4)
        assert found["answerable"][row] == (prediction.answer != "")
        compared += 1
    assert compared > 20
    logits = ask("answerer", "answer_ids")
    assert logits["start_logits"].shape == (len(TEXTS), MAX_LENGTH)


def test_tag(ask: Ask, tagger: CocoLMTokenClassifier, token_ids: np.ndarray):
    texts = [text.decode("utf-8", "replace") for text in TEXTS]
    found, lines = ask("tagger", "tag"), ask("tagger", "tag_tsv")
    assert found["spans"].shape[1] == max(found["num_spans"])
    for row, spans in enumerate(tagger.predict(texts)):
        count = len(spans)
        if found["truncated"][row]:  # of a word that is cut, nothing is said
            continue
        assert found["num_spans"][row] == count
        places = zip(found["starts"][row], found["ends"][row], strict=True)
        labels = decoded(found["labels"][row, :count])
        assert [*places][:count] == [(span.start, span.end) for span in spans]
        assert labels == [span.label for span in spans]
        assert decoded(found["spans"][row, :count]) == [span.text for span in spans]
        np.testing.assert_allclose(
            found["scores"][row, :count], [span.score for span in spans], atol=1e-4
        )
        told = [line.split("\t") for line in decoded(lines["tsv"][[row]])[0].split("\n") if line]
        assert [(int(line[0]), line[2]) for line in told] == [(s.start, s.label) for s in spans]
    mask = (token_ids != 1).astype(np.int32)
    best = np.array(tagger({"token_ids": token_ids, "padding_mask": mask})).argmax(axis=-1)
    tags = np.array(decoded(ask("tagger", "tag_ids")["tags"].ravel())).reshape(token_ids.shape)
    assert (tags == np.where(mask, np.array(tagger.tag_names)[best], "")).mean() > 0.999

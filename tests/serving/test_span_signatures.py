"""What the signatures `tag` and `answer` say is what the Keras models predict."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import ODD_TEXTS, WORDS, random_texts, signatures_of

from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.token_classifier import (
    CocoLMTokenClassifier,
    CocoLMTokenClassifierPreprocessor,
)
from cocolm_tf.serving import signature
from cocolm_tf.serving.signature import dense_rows
from cocolm_tf.serving.span_signatures import Tagger

TEXTS = [text.encode() if isinstance(text, str) else text for text in ODD_TEXTS]
TEXTS += [*random_texts(20, seed=5), b"The cat"]


@pytest.fixture(scope="module")
def signatures(tagger: CocoLMTokenClassifier) -> Tagger:
    return signatures_of(Tagger, tagger)


def ask(function, texts) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in function(tf.constant(texts)).items()}


def spans_of(found: dict[str, np.ndarray], row: int) -> list[tuple]:
    count = found["num_spans"][row]
    places = zip(found["starts"][row], found["ends"][row], found["labels"][row], strict=True)
    return [(start, end, label.decode()) for start, end, label in [*places][:count]]


def test_spans_and_scores_are_the_models(tagger, signatures):
    found, lines = ask(signatures.tag, TEXTS), ask(signatures.tag_tsv, TEXTS)
    texts = [text.decode("utf-8", "replace") for text in TEXTS]
    assert found["num_spans"].sum() > 100
    for row, spans in enumerate(tagger.predict(texts)):
        assert spans_of(found, row) == [tuple(span[:3]) for span in spans]
        scores = found["scores"][row, : len(spans)]
        np.testing.assert_allclose(scores, [span.score for span in spans], atol=1e-4)
        shown = [span.decode() for span in found["spans"][row, : len(spans)]]
        assert shown == [span.text for span in spans]
        told = [line.split("\t") for line in lines["tsv"][row].decode().split("\n") if line]
        assert [(int(t[0]), int(t[1]), t[2]) for t in told] == spans_of(found, row)
        assert all(len(fields) == 5 for fields in told)
    assert not found["truncated"].any()


def test_no_texts_and_no_spans(signatures):
    assert ask(signatures.tag, tf.zeros([0], tf.string))["spans"].shape == (0, 0)
    assert ask(signatures.tag_tsv, ["", "  "])["tsv"].tolist() == [b"", b""]


def test_words_are_not_cut_and_what_is_unread_is_reported(tagger):
    text = "The cat sat on the mat, and the dog didn't like it."
    (ids,) = tagger.preprocessor.tokenizer([text])
    found = ask(signatures_of(Tagger, tagger, max_tokens=len(ids) - 1).tag, [text, "The cat"])
    assert found["truncated"].tolist() == [True, False]
    whole = [tuple(span[:3]) for span in tagger.predict([text])[0]]
    assert all(span[1] < len(text) for span in spans_of(found, 0))
    assert spans_of(found, 0)[:2] == whole[:2]


def test_single_tokens(preset, tagger):
    preprocessor = CocoLMTokenClassifierPreprocessor.from_preset(str(preset), unit="token")
    model = CocoLMTokenClassifier(tagger.backbone, ["X", "Y"], preprocessor, scheme="none")
    model.tag_logits.kernel.assign(np.random.default_rng(0).normal(size=[16, 2]))
    text = "The cats weren't there"
    found = ask(signatures_of(Tagger, model).tag, [text])
    assert spans_of(found, 0) == [tuple(span[:3]) for span in model.predict([text])[0]]
    assert b"".join(found["spans"][0]).decode() == text.replace(" ", "")


def test_tokens_have_tags(tagger, signatures):
    features = tagger.preprocessor(["The cat sat.", "A dog"])
    mask = np.array(features["padding_mask"])
    found = signatures.tag_ids(tf.constant(features["token_ids"]))
    best = np.array(tagger(features)).argmax(axis=-1)
    expected = np.where(mask, np.array(tagger.tag_names)[best], "")
    assert [[tag.decode() for tag in row] for row in found["tags"].numpy()] == expected.tolist()
    assert not found["probabilities"].numpy()[~mask].any()


def test_one_text_with_very_many_spans_makes_no_wide_batch(monkeypatch):
    monkeypatch.setattr(signature, "LONGEST_TEXTS_OF_REQUEST", 1)
    monkeypatch.setattr(signature, "MAX_TOKENS", 1)
    rows = {"spans": tf.ragged.constant([["a"] * 4, ["b"], []])}
    found = dense_rows(rows, 12, "spans", "tag_tsv")
    assert found["spans"].shape == (3, 4) and found["num_spans"].numpy().tolist() == [4, 1, 0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="11 at most.*or tag_tsv; here they"):
        dense_rows(rows, 11, "spans", "tag_tsv")


def test_answers_are_the_models(load: Any, answerer: CocoLMQuestionAnswerer):
    asked = ["Who sat?", "", "\ufffd?", " ".join(WORDS * 2)] * (len(TEXTS) // 4 + 1)
    asked, compared = asked[: len(TEXTS)], 0
    texts = [text.decode("utf-8", "replace") for text in TEXTS]
    found = load("answerer")("answer", questions=asked, contexts=TEXTS)
    for row, prediction in enumerate(answerer.predict((asked, texts))):
        if not prediction.candidates:
            assert found["starts"][row] == found["ends"][row] == 0
            assert not found["answerable"][row]
            continue
        if found["truncated"][row] and len(texts[row]) > 100:
            continue
        best = prediction.candidates[0]
        np.testing.assert_allclose(found["scores"][row], best.score, atol=1e-4)
        assert (found["starts"][row], found["ends"][row]) == (best.start, best.end)
        assert found["answers"][row].decode() == texts[row][best.start : best.end]
        odds = found["no_answer_scores"][row] - found["scores"][row]
        np.testing.assert_allclose(odds, prediction.null_odds, atol=1e-4)
        assert found["answerable"][row] == (prediction.answer != "")
        compared += 1
    assert compared > 20
    as_json = list(load("answerer").answers("answer", questions=asked, contexts=TEXTS))
    assert [one["answers"] for one in as_json] == [text.decode() for text in found["answers"]]
    assert [one["starts"] for one in as_json] == found["starts"].tolist()
    logits = load("answerer")("answer_ids", token_ids=[[0, 7, 2, 2, 8, 2, 1]])
    assert logits["start_logits"].shape == (1, 7)
    assert logits["start_logits"][0, 6] == logits["end_logits"][0, 6] == -1e4

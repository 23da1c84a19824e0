import itertools
import random
import string
import unicodedata
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import ODD_TEXTS, WORDS

from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.serving import signature
from cocolm_tf.serving.client import Export
from cocolm_tf.serving.correction import (
    NOTHING_ID,
    Corrector,
    best_corrections,
    best_spellings,
    replaced_probability,
)
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

COUNT = 3


def correct(corrector: Corrector, texts: list[str]) -> dict[str, np.ndarray]:
    """The answers of `correct`, as arrays."""
    return {name: x.numpy() for name, x in corrector.correct(tf.constant(texts)).items()}


def tokens_of(pretrainer: CocoLMPretrainer, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """p_copy [T] and softmax(LM) [T, V] of a text that fits into the model, in float64."""
    inputs = {
        "token_ids": tf.constant([[0, *ids, 2]]),
        "padding_mask": tf.ones([1, len(ids) + 2], tf.bool),
    }
    states = pretrainer.backbone(inputs)[0, 1:-1].numpy().astype(np.float64)
    matrix = pretrainer.backbone.token_embedding.embeddings.numpy().astype(np.float64)
    logits = states @ matrix.T + pretrainer.lm_head.bias.numpy()
    logits -= logits.max(axis=1, keepdims=True)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    copied = 1 / (1 + np.exp(-states @ pretrainer.copy_head.kernel.numpy()))
    return copied, softmax


class Word(NamedTuple):
    start: int
    end: int
    probability: float
    corrections: list[tuple[str, float]]


class Reference:
    """The paper's distribution for each token, and the best words that tokens make."""

    def __init__(self, pretrainer: CocoLMPretrainer, tokenizer: CocoLMTokenizer) -> None:
        self.pretrainer, self.tokenizer = pretrainer, tokenizer
        self.pieces = tokenizer.get_vocabulary()

    def may_stand(self, id: int, is_first: bool) -> bool:
        piece = self.pieces[id]
        if id in self.tokenizer.special_token_ids:
            return id == NOTHING_ID
        if not is_first:
            return piece[0] != "▁"
        if piece[0] == "▁":
            return piece != "▁"
        is_punctuation = piece[0] in string.punctuation or unicodedata.category(piece[0])[0] == "P"
        return is_punctuation and f"▁{piece}" not in self.pieces

    def content(self, id: int) -> str:
        return "" if id == NOTHING_ID else self.pieces[id].lstrip("▁")

    def words(self, text: str) -> list[Word]:
        ids, starts, ends, numbers = (
            part.numpy().tolist() for part in self.tokenizer.tokenize_with_offsets(text)
        )
        copied, softmax = tokens_of(self.pretrainer, ids)
        words = []
        for _, group in itertools.groupby(range(len(ids)), key=lambda t: numbers[t]):
            tokens = list(group)
            options, own = [], ""
            for t in tokens:
                characters = text[starts[t] : ends[t]]
                spelled = characters if ids[t] == 3 else self.pieces[ids[t]].lstrip("▁")
                own += spelled
                others = [
                    (self.content(id), (1 - copied[t]) * softmax[t, id])
                    for id in range(len(self.pieces))
                    if id != ids[t] and self.may_stand(id, t == tokens[0])
                ]
                itself = copied[t] + (1 - copied[t]) * softmax[t, ids[t]]
                options.append([(spelled, itself), *others])
            belongs = np.prod([copied[t] for t in tokens])
            found = self.best(options, own)
            words.append(Word(starts[tokens[0]], ends[tokens[-1]], 1 - belongs, found))
        return words

    def best(self, options: list[list[tuple[str, float]]], own: str) -> list[tuple[str, float]]:
        """Of the most probable token sequences, what they spell."""
        count = 2 * COUNT + 1
        likely = [sorted(option, key=lambda x: -x[1])[:count] for option in options]
        sequences = [
            ("".join(spelled for spelled, _ in sequence), np.prod([p for _, p in sequence]))
            for sequence in itertools.product(*likely)
        ]
        totals = {}
        for spelled, probability in sorted(sequences, key=lambda x: -x[1])[:count]:
            totals[spelled] = totals.get(spelled, 0.0) + probability
        totals.pop(own, None)
        return sorted(totals.items(), key=lambda x: -x[1])[:COUNT]


TEXTS = [
    "The cat sat.",
    "It's 30.5% (or so)",
    "“The” others",
    "zebra jackals",
    "caté fox",  # é is unknown
    "a",
]


BATCH = [*TEXTS, *ODD_TEXTS, " ".join(random.Random(3).choices(WORDS, k=70))]


@pytest.fixture(scope="module")
def outputs(export: Export) -> dict[str, np.ndarray]:
    return export("correct", texts=BATCH)


@pytest.mark.parametrize("row", range(len(TEXTS)), ids=TEXTS)
def test_words_and_corrections_follow_from_the_papers_distribution(
    outputs: dict[str, np.ndarray],
    pretrainer: CocoLMPretrainer,
    tokenizer: CocoLMTokenizer,
    row: int,
):
    expected, text = Reference(pretrainer, tokenizer).words(TEXTS[row]), TEXTS[row]
    assert outputs["num_words"][row] == len(expected)
    for index, word in enumerate(expected):
        at = (row, index)
        assert (outputs["starts"][at], outputs["ends"][at]) == (word.start, word.end)
        assert outputs["words"][at].decode() == text[word.start : word.end]
        np.testing.assert_allclose(outputs["probabilities"][at], word.probability, rtol=1e-4)
        spelled, shares = zip(*word.corrections, strict=True)
        assert [found.decode() for found in outputs["corrections"][at]] == list(spelled)
        np.testing.assert_allclose(outputs["correction_probabilities"][at], shares, rtol=1e-3)


@pytest.mark.parametrize("row", [0, 4, 9, 12, len(BATCH) - 1])
def test_of_a_batch_each_text_is_what_it_is_alone(export: Export, outputs: dict, row: int):
    alone = export("correct", texts=[BATCH[row]])
    count = int(alone["num_words"][0])
    assert outputs["num_words"][row] == count
    for name in ("probabilities", "correction_probabilities"):
        together = outputs[name][row]
        np.testing.assert_allclose(together[:count], alone[name][0, :count], rtol=1e-3, atol=1e-6)
        assert not together[count:].any()
    for name in ("words", "starts", "ends"):
        np.testing.assert_array_equal(outputs[name][row, :count], alone[name][0, :count])
        assert not outputs[name][row, count:].any()


def test_words_are_the_callers_own_and_corrections_others(outputs: dict[str, np.ndarray]):
    for row, text in enumerate(BATCH):
        text, end = text if isinstance(text, str) else text.decode("utf-8", "replace"), 0
        for index in range(outputs["num_words"][row]):
            start, previous, end = outputs["starts"][row, index], end, outputs["ends"][row, index]
            word, found = outputs["words"][row, index], outputs["corrections"][row, index]
            assert previous <= start < end <= len(text)
            assert word.decode() == text[start:end] and not word.isspace()
            # Whole words, none of them the word itself.
            assert len(set(found)) == COUNT or row >= len(TEXTS)
            assert word not in found
            assert not any(b"\xe2\x96\x81" in option or b" " in option for option in found)
    shares = outputs["correction_probabilities"]
    assert np.all(shares.sum(axis=-1) <= outputs["probabilities"] + 1e-5)
    assert np.all(shares >= 0)


def test_a_text_longer_than_the_model_is_read_to_its_end(outputs: dict[str, np.ndarray]):
    assert b" ".join(outputs["words"][-1, :70]).decode() == BATCH[-1]
    assert outputs["num_words"][-1] == 70 and not outputs["truncated"][-1]
    assert np.all(outputs["probabilities"][-1, :70] > 0)


def test_what_is_longer_than_the_limit_is_cut_between_words(parts: ServedPreset, encoder: Encoder):
    corrector, tokenizer = Corrector(parts, encoder, Settings(max_tokens=10)), parts.tokenizer
    text = "The others weren't there on the mat"
    outputs = correct(corrector, [text, "The cat", "x" * 50])
    assert outputs["truncated"].tolist() == [True, False, True]
    words = [word.decode() for word in outputs["words"][0] if word]
    assert words == text.split()[: len(words)]
    assert len(tokenizer(" ".join(words))) <= 10
    assert len(tokenizer(" ".join(text.split()[: len(words) + 1]))) > 10
    # A word that is too long on its own is none that was read whole.
    assert outputs["num_words"].tolist() == [len(words), 2, 0]
    corrector = Corrector(parts, encoder, Settings(max_bytes=10))
    outputs = correct(corrector, ["the cat cats", "the cat"])
    assert outputs["truncated"].tolist() == [True, False]
    assert outputs["num_words"].tolist() == [2, 2]


def test_only_suspicious_words_get_corrections(
    parts: ServedPreset, encoder: Encoder, outputs: dict[str, np.ndarray]
):
    probabilities = outputs["probabilities"]
    threshold = float(np.median(probabilities[probabilities > 0]))
    settings = Settings(num_corrections=COUNT, max_tokens=300, min_probability=threshold)
    selective = correct(Corrector(parts, encoder, settings), BATCH)
    np.testing.assert_allclose(selective["probabilities"], probabilities, rtol=1e-4, atol=1e-6)
    is_suspicious = selective["probabilities"] >= threshold
    assert 0 < is_suspicious.sum() < is_suspicious.size
    for name in ("corrections", "correction_probabilities"):
        found, expected = selective[name], outputs[name]
        if found.dtype == object:
            assert (found == expected)[is_suspicious].mean() > 0.99
        else:
            np.testing.assert_allclose(found[is_suspicious], expected[is_suspicious], atol=1e-5)
        assert not found[~is_suspicious].any()


def test_ids_get_the_papers_distribution_token_by_token(
    export: Export, pretrainer: CocoLMPretrainer, tokenizer: CocoLMTokenizer
):
    ids = tokenizer("The cat sat on it.").numpy().tolist()
    copied, softmax = tokens_of(pretrainer, ids)
    rows = [[0, *ids, 2, 1, 1], [0, 2, 1, 1] + [1] * len(ids)]
    outputs = export("correct_ids", token_ids=rows)
    own = slice(1, len(ids) + 1)
    np.testing.assert_allclose(outputs["probabilities"][0, own], 1 - copied, rtol=1e-4, atol=1e-6)
    for t, id in enumerate(ids):
        shares = (1 - copied[t]) * softmax[t]
        shares[[id, *(set(tokenizer.special_token_ids) - {NOTHING_ID})]] = 0
        best = np.argsort(-shares)[:COUNT]
        assert outputs["correction_ids"][0, 1 + t].tolist() == best.tolist()
        np.testing.assert_allclose(
            outputs["correction_probabilities"][0, 1 + t], shares[best], rtol=1e-3
        )
    for name in ("probabilities", "correction_ids", "correction_probabilities"):
        assert not outputs[name][0, len(ids) + 2 :].any()
        assert not outputs[name][1, 2:].any()


def test_words_written_in_bytes_stay_text(parts_in_bytes: SimpleNamespace):
    encoder = Encoder(InferenceEncoder(parts_in_bytes.backbone))
    corrector = Corrector(parts_in_bytes, encoder, Settings(num_corrections=COUNT))
    outputs = correct(corrector, ["The 日本cat sat ¿ 😀."])
    words = [word.decode() for word in outputs["words"][0]]
    assert words == ["The", "日本cat", "sat", "¿", "😀", "."]
    found = [[option.decode() for option in row] for row in outputs["corrections"][0]]
    assert all(found[1])
    assert all("日本" in option for option in found[1])
    # A byte is neither put in nor taken out.
    assert not any("<0x" in option or "\ufffd" in option for row in found for option in row)


def test_tsv_says_the_same_and_no_row_is_wider_than_its_text(
    export: Export, outputs: dict[str, np.ndarray]
):
    found = export("correct_tsv", texts=BATCH)
    np.testing.assert_array_equal(found["truncated"], outputs["truncated"])
    for row, tsv in enumerate(found["tsv"]):
        lines = [line.split("\t") for line in tsv.decode().splitlines()]
        assert len(lines) == outputs["num_words"][row]
        for index, (start, end, probability, word, *options) in enumerate(lines):
            at = (row, index)
            assert (int(start), int(end)) == (outputs["starts"][at], outputs["ends"][at])
            assert float(probability) == pytest.approx(outputs["probabilities"][at], abs=1e-4)
            assert word == outputs["words"][at].decode()
            shares = outputs["correction_probabilities"][at]
            shares = shares[shares > 0]
            expected = [x.decode() for x in outputs["corrections"][at][: len(shares)]]
            assert options[::2] == expected
            np.testing.assert_allclose(np.float64(options[1::2]), shares, atol=1e-4)


def test_words_of_very_many_tokens_get_no_corrections(export: Export):
    outputs = export("correct", texts=["the " + "x" * 90 + " cat"])
    assert (outputs["correction_probabilities"][0, :, 0] > 0).tolist() == [True, False, True]
    assert np.all(outputs["probabilities"] > 0)


def test_a_batch_as_wide_as_its_longest_text_is_refused(
    parts: ServedPreset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(signature, "MAX_TOKENS", 20)
    corrector = Corrector(parts, encoder, Settings(max_tokens=20))
    texts = ["a b c d e f g h"] + ["a"] * 200
    with pytest.raises(tf.errors.InvalidArgumentError, match="or correct_tsv"):
        correct(corrector, texts)
    assert len(corrector.correct_tsv(tf.constant(texts))["tsv"]) == 201


def test_a_word_belongs_if_all_of_its_tokens_do():
    logits = np.float32([3.0, -1.0, 0.5, 30.0, 9.0, 2.0])
    words = [0, 0, 0, 1, 2, 2]
    copied = 1 / (1 + np.exp(-np.float64(logits)))
    found = replaced_probability(tf.constant(logits), tf.constant(words), 3)
    expected = [1 - copied[:3].prod(), np.exp(-30.0), 1 - copied[4:].prod()]
    # The second is 1e-13: small probabilities keep their digits.
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_certainty_is_no_nan():
    logits = tf.constant([200.0, -200.0, -1e30, 1e30])
    found = replaced_probability(logits, tf.constant([0, 1, 2, 3]), 4)
    np.testing.assert_array_equal(found, [0, 1, 1, 0])


def test_no_words():
    empty = tf.zeros([0])
    assert replaced_probability(empty, tf.zeros([0], tf.int32), 0).shape == (0,)
    spelled, scores = best_spellings(
        tf.zeros([0, 3], tf.string), tf.zeros([0, 3]), tf.zeros([0], tf.int64), 4
    )
    assert spelled.shape == scores.shape == (0, 4)
    found, probabilities = best_corrections(spelled, scores, tf.zeros([0], tf.string), 2)
    assert found.shape == probabilities.shape == (0, 2)


def brute_force(
    contents: np.ndarray, probabilities: np.ndarray, lengths: list[int]
) -> list[dict[str, float]]:
    """The probability of every spelling of every word, over all sequences of candidates."""
    first, words = 0, []
    for length in lengths:
        totals = {}
        for choice in itertools.product(range(contents.shape[1]), repeat=length):
            rows = range(first, first + length)
            spelled = "".join(contents[row, c] for row, c in zip(rows, choice, strict=True))
            share = np.prod([probabilities[row, c] for row, c in zip(rows, choice, strict=True)])
            totals[spelled] = totals.get(spelled, 0.0) + share
        words.append(totals)
        first += length
    return words


@pytest.mark.parametrize("seed", range(2))
def test_corrections_are_the_best_of_all_sequences(seed: int):
    rng = np.random.default_rng(seed)
    lengths = [1, 3, 2, 1, 4, 1]
    # One spelling for each token: no two sequences spell the same.
    contents = np.array([[f"<{t}.{c}>" for c in range(4)] for t in range(sum(lengths))])
    probabilities = rng.dirichlet(np.ones(4), sum(lengths))
    own = ["".join(contents[t, 0] for t in range(s, s + n)) for s, n in starts(lengths)]
    spelled, scores = best_spellings(
        tf.constant(contents),
        tf.constant(np.log(probabilities), tf.float32),
        tf.constant(lengths, tf.int64),
        width=7,
    )
    found, shares = best_corrections(spelled, scores, tf.constant(own), count=3)
    for word, totals in enumerate(brute_force(contents, probabilities, lengths)):
        del totals[own[word]]
        best = sorted(totals.items(), key=lambda item: -item[1])[:3]
        assert [x.decode() for x in found[word].numpy()] == [spelling for spelling, _ in best]
        np.testing.assert_allclose(shares[word], [share for _, share in best], rtol=1e-4)


def starts(lengths: list[int]) -> list[tuple[int, int]]:
    return list(zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True))


def test_the_same_spelling_counts_together():
    # "the" by two ways, and the word itself, "her", by another one than its own.
    contents = [["he", "t", "th", "h"], ["r", "he", "e", "er"]]
    probabilities = np.array([[0.1, 0.2, 0.25, 0.45], [0.1, 0.4, 0.3, 0.2]])
    spelled, scores = best_spellings(
        tf.constant(contents),
        tf.constant(np.log(probabilities), tf.float32),
        tf.constant([2], tf.int64),
        width=16,
    )
    found, shares = best_corrections(spelled, scores, tf.constant(["her"]), count=3)
    (totals,) = brute_force(np.array(contents), probabilities, [2])
    assert totals["her"] == pytest.approx(0.1 * 0.1 + 0.45 * 0.2)
    del totals["her"]
    best = sorted(totals.items(), key=lambda item: -item[1])[:3]
    assert ("the", pytest.approx(0.2 * 0.4 + 0.25 * 0.3)) in best
    assert sorted(found[0].numpy().tolist()) == sorted(word.encode() for word, _ in best)
    np.testing.assert_allclose(shares[0], [share for _, share in best], rtol=1e-5)


def test_fewer_candidates_than_asked_for():
    log_probabilities = tf.constant([[np.log(0.9), np.log(0.1), -np.inf]], tf.float32)
    spelled, scores = best_spellings(
        tf.constant([["own", "other", "never"]]), log_probabilities, tf.constant([1], tf.int64), 3
    )
    found, shares = best_corrections(spelled, scores, tf.constant(["own"]), count=2)
    assert found.numpy().tolist() == [[b"other", b""]]
    np.testing.assert_allclose(shares, [[0.1, 0.0]], rtol=1e-6)


def test_a_word_may_be_nothing():
    contents = tf.constant([["re", "receive"], ["cie", ""], ["the", ""]])
    log_probabilities = tf.math.log([[0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    spelled, scores = best_spellings(contents, log_probabilities, tf.constant([2, 1], tf.int64), 4)
    found, shares = best_corrections(spelled, scores, tf.constant(["recie", "the"]), count=2)
    assert found.numpy().tolist() == [[b"receive", b"receivecie"], [b"", b""]]
    np.testing.assert_allclose(shares, [[0.72, 0.18], [0.6, 0.0]], rtol=1e-5)

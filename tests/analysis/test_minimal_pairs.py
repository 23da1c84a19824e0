"""The scores of sentences against plain loops over tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tiny_presets import write_tiny_preset

from cocolm_tf.analysis.inputs import MinimalPair, read_minimal_pairs
from cocolm_tf.analysis.minimal_pairs import accuracies, score_sentences, scoring_methods
from cocolm_tf.errors import UserError
from cocolm_tf.training.preset import load_pretrained

SENTENCES = ["the cat sat", "a dog ran to its house when it was cold", "on a mat outside", "it"]


def states(pretrainer, ids: list[int]) -> np.ndarray:
    row = tf.constant([ids])
    return pretrainer.backbone({"token_ids": row, "padding_mask": tf.ones_like(row)})[0]


def test_the_pseudo_log_likelihood_is_that_of_a_loop(loaded):
    pretrainer, tokenizer = loaded
    scores = score_sentences(pretrainer, tokenizer, SENTENCES, "masked", tokens_at_once=40)
    for sentence, score in zip(SENTENCES, scores, strict=True):
        ids, total = [0, *tokenizer(sentence).numpy().tolist(), 2], 0.0
        for place in range(1, len(ids) - 1):
            masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
            logits = pretrainer.lm_head(states(pretrainer, masked)[place : place + 1])[0].numpy()
            total += logits[ids[place]] - np.log(np.sum(np.exp(logits)))
        assert score == pytest.approx(total, abs=1e-3)


def test_the_other_scores_are_those_of_a_loop(loaded):
    pretrainer, tokenizer = loaded
    corrective = score_sentences(pretrainer, tokenizer, SENTENCES, "corrective", tokens_at_once=20)
    detection = score_sentences(pretrainer, tokenizer, SENTENCES, "detection", tokens_at_once=1)
    for number, sentence in enumerate(SENTENCES):
        ids = [0, *tokenizer(sentence).numpy().tolist(), 2]
        hidden = states(pretrainer, ids)
        copied = 1 / (1 + np.exp(-pretrainer.copy_head(hidden).numpy()))
        logits = pretrainer.lm_head(hidden).numpy()
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        places = range(1, len(ids) - 1)
        either = [copied[i] + (1 - copied[i]) * p[i, ids[i]] for i in places]
        assert corrective[number] == pytest.approx(np.sum(np.log(either)), abs=1e-3)
        assert detection[number] == pytest.approx(np.sum(np.log(copied[1:-1])), abs=1e-3)


def test_masked_language_models_score_with_the_head_that_they_have(tmp_path: Path):
    pretrainer, tokenizer = load_pretrained(write_tiny_preset(tmp_path, name="masked_lm"))
    assert list(scoring_methods(pretrainer)) == ["masked"]
    (score,) = score_sentences(pretrainer, tokenizer, ["a cat saw the house"], "masked")
    ids, total = [0, *tokenizer("a cat saw the house").numpy().tolist(), 2], 0.0
    for place in range(1, len(ids) - 1):
        row = tf.constant([[*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]])
        inputs = {"token_ids": row, "padding_mask": tf.ones_like(row)}
        logits = pretrainer.model(inputs, positions=tf.constant([[place]]))[0].numpy()
        total += logits[ids[place]] - np.log(np.sum(np.exp(logits)))
    assert score == pytest.approx(total, abs=1e-3)


def test_a_preset_scores_as_its_heads_allow(loaded):
    pretrainer, _ = loaded
    assert list(scoring_methods(pretrainer)) == ["masked", "corrective", "detection"]


@pytest.mark.parametrize("sentence", ["", "the cat sat on a mat " * 9])
def test_a_sentence_that_cannot_be_read_is_named(loaded, sentence: str):
    with pytest.raises(UserError, match="the model reads 1 to 22"):
        score_sentences(*loaded, ["the cat", sentence], "detection")


def test_accuracies_by_category():
    pairs = [MinimalPair("a", "b", category) for category in ("x", "x", "y", "y")]
    good, bad = np.array([1.0, 1.0, 0.0, 2.0]), np.array([0.0, 2.0, 0.0, 1.0])
    assert accuracies(pairs, {"masked": (good, bad)}) == {
        "all": {"masked": pytest.approx(2.5 / 4)},
        "x": {"masked": 0.5},
        "y": {"masked": 0.75},
    }


def test_pairs_as_blimp_has_them(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"sentence_good": "a", "sentence_bad": "b", "linguistics_term": "binding", "UID": "one"},
        {"sentence_good": "c", "sentence_bad": "d", "category": "mine"},
        {"sentence_good": "e", "sentence_bad": "f"},
        {"sentence_good": "g", "sentence_bad": "h", "category": "all"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_minimal_pairs(str(path)) == [
        MinimalPair("a", "b", "binding"),
        MinimalPair("c", "d", "mine"),
        MinimalPair("e", "f", "all"),
        MinimalPair("g", "h", "all (category)"),
    ]


def test_a_glob_reads_all_its_files(tmp_path: Path):
    for name in ("b", "a"):
        row = {"sentence_good": name, "sentence_bad": "x", "UID": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    pairs = read_minimal_pairs(str(tmp_path / "*.jsonl"))
    assert [pair.category for pair in pairs] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no rows"),
        (b"nonsense\n", ":1 is not JSON"),
        (b"[1]\n", ":1 is not a JSON object"),
        (b'{"sentence_good": "a", "sentence_bad": " "}\n', ":1 has no sentence_bad"),
        (b'{"sentence_good": "\xff"}\n', ":1 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, complaint: str):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_minimal_pairs(str(path))
    with pytest.raises(UserError, match="no file matches"):
        read_minimal_pairs(str(path) + "l")

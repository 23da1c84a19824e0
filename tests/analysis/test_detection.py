"""The measures by hand, and the reading of shards against a loop."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.analysis.detection import UNKNOWN, Detections, align, detect, detect_in_texts
from cocolm_tf.analysis.inputs import CorruptedText
from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.preset import load_pretrained

TEXT = "the cat sat on a mat and dog ran to its house when it was cold outside again "


def detections(
    probabilities: np.ndarray, is_replaced: np.ndarray, rank: int = -1, frequency_rank: int = 0
) -> Detections:
    columns = {"probability": probabilities, "is_replaced": is_replaced}
    return Detections(pd.DataFrame(columns).assign(rank=rank, frequency_rank=frequency_rank))


def test_measures_by_hand(found: Detections):
    measures = found.measures()
    assert measures["precision"] == pytest.approx(2 / 3)
    assert measures["recall"] == pytest.approx(2 / 3)
    assert measures["f1"] == pytest.approx(2 / 3)
    assert measures["replaced_share"] == pytest.approx(0.5)
    # 1 of 1, then 2 of 3 at 0.75, then 3 of 4 at 0.25.
    assert measures["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # Ranges: 0.0 (two, 0 of them), 0.2 (one, 1), 0.7 (two, a half), 0.9 (one, 1).
    gaps = 2 * 0.05 + 1 * 0.75 + 2 * 0.25 + 1 * 0.05
    assert measures["calibration_error"] == pytest.approx(gaps / 6)
    assert measures["corrected_at_1"] == pytest.approx(1 / 3)
    assert measures["corrected_at_5"] == pytest.approx(2 / 3)


def test_measures_by_the_frequency_of_the_original(found: Detections):
    measures = found.by_frequency()
    # Of the three frequent tokens two are flagged, one of them rightly.
    assert measures["frequent"]["precision"] == 0.5 and measures["frequent"]["recall"] == 1
    assert measures["frequent"]["corrected_at_1"] == 1
    assert (measures["common"]["corrected_at_1"], measures["common"]["corrected_at_5"]) == (0, 1)
    assert (measures["rare"]["recall"], measures["rare"]["corrected_at_5"]) == (0, 0)
    assert found.measures()["recall_rare"] == 0
    frequent = detections(np.ones(1), np.ones(1, bool), rank=0)
    assert list(frequent.by_frequency()) == ["frequent"]


def test_the_measures_are_those_of_plain_counts():
    generator = np.random.default_rng(0)
    truth = generator.random(500) < 0.2
    said = np.clip(0.6 * truth + generator.random(500) * 0.6, 0, 1)
    found = detections(said, truth).measures()
    flagged = said > 0.5
    assert found["precision"] == pytest.approx((flagged & truth).sum() / flagged.sum())
    assert found["recall"] == pytest.approx((flagged & truth).sum() / truth.sum())
    order = np.argsort(-said)
    hits = np.cumsum(truth[order])
    precisions = hits / np.arange(1, 501)
    assert found["average_precision"] == pytest.approx(precisions[truth[order]].mean())


def test_a_perfect_head_is_calibrated():
    truth = np.array([True, False, True])
    found = detections(truth.astype(float), truth).measures()
    assert (found["f1"], found["average_precision"], found["calibration_error"]) == (1, 1, 0)
    assert "corrected_at_1" not in found


def test_nothing_replaced_is_no_failure():
    found = detections(np.zeros(3), np.zeros(3, bool)).measures()
    assert (found["precision"], found["recall"], found["replaced_share"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def data(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards") / "data"
    build_shards([TEXT * 3] * 8, str(preset), 24, 2, 0, str(folder))
    return str(folder)


@pytest.mark.parametrize("corruption", ["auxiliary", "random"])
def test_every_token_that_can_be_masked_is_scored(loaded, data: str, corruption: str):
    tokens = detect(*loaded, data, corruption, batches=2, batch_size=3).tokens
    # All 24 positions are filled, <s> and </s> among them.
    assert len(tokens) <= 2 * 3 * 22
    assert np.all((tokens["probability"] >= 0) & (tokens["probability"] <= 1))
    # About 15% are masked, and most of these get another token.
    assert 0.02 < tokens["is_replaced"].mean() < 0.3
    assert np.array_equal(tokens["rank"] >= 0, tokens["is_replaced"])
    assert tokens["rank"].max() < loaded[1].vocabulary_size()
    if corruption == "random":
        again = detect(*loaded, data, corruption, batches=2, batch_size=3).tokens
        pd.testing.assert_frame_equal(again, tokens)


def test_a_head_that_knows_nothing_says_a_half_and_what_is_missing_is_named(
    preset: Path, data: str, tmp_path: Path
):
    pretrainer, tokenizer = load_pretrained(str(preset))
    pretrainer.copy_head.kernel.assign(0 * pretrainer.copy_head.kernel)
    found = detect(pretrainer, tokenizer, data, "random", batches=1, batch_size=4)
    assert found.tokens["probability"].to_numpy() == pytest.approx(0.5)

    train_vocabulary([TEXT * 9], 60, tmp_path / "other")
    build_shards([TEXT * 3] * 2, str(tmp_path / "other"), 24, 1, 0, str(tmp_path / "odd"))
    with pytest.raises(UserError, match="built with another vocabulary"):
        detect(pretrainer, tokenizer, str(tmp_path / "odd"))
    pretrainer.auxiliary = None
    with pytest.raises(UserError, match="has no auxiliary model"):
        detect(pretrainer, tokenizer, data)
    pretrainer.copy_head = None
    with pytest.raises(UserError, match="has no copy head"):
        detect(pretrainer, tokenizer, data, "random")


def test_texts_are_read_as_by_a_loop(loaded):
    pretrainer, tokenizer = loaded
    texts = [
        CorruptedText("the cat sat on a mat", "the cat ran on a mat"),
        CorruptedText("it was cold outside", "it was cold cold outside"),
    ]
    found = detect_in_texts(pretrainer, tokenizer, texts, batch_size=2)
    said, ranks = [], []
    for text in texts:
        ids = [0, *tokenizer(text.corrupted).numpy().tolist(), 2]
        row = tf.constant([ids])
        hidden = pretrainer.backbone({"token_ids": row, "padding_mask": tf.ones_like(row)})
        said += (1 / (1 + np.exp(pretrainer.copy_head(hidden)[0].numpy()))).tolist()[1:-1]
        ranks.append(pretrainer.lm_head(hidden[0]).numpy())
    assert found.tokens["probability"].tolist() == pytest.approx(said, abs=1e-5)
    sat, third = tokenizer("sat").numpy()[0], 2  # after the, cat
    length = len(tokenizer(texts[0].corrupted))
    # The word put in for another one, and one that was only put in.
    assert found.tokens["is_replaced"].sum() == 2
    assert found.tokens["is_replaced"][third] and found.tokens["is_replaced"][length:].sum() == 1
    logits = ranks[0][third + 1]  # after <s>
    assert found.tokens["rank"][third] == (logits > logits[sat]).sum()
    assert (found.tokens["rank"] >= 0).sum() == 1


def test_a_long_text_is_read_as_far_as_it_goes(loaded):
    text = CorruptedText("the cat sat on a mat " * 9, "the cat sat on a dog " * 9)
    found = detect_in_texts(*loaded, [text])
    assert len(found.tokens) == 22
    assert found.tokens["is_replaced"].sum() == 3


IDS = st.lists(st.integers(0, 4), max_size=12)


@pytest.mark.parametrize(
    ("original", "corrupted", "is_replaced", "originals"),
    [
        ([5, 6, 7], [5, 6, 7], [0, 0, 0], [5, 6, 7]),
        ([5, 6, 7], [5, 9, 7], [0, 1, 0], [5, 6, 7]),
        ([5, 6, 7], [5, 6, 9, 7], [0, 0, 1, 0], [5, 6, UNKNOWN, 7]),
        ([5, 6, 7], [5, 7], [0, 0], [5, 7]),
        ([5, 6, 7], [5, 8, 9, 7], [0, 1, 1, 0], [5, UNKNOWN, UNKNOWN, 7]),
        ([], [5], [1], [UNKNOWN]),
    ],
)
def test_tokens_that_were_put_in_are_found(original, corrupted, is_replaced, originals):
    found, stood = align(original, corrupted)
    assert found.tolist() == list(map(bool, is_replaced))
    assert stood.tolist() == originals


@settings(max_examples=50)
@given(IDS, IDS)
def test_what_was_not_put_in_stands_in_the_original_in_its_order(original, corrupted):
    is_replaced, originals = align(original, corrupted)
    kept = [token for token, replaced in zip(corrupted, is_replaced, strict=True) if not replaced]
    rest = iter(original)
    assert all(token in rest for token in kept)
    assert originals[~is_replaced].tolist() == kept
    changed = originals[is_replaced] != [
        t for t, r in zip(corrupted, is_replaced, strict=True) if r
    ]
    assert all(changed)

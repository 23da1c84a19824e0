"""The measures by hand, and the reading of shards against a loop."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from matplotlib import pyplot as plt

from cocolm_tf.analysis.charts import draw_by_frequency, draw_calibration
from cocolm_tf.analysis.detection import Detections, detect, detect_in_texts
from cocolm_tf.analysis.inputs import CorruptedText
from cocolm_tf.analysis.presets import load_pretrained
from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary

TEXT = "the cat sat on a mat and dog ran to its house when it was cold outside again "
FOUND = Detections(
    probabilities=np.array([0.95, 0.75, 0.75, 0.25, 0.05, 0.05]),
    is_replaced=np.array([True, True, False, True, False, False]),
    ranks=np.array([0, 4, -1, 5, -1, -1]),
    frequency_ranks=np.array([0, 100, 99, 1000, 999, 1]),
)


def test_measures_by_hand():
    measures = FOUND.measures()
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


def test_measures_by_the_frequency_of_the_original():
    measures = FOUND.by_frequency()
    # Of the three frequent tokens two are flagged, one of them rightly.
    assert measures["frequent"]["precision"] == 0.5 and measures["frequent"]["recall"] == 1
    assert measures["frequent"]["corrected_at_1"] == 1
    assert (measures["common"]["corrected_at_1"], measures["common"]["corrected_at_5"]) == (0, 1)
    assert (measures["rare"]["recall"], measures["rare"]["corrected_at_5"]) == (0, 0)
    assert FOUND.measures()["recall_rare"] == 0
    frequent = Detections(np.ones(1), np.ones(1, bool), np.zeros(1, int), np.zeros(1, int))
    assert list(frequent.by_frequency()) == ["frequent"]


def test_the_measures_are_those_of_plain_counts():
    generator = np.random.default_rng(0)
    truth = generator.random(500) < 0.2
    said = np.clip(0.6 * truth + generator.random(500) * 0.6, 0, 1)
    found = Detections(said, truth, np.full(500, -1), np.zeros(500, int)).measures()
    flagged = said > 0.5
    assert found["precision"] == pytest.approx((flagged & truth).sum() / flagged.sum())
    assert found["recall"] == pytest.approx((flagged & truth).sum() / truth.sum())
    order = np.argsort(-said)
    hits = np.cumsum(truth[order])
    precisions = hits / np.arange(1, 501)
    assert found["average_precision"] == pytest.approx(precisions[truth[order]].mean())


def test_a_perfect_head_is_calibrated():
    truth = np.array([True, False, True])
    none = np.full(3, -1)
    found = Detections(truth.astype(float), truth, none, np.zeros(3, int)).measures()
    assert (found["f1"], found["average_precision"], found["calibration_error"]) == (1, 1, 0)
    assert "corrected_at_1" not in found


def test_nothing_replaced_is_no_failure():
    none = np.zeros(3, bool)
    found = Detections(np.zeros(3), none, np.full(3, -1), np.zeros(3, int)).measures()
    assert (found["precision"], found["recall"], found["replaced_share"]) == (0, 0, 0)


@pytest.fixture
def data(preset: Path, tmp_path: Path) -> str:
    build_shards([TEXT * 3] * 8, str(preset), 24, 2, 0, str(tmp_path / "data"))
    return str(tmp_path / "data")


@pytest.mark.parametrize("corruption", ["auxiliary", "random"])
def test_every_token_that_can_be_masked_is_judged(preset: Path, data: str, corruption: str):
    loaded = load_pretrained(str(preset))
    found = detect(*loaded, data, corruption, batches=2, batch_size=3)
    # All 24 positions are filled, <s> and </s> among them.
    assert len(found.probabilities) == len(found.is_replaced) <= 2 * 3 * 22
    assert np.all((found.probabilities >= 0) & (found.probabilities <= 1))
    # About 15% are masked, and most of these get another token.
    assert 0.02 < found.is_replaced.mean() < 0.3
    assert np.array_equal(found.ranks >= 0, found.is_replaced)
    assert found.ranks.max() < loaded[1].vocabulary_size()
    again = detect(*loaded, data, corruption, batches=2, batch_size=3)
    assert np.array_equal(again.probabilities, found.probabilities)


def test_a_head_that_knows_nothing_says_a_half(preset: Path, data: str):
    pretrainer, tokenizer = load_pretrained(str(preset))
    pretrainer.copy_head.kernel.assign(0 * pretrainer.copy_head.kernel)
    found = detect(pretrainer, tokenizer, data, batches=1, batch_size=4)
    assert found.probabilities == pytest.approx(0.5)


def test_what_is_missing_is_named(preset: Path, data: str, tmp_path: Path):
    pretrainer, tokenizer = load_pretrained(str(preset))
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


def test_texts_are_read_as_by_a_loop(preset: Path):
    pretrainer, tokenizer = load_pretrained(str(preset))
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
    assert found.probabilities == pytest.approx(said, abs=1e-5)
    sat, third = tokenizer("sat").numpy()[0], 2  # after the, cat
    length = len(tokenizer(texts[0].corrupted))
    # The word put in for another one, and one that was only put in.
    assert found.is_replaced.sum() == 2
    assert found.is_replaced[third] and found.is_replaced[length:].sum() == 1
    logits = ranks[0][third + 1]  # after <s>
    assert found.ranks[third] == (logits > logits[sat]).sum()
    assert (found.ranks >= 0).sum() == 1


def test_a_long_text_is_read_as_far_as_it_goes(preset: Path):
    text = CorruptedText("the cat sat on a mat " * 9, "the cat sat on a dog " * 9)
    found = detect_in_texts(*load_pretrained(str(preset)), [text])
    assert len(found.probabilities) == 22
    assert found.is_replaced.sum() == 3


def test_the_diagram_shows_each_range():
    figure = draw_calibration({"one": FOUND, "two": FOUND})
    for axes in figure.axes:
        _, curve = axes.lines
        assert curve.get_xdata() == pytest.approx([0.05, 0.25, 0.75, 0.95])
        assert curve.get_ydata() == pytest.approx([0, 1, 0.5, 1])
        # Of two, one, two tokens and one: by their areas.
        assert axes.collections[0].get_sizes() == pytest.approx([160, 80, 160, 80])
    plt.close(figure)


def test_a_bar_stands_for_each_band_and_preset():
    figure = draw_by_frequency({"one": FOUND.by_frequency(), "two": {}})
    recall, corrected, _ = figure.axes
    assert [bar.get_height() for bar in recall.containers[0]] == [1, 1, 0]
    assert [bar.get_height() for bar in corrected.containers[0]] == [1, 0, 0]
    assert len(recall.containers) == 2
    figure.canvas.draw()
    plt.close(figure)

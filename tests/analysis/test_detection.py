"""The measures by hand, and the reading of shards against a loop."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.calibration import draw_calibration
from cocolm_tf.analysis.detection import Detections, detect
from cocolm_tf.analysis.pretrained import load_pretrained
from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary

TEXT = "the cat sat on a mat and dog ran to its house when it was cold outside again "
FOUND = Detections(
    probabilities=np.array([0.95, 0.75, 0.75, 0.25, 0.05, 0.05]),
    is_replaced=np.array([True, True, False, True, False, False]),
    ranks=np.array([0, 4, 5, 0]),
    frequency_ranks=np.array([0, 100, 999, 1000]),
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
    assert (measures["corrected_at_1"], measures["corrected_at_5"]) == (0.5, 0.75)
    assert measures["corrected_at_1_frequent"] == 1
    assert measures["corrected_at_1_common"] == 0
    assert measures["corrected_at_1_rare"] == 1


def test_a_perfect_head_is_calibrated():
    truth = np.array([True, False, True])
    found = Detections(truth.astype(float), truth, np.zeros(0), np.zeros(0, int)).measures()
    assert (found["f1"], found["average_precision"], found["calibration_error"]) == (1, 1, 0)
    assert "corrected_at_1" not in found


def test_nothing_replaced_is_no_failure():
    none = np.zeros(3, bool)
    found = Detections(np.zeros(3), none, np.zeros(0), np.zeros(0, int)).measures()
    assert (found["precision"], found["recall"], found["replaced_share"]) == (0, 0, 0)


@pytest.fixture
def data(preset: Path, tmp_path: Path) -> str:
    build_shards([TEXT * 3] * 8, str(preset), 24, 2, 0, str(tmp_path / "data"))
    return str(tmp_path / "data")


@pytest.mark.parametrize("corruption", ["auxiliary", "random"])
def test_every_real_token_is_judged(preset: Path, data: str, corruption: str):
    loaded = load_pretrained(str(preset))
    found = detect(*loaded, data, corruption, batches=2, batch_size=3)
    assert len(found.probabilities) == len(found.is_replaced) <= 2 * 3 * 24
    assert np.all((found.probabilities >= 0) & (found.probabilities <= 1))
    # About 15% are masked, and most of these get another token.
    assert 0.02 < found.is_replaced.mean() < 0.3
    assert len(found.ranks) == len(found.frequency_ranks) == found.is_replaced.sum()
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


def test_the_diagram_shows_each_range():
    figure = draw_calibration({"one": FOUND, "two": FOUND})
    for axes in figure.axes:
        _, curve = axes.lines
        assert curve.get_xdata() == pytest.approx([0.05, 0.25, 0.75, 0.95])
        assert curve.get_ydata() == pytest.approx([0, 1, 0.5, 1])
    plt.close(figure)

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.analysis.metrics_log import Metrics, read_metrics
from cocolm_tf.errors import UserError


def metrics_of(train: list[dict], validation: list[dict] | None = None) -> Metrics:
    return Metrics({"train": train, "validation": validation or []})


def test_it_reads_series_by_split(model_dir: Path):
    metrics = read_metrics(str(model_dir))
    assert metrics.series("train", "learning_rate") == ([10, 20, 30, 40], [0.25] * 4)
    assert metrics.series("validation", "loss") == ([20, 40], [0.55, 0.525])
    assert metrics.series("validation", "learning_rate") == ([], [])
    assert metrics.last_step == 40


def test_the_line_being_written_is_left_out(model_dir: Path):
    with open(model_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "split": "train", "lo')
    assert read_metrics(str(model_dir)).last_step == 40


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has no lines yet"),
        ('{"step": 1, "spl', "has no lines yet"),
        ("{}\n", "line 1"),
        ('{"step": 1, "split": "train"}\nnonsense\n', "line 2"),
        ('{"step": 1, "split": "test"}\n', "line 1"),
        ('{"step": "x", "split": "train"}\n', "line 1"),
        ("[1]\n", "line 1"),
    ],
)
def test_a_broken_log_is_named(tmp_path: Path, content: str, complaint: str):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_metrics(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_a_log_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        read_metrics(str(tmp_path))


def test_not_a_number_is_read(tmp_path: Path):
    line = {"step": 1, "split": "train", "seconds": 1.0, "loss": float("nan")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert np.isnan(read_metrics(str(tmp_path)).series("train", "loss")[1][0])


@given(attempts=st.lists(st.lists(st.floats(0, 1e4), min_size=1, max_size=4), min_size=1))
def test_the_time_of_a_run_is_that_of_its_attempts(attempts: list[list[float]]):
    attempts = [sorted(attempt) for attempt in attempts]
    # An attempt shows as one only where its clock is behind the last one's.
    for before, after in reversed(list(itertools.pairwise(attempts))):
        before[-1] = max(before[-1], after[0] + 1)
    seconds = [second for attempt in attempts for second in attempt]
    lines = [{"step": step, "seconds": second} for step, second in enumerate(seconds)]
    expected = sum(attempt[-1] for attempt in attempts)
    assert metrics_of(lines).seconds == pytest.approx(expected)


def test_the_final_line_is_a_validation_if_there_is_one():
    train, validation = [{"step": 9, "loss": 1.0}], [{"step": 8, "loss": 2.0}]
    assert metrics_of(train, validation).final() == ("validation", validation[0])
    assert metrics_of(train).final() == ("train", train[0])

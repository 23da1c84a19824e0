"""The logs of runs, the axes of their curves, and what runs do on held-out text."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.analysis.runs import (
    X_AXES,
    Run,
    elapsed_seconds,
    measure_run,
    read_metrics,
    read_run,
)
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.config import PretrainingConfig

TEXTS = [
    "the cat sat on a mat and dog ran to its house",
    "it was cold outside again when the dog sat on its mat and the cat ran",
    "a dog and a cat ran outside to the cold house again and again when it was on",
]


def log_of(*seconds: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": range(len(seconds)), "split": "train", "seconds": np.array(seconds, float)}
    )


def test_a_log_is_read_by_split_and_step(model_dir: Path):
    with open(model_dir / "metrics.jsonl", "a") as file:
        # null stands for what was not finite; the last line is being written.
        file.write('{"step": 25, "split": "train", "seconds": 2.5, "loss": null, "a": NaN}\n')
        file.write('{"step": 50, "split": "train", "lo')
    run = read_run("one", str(model_dir))
    assert run.log["step"].is_monotonic_increasing and run.log["step"].max() == 40
    rates = run.series("train", "learning_rate")
    assert (rates.index.tolist(), rates.tolist()) == ([10, 20, 30, 40], [0.25] * 4)
    losses = run.series("validation", "loss", "hours")
    assert losses.tolist() == [0.55, 0.525]
    assert losses.index.tolist() == pytest.approx([2 / 3600, 4 / 3600])
    assert run.series("train", "loss").index.tolist() == [10, 20, 30, 40]
    for missing in (run.series("validation", "learning_rate"), run.series("train", "none")):
        assert missing.empty
    final = run.final()
    assert (final["split"], final["step"], final["loss"]) == ("validation", 40, 0.525)
    assert "learning_rate" not in final and json.dumps(final)
    lines = [line for line in run.log.to_dict("records") if line["split"] == "train"]
    assert Run("two", pd.DataFrame(lines), run.config).final()["split"] == "train"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"has no metrics\.jsonl"),
        ("", "has no lines yet"),
        ('{"step": 1, "spl', "has no lines yet"),
        ("{}\n", "line 1"),
        ('{"step": 1, "split": "train"}\nnonsense\n', "line 2"),
        ('{"step": 1, "split": "test"}\n', "line 1"),
        ('{"step": "x", "split": "train"}\n', "line 1"),
        ('{"step": 1, "split": "train", "loss": "high"}\n', "line 1"),
        ("[1]\n", "line 1"),
    ],
)
def test_a_broken_log_is_named(tmp_path: Path, content: str | None, complaint: str):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_metrics(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@settings(max_examples=30)
@given(attempts=st.lists(st.lists(st.floats(0, 1e4), min_size=1, max_size=4), min_size=1))
def test_the_time_of_a_run_is_that_of_its_attempts(attempts: list[list[float]]):
    attempts = [sorted(attempt) for attempt in attempts]
    # An attempt shows as one only where its clock is behind the last one's.
    for before, after in reversed(list(itertools.pairwise(attempts))):
        before[-1] = max(before[-1], after[0] + 1)
    log = log_of(*(second for attempt in attempts for second in attempt))
    assert elapsed_seconds(log).max() == pytest.approx(sum(attempt[-1] for attempt in attempts))


def test_axes_count_what_they_say(config: PretrainingConfig):
    run = Run("one", log_of(0, 10, 4, 5), config)  # the third line is another attempt's first
    flops = sum(pretraining_flops(config).values())
    tokens = 4 * 24
    expected = {
        "steps": [0, 1, 2, 3],
        "tokens": [0, tokens, 2 * tokens, 3 * tokens],
        "flops": [0, flops, 2 * flops, 3 * flops],
        "hours": [0, 10 / 3600, 14 / 3600, 15 / 3600],
    }
    assert list(expected) == list(X_AXES)
    for x_axis, places in expected.items():
        assert run.positions(x_axis).tolist() == pytest.approx(places)
        assert run.at(2, x_axis) == pytest.approx(places[2])
    two = Run("two", log_of(0, 10, 20)[::2], config)
    assert two.at(1, "hours") == pytest.approx(10 / 3600)  # between two lines of the log


def test_what_is_no_run_or_unfinished_is_named(model_dir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="has no preset yet"):
        measure_run(str(model_dir), str(tmp_path / "data"))
    (model_dir / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        read_run("one", str(model_dir))


def shards(vocabulary: Path, folder: Path) -> str:
    build_shards(TEXTS * 4, str(vocabulary), 16, 2, 0, str(folder))
    return str(folder)


def test_a_run_is_measured_on_shards_of_its_vocabulary(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    measures = measure_run(str(finished_run), data, batches=2, batch_size=2)
    logged = {"mlm_loss", "copy_loss", "lm_loss", "scl_loss", "positive_cosine", "negative_cosine"}
    assert logged <= set(measures)
    assert all(np.isfinite(list(measures.values())))
    assert -1 <= measures["negative_cosine"] <= 1
    # The same data and masks every time. Cosines without contrastive learning, too.
    config = finished_run / "config.yaml"
    config.write_text(config.read_text().replace("scl_weight: 1.0", "scl_weight: 0.0"))
    without = measure_run(str(finished_run), data, batches=2, batch_size=2)
    assert without["mlm_loss"] == pytest.approx(measures["mlm_loss"], rel=1e-5)
    assert {"positive_cosine", "negative_cosine"} <= set(without)
    assert without["positive_cosine"] != measures["positive_cosine"]


def test_shards_of_another_vocabulary_are_named(finished_run: Path, tmp_path: Path):
    train_vocabulary([" ".join(TEXTS) * 9], 60, tmp_path / "other")
    data = shards(tmp_path / "other", tmp_path / "data")
    with pytest.raises(UserError, match=r"--data=.* was built with another vocabulary than .*run"):
        measure_run(str(finished_run), data)
    shutil.rmtree(finished_run / "preset")
    with pytest.raises(UserError, match="has no preset yet"):
        measure_run(str(finished_run), data)

import contextlib
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training import monitoring as module
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.checkpoints import variable_paths
from cocolm_tf.training.monitoring import (
    METRICS_FILENAME,
    MetricsLog,
    Profile,
    ProgressBar,
    print_skipped_update,
)
from cocolm_tf.training.optimization import AdamW


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands in for `time`, and passes when told to."""
    clock = types.SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_FILENAME).read_text().splitlines()]


def log_of(folder: Path, step: int = 0) -> MetricsLog:
    return MetricsLog(str(folder), step, tokens=lambda step: 100 * step)


LOSS = {"loss": tf.constant(0.5)}


def test_a_training_line_has_the_metrics_the_clock_and_the_throughput(tmp_path: Path, clock):
    log = log_of(tmp_path)
    for step in (2, 4):
        clock.now += 4
        log.write_training(step, LOSS)
    first, second = lines(tmp_path)
    assert first == {
        "step": 2,
        "split": "train",
        "seconds": 4.0,
        "loss": 0.5,
        "tokens_per_second": 2 * 100 / 4,
    }
    assert (second["step"], second["seconds"]) == (4, 8.0)


def test_training_lines_have_the_share_of_a_known_peak(tmp_path: Path, clock):
    log = MetricsLog(
        str(tmp_path), 0, tokens=lambda step: 100 * step, peak_seconds=lambda step: step / 2
    )
    clock.now += 4
    log.write_training(2, LOSS)
    log.write_validation(2, {"loss": 2.0})
    training, validation = lines(tmp_path)
    assert (training["tokens_per_second"], training["mfu"]) == (50, 0.25)
    assert "mfu" not in validation
    (events,) = (tmp_path / "tensorboard" / "train").iterdir()
    summaries = tf.compat.v1.train.summary_iterator(str(events))
    assert "mfu" in {value.tag for event in summaries for value in event.summary.value}


def test_validation_time_is_not_training_time(tmp_path: Path, clock):
    log = log_of(tmp_path)
    clock.now += 1005
    log.write_validation(3, {"loss": tf.constant(2.0)})
    clock.now += 10
    log.write_training(4, LOSS)
    validation, training = lines(tmp_path)
    assert (validation["step"], validation["split"], validation["loss"]) == (3, "validation", 2.0)
    assert training["tokens_per_second"] == 100 / 10, "one step since the validation"


def test_the_clock_of_a_resumed_run_continues(tmp_path: Path, clock):
    """From the last line, also from one that the resumed run goes back behind."""
    log = log_of(tmp_path)
    for step in (2, 4):
        clock.now += 10
        log.write_training(step, LOSS)
    clock.now += 1000  # it was killed, and not running
    log = log_of(tmp_path, 2)
    clock.now += 3
    log.write_training(4, LOSS)
    assert [(line["step"], line["seconds"]) for line in lines(tmp_path)] == [(2, 10.0), (4, 23.0)]


def test_validation_has_no_metrics_of_training(tmp_path: Path):
    log_of(tmp_path).write_validation(
        7, {"loss": 1.0, "gradient_norm": 0.0, "learning_rate": 0.0, "skipped_updates": 0.0}
    )
    (line,) = lines(tmp_path)
    assert line.keys() == {"step", "split", "seconds", "loss"}


def test_lines_are_for_tensorboard_too(tmp_path: Path):
    log = log_of(tmp_path)
    log.write_training(2, LOSS)
    log.write_validation(2, {"loss": 3.0})
    for split, loss in (("train", 0.5), ("validation", 3.0)):
        (events,) = (tmp_path / "tensorboard" / split).iterdir()
        found = {
            value.tag: (event.step, float(tf.make_ndarray(value.tensor)))
            for event in tf.compat.v1.train.summary_iterator(str(events))
            for value in event.summary.value
        }
        assert found["loss"] == (2, loss)


def test_what_is_not_finite_is_null(tmp_path: Path):
    """So that any reader of JSON reads it."""
    logs = {"loss": math.nan, "mlm_loss": tf.constant(math.inf), "scl_loss": 1.0}
    log_of(tmp_path).write_training(2, logs)
    (line,) = lines(tmp_path)
    assert (line["loss"], line["mlm_loss"], line["scl_loss"]) == (None, None, 1.0)
    assert "NaN" not in (tmp_path / METRICS_FILENAME).read_text()


def test_a_line_that_is_there_is_found(tmp_path: Path):
    log = log_of(tmp_path)
    assert not log.has(2, "validation")
    log.write_training(2, LOSS)
    assert log.has(2, "train") and not log.has(2, "validation")
    log.write_validation(2, {"loss": 2.0})
    assert log.has(2, "validation") and not log.has(3, "validation")


def test_a_worker_that_does_not_write_writes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = MetricsLog(None, 0, tokens=lambda step: 100 * step)
    log.write_training(2, LOSS)
    log.write_validation(2, {"loss": 2.0})
    assert not log.has(2, "train")
    assert not list(tmp_path.iterdir())


def test_lines_of_a_lost_segment_are_dropped(tmp_path: Path):
    """A run that was killed after step 6 resumes from its checkpoint of step 4."""
    written = [{"step": step, "split": "train"} for step in (2, 4, 6)]
    text = "".join(json.dumps(line) + "\n" for line in written)
    (tmp_path / METRICS_FILENAME).write_text(text + '{"step": 8, "spl')
    log_of(tmp_path, 4)
    assert lines(tmp_path) == written[:2]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def skipped(tiny) -> TrainingStep:
    """A pretrainer whose step 7 was skipped for two gradients."""
    pretrainer = build_pretrainer(tiny(), mask_token_id=59)
    pretrainer.compile(AdamW())
    norms = dict.fromkeys(variable_paths(pretrainer), 0.5)
    norms |= {"copy_head/kernel": 3e7, "lm_head/bias": 4.0}
    norms |= {"backbone/blocks/0/key/bias": math.nan, "backbone/blocks/0/value/kernel": math.inf}
    names = {id(v): path for path, v in variable_paths(pretrainer).items()}
    pretrainer.skipped_norms.assign([norms[names[id(v)]] for v in pretrainer.trainable_variables])
    pretrainer.skipped_at.assign(7)
    return pretrainer


def test_gradients_that_are_not_finite_are_named_first_layers_first(
    skipped, capsys: pytest.CaptureFixture
):
    def printed() -> str:
        print_skipped_update(skipped)
        return capsys.readouterr().err

    first, ruined, largest = printed().splitlines()
    count = len(skipped.trainable_variables)
    assert first.startswith("step 7: update skipped, as gradients were not finite; reported once")
    assert "loss scale" not in first
    assert ruined == (
        f"  norms not finite, 2 of {count}, first layers first: backbone/blocks/0/key/bias (nan), "
        "backbone/blocks/0/value/kernel (inf)"
    )
    assert largest.startswith(
        "  largest finite norms: copy_head/kernel (3e+07), lm_head/bias (4), "
    )
    skipped.skipped_norms.assign(np.full(count, 1e38))
    assert "none, but their sum is not" in printed()
    skipped.skipped_norms.assign(np.full(count, np.nan))
    assert f" and {count - 5} more\n  largest finite norms: none" in printed()


class Profiler:
    """Stands in for TensorFlow's."""

    def __init__(self):
        self.calls: list[str] = []

    def start(self, directory: str) -> None:
        self.calls.append(f"start {directory}")

    def stop(self) -> None:
        self.calls.append("stop")

    @contextlib.contextmanager
    def Trace(self, name: str, step_num: int, _r: int):  # noqa: N802
        self.calls.append(f"step {step_num}")
        yield


@pytest.mark.parametrize(
    ("at", "loop", "steps", "recorded"),
    [(0, 1, (3, 4), [3, 4]), (0, 1, (1, 1), [1]), (3, 1, (3, 5), [4, 5]), (0, 2, (4, 5), [3, 5])]
    + [(4, 1, (3, 4), []), (0, 1, (5, 9), [5, 6])],
    ids=["middle", "first", "resumed", "loops", "past", "ended"],
)
def test_steps_are_profiled(
    monkeypatch, capsys: pytest.CaptureFixture, at: int, loop: int, steps, recorded: list[int]
):
    profiler = Profiler()
    monkeypatch.setattr(tf.profiler, "experimental", profiler)
    profile = Profile("runs/first/tensorboard", *steps)
    for first in range(at + 1, at + 7, loop):
        with profile.record(first, first + loop - 1):
            pass
    profile.close()
    expected = [f"step {step}" for step in recorded]
    if recorded:
        expected = ["start runs/first/tensorboard", *expected, "stop"]
    assert profiler.calls == expected
    told = capsys.readouterr().err
    assert told.count("\n") == bool(recorded)
    if recorded:
        last = recorded[-1] + loop - 1
        assert told.startswith(f"profile of steps {recorded[0]} to {last}: tensorboard --logdir=")
        assert "runs/first/tensorboard/plugins/profile" in told


def test_the_bar_shows_steps_loss_and_validations(capsys: pytest.CaptureFixture):
    bar = ProgressBar(
        4, train_steps=8, tokens=lambda step: 100 * step, peak_seconds=lambda step: step * 1e-28
    )
    bar.update(6, LOSS)
    bar.print_validation(6, {"loss": 1.25, "mlm_loss": 0.5, "negative_cosine": 0.1})
    bar.update(8, {"loss": 0.125})
    bar.close()
    shown = capsys.readouterr().err
    assert "step 6: validation loss 1.250, mlm_loss 0.500\n" in shown
    assert "negative_cosine" not in shown
    last = re.split(r"[\r\n]+", shown.strip())[-1]
    assert "8/8" in last and "loss 0.12" in last and "tokens/s, MFU 0.0%" in last

import contextlib
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training import callbacks as module
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.callbacks import (
    METRICS_FILENAME,
    MetricsLog,
    Profile,
    ProgressBar,
    ResumeMetrics,
    SaveCheckpoints,
    StopHopelessRun,
    StopWhenAsked,
    TellSkippedUpdate,
    skipped_update,
)
from cocolm_tf.training.checkpoints import steps_taken, variable_paths
from cocolm_tf.training.optimization import AdamW


class Model:
    """As much of a model as callbacks look at."""

    def __init__(self, step: int = 0):
        self.optimizer = types.SimpleNamespace(iterations=tf.Variable(step))
        self.skipped_in_a_row, self.skipped_at = tf.Variable(0), tf.Variable(0)
        self.steps_per_execution = 1
        self.resets = 0

    def reset_metrics(self) -> None:
        self.resets += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands in for `time`, and passes when told to."""
    clock = types.SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_FILENAME).read_text().splitlines()]


def train(model: Model, callback: object, steps: int, logs: dict | None = None) -> None:
    for _ in range(steps):
        model.optimizer.iterations.assign_add(1)
        callback.on_train_batch_end(0, logs or {"loss": tf.constant(0.5)})


def log_of(folder: Path, model: Model, interval: int = 2) -> MetricsLog:
    log = MetricsLog(str(folder), steps_taken(model), interval, tokens=lambda step: 100 * step)
    log.set_model(model)
    return log


def test_a_training_line_is_written_every_interval(tmp_path: Path, clock):
    model = Model()
    log = log_of(tmp_path, model)
    for _ in range(5):
        clock.now += 2
        train(model, log, 1)
    first, second = lines(tmp_path)
    assert first == {
        "step": 2,
        "split": "train",
        "seconds": 4.0,
        "loss": 0.5,
        "tokens_per_second": 2 * 100 / 4,
    }
    assert second["step"] == 4
    assert model.resets == 2, "each line's means are its own"


def test_training_lines_have_the_share_of_a_known_peak(tmp_path: Path, clock):
    model = Model()
    log = MetricsLog(
        str(tmp_path), 0, 2, tokens=lambda step: 100 * step, peak_seconds=lambda step: step / 2
    )
    log.set_model(model)
    clock.now += 4
    train(model, log, 2)
    log.on_test_end({"loss": 2.0})
    training, validation = lines(tmp_path)
    assert (training["tokens_per_second"], training["mfu"]) == (50, 0.25)
    assert "mfu" not in validation
    (events,) = (tmp_path / "tensorboard" / "train").iterdir()
    summaries = tf.compat.v1.train.summary_iterator(str(events))
    assert "mfu" in {value.tag for event in summaries for value in event.summary.value}


def test_validation_time_is_not_training_time(tmp_path: Path, clock):
    model = Model()
    log = log_of(tmp_path, model, interval=4)
    clock.now += 5
    train(model, log, 3)
    clock.now += 1000
    log.on_test_end({"loss": tf.constant(2.0)})
    clock.now += 10
    train(model, log, 1)
    validation, training = lines(tmp_path)
    assert (validation["step"], validation["split"], validation["loss"]) == (3, "validation", 2.0)
    assert training["step"] == 4
    assert training["tokens_per_second"] == 100 / 10, "one step since the validation"


def test_the_clock_of_a_resumed_run_goes_on(tmp_path: Path, clock):
    """From the last line, also from one that the resumed run goes back behind."""
    model = Model()
    log = log_of(tmp_path, model)
    for _ in range(4):
        clock.now += 5
        train(model, log, 1)
    clock.now += 1000  # it was killed, and not running
    resumed = Model(2)
    log = log_of(tmp_path, resumed)
    clock.now += 3
    train(resumed, log, 2)
    assert [(line["step"], line["seconds"]) for line in lines(tmp_path)] == [(2, 10.0), (4, 23.0)]


def test_validation_has_no_metrics_of_training(tmp_path: Path):
    model = Model(7)
    log_of(tmp_path, model).on_test_end(
        {"loss": 1.0, "gradient_norm": 0.0, "learning_rate": 0.0, "skipped_updates": 0.0}
    )
    (line,) = lines(tmp_path)
    assert line.keys() == {"step", "split", "seconds", "loss"}


def test_lines_are_for_tensorboard_too(tmp_path: Path):
    model = Model()
    log = log_of(tmp_path, model)
    train(model, log, 2)
    log.on_test_end({"loss": 3.0})
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
    model = Model()
    log = log_of(tmp_path, model)
    train(model, log, 2, {"loss": math.nan, "mlm_loss": tf.constant(math.inf), "scl_loss": 1.0})
    (line,) = lines(tmp_path)
    assert (line["loss"], line["mlm_loss"], line["scl_loss"]) == (None, None, 1.0)
    assert "NaN" not in (tmp_path / METRICS_FILENAME).read_text()


def test_a_line_that_is_there_is_found(tmp_path: Path):
    model = Model()
    log = log_of(tmp_path, model)
    assert not log.has(2, "validation")
    train(model, log, 2)
    assert log.has(2, "train") and not log.has(2, "validation")
    log.on_test_end({"loss": 2.0})
    assert log.has(2, "validation") and not log.has(3, "validation")


def test_a_worker_that_does_not_write_resets_its_metrics_all_the_same(tmp_path: Path, monkeypatch):
    """Otherwise the sum over the workers would be of stretches of different lengths."""
    monkeypatch.chdir(tmp_path)
    model = Model()
    log = MetricsLog(None, 0, 2, tokens=lambda step: 100 * step)
    log.set_model(model)
    train(model, log, 5)
    log.on_test_end({"loss": 2.0})
    assert model.resets == 2
    assert not log.has(2, "train")
    assert not list(tmp_path.iterdir())


def test_lines_of_a_lost_stretch_are_dropped(tmp_path: Path):
    """A run that was killed after step 6 goes on from its checkpoint of step 4."""
    written = [{"step": step, "split": "train"} for step in (2, 4, 6)]
    text = "".join(json.dumps(line) + "\n" for line in written)
    (tmp_path / METRICS_FILENAME).write_text(text + '{"step": 8, "spl')
    log_of(tmp_path, Model(4))
    assert lines(tmp_path) == written[:2]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("first", "saved"), [(0, [3, 6, 9]), (4, [6, 9, 12])])
def test_checkpoints_are_saved_every_interval(first: int, saved: list[int]):
    model, found = Model(first), []
    checkpoints = types.SimpleNamespace(
        save=lambda: found.append(steps_taken(model)), check=lambda: None
    )
    callback = SaveCheckpoints(checkpoints, interval=3)
    callback.set_model(model)
    train(model, callback, 10 if first == 0 else 8)
    assert found == saved


def test_a_checkpoint_waits_for_an_update_that_succeeds():
    """Those between would push the sound ones out."""
    model, found = Model(), []
    checkpoints = types.SimpleNamespace(
        save=lambda: found.append(steps_taken(model)), check=lambda: None
    )
    callback = SaveCheckpoints(checkpoints, interval=3)
    callback.set_model(model)
    for skipped in (0, 1, 2, 3, 0, 0, 0, 1):
        model.skipped_in_a_row.assign(skipped)
        train(model, callback, 1)
    assert found == [5, 6]


def test_a_checkpoint_that_could_not_be_written_ends_the_run_soon():
    def check() -> None:
        raise UserError("the disk is full")

    model = Model()
    callback = SaveCheckpoints(types.SimpleNamespace(check=check), interval=3)
    callback.set_model(model)
    with pytest.raises(UserError, match="the disk is full"):
        train(model, callback, 1)


def test_metrics_are_resumed_once():
    """At the beginning of the first epoch, just after `fit()` has reset them."""
    calls = []
    callback = ResumeMetrics(types.SimpleNamespace(restore_metrics=lambda: calls.append(1)))
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
    assert calls == [1]


@pytest.mark.parametrize("during", ["on_train_batch_end", "on_test_batch_end"])
def test_a_run_told_to_stop_saves_and_says_so(during: str):
    calls = []
    signal = types.SimpleNamespace(received=False)
    checkpoints = types.SimpleNamespace(
        save=lambda: calls.append("save"), wait=lambda: calls.append("wait")
    )
    workers = types.SimpleNamespace(
        any=lambda flag: flag, wait_for_all=lambda: calls.append("all workers")
    )
    callback = StopWhenAsked(signal, checkpoints, workers)
    callback.set_model(Model(7))
    getattr(callback, during)(0)
    assert not calls
    signal.received = True
    with pytest.raises(RestartableError, match="SIGTERM at step 7, which is saved"):
        getattr(callback, during)(0)
    assert calls == ["save", "wait", "all workers"]


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


def test_gradients_that_are_not_finite_are_named_first_layers_first(skipped):
    first, ruined, largest = skipped_update(skipped).splitlines()
    count = len(skipped.trainable_variables)
    assert first.startswith("step 7: update skipped, as gradients were not finite; told once")
    assert "loss scale" not in first
    assert ruined == (
        f"  norms not finite, 2 of {count}, first layers first: backbone/blocks/0/key/bias (nan), "
        "backbone/blocks/0/value/kernel (inf)"
    )
    assert largest.startswith(
        "  largest finite norms: copy_head/kernel (3e+07), lm_head/bias (4), "
    )
    skipped.skipped_norms.assign(np.full(count, 1e38))
    assert "none, but their sum is not" in skipped_update(skipped)
    skipped.skipped_norms.assign(np.full(count, np.nan))
    assert f" and {count - 5} more\n  largest finite norms: none" in skipped_update(skipped)


def test_a_skipped_update_is_told_once_and_soon(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(module, "skipped_update", lambda model: "it was skipped")
    model, callback = Model(), TellSkippedUpdate(interval=4)
    callback.set_model(model)
    train(model, callback, 5)
    model.skipped_at.assign(6)
    train(model, callback, 2)
    assert not capsys.readouterr().err, "nobody looks before the interval"
    train(model, callback, 1)
    assert capsys.readouterr().err == "it was skipped\n"
    model.skipped_at.assign(9)
    train(model, callback, 4)
    assert not capsys.readouterr().err

    callback = TellSkippedUpdate(interval=4)
    callback.set_model(model)
    model.skipped_in_a_row.assign(1)
    train(model, callback, 1)
    assert capsys.readouterr().err, "while updates are skipped, the end may be near"


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
    model, profile = Model(at), Profile("runs/first/tensorboard", *steps)
    model.steps_per_execution = loop
    profile.set_model(model)
    for _ in range(6 // loop):
        profile.on_train_batch_begin(0)
        model.optimizer.iterations.assign_add(loop)
        profile.on_train_batch_end(0)
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


def test_a_run_told_to_stop_while_updates_are_skipped_saves_nothing():
    checkpoints = types.SimpleNamespace(wait=lambda: None)
    workers = types.SimpleNamespace(any=lambda flag: flag, wait_for_all=lambda: None)
    callback = StopWhenAsked(types.SimpleNamespace(received=True), checkpoints, workers)
    callback.set_model(Model(7))
    callback.model.skipped_in_a_row.assign(2)
    with pytest.raises(RestartableError, match="step 7, whose last 2 updates were skipped"):
        callback.on_train_batch_end(0)


def test_a_hopeless_run_is_ended_with_the_count():
    checkpoints = types.SimpleNamespace(hopeless=lambda why: UserError(f"{why} at step 7"))
    model, callback = Model(), StopHopelessRun(3, checkpoints)
    callback.set_model(model)
    for skipped in (0, 1, 2, 0, 1, 2):
        model.skipped_in_a_row.assign(skipped)
        callback.on_train_batch_end(0)
    model.skipped_in_a_row.assign(3)
    with pytest.raises(UserError, match="the last 3 updates were skipped.* at step 7"):
        callback.on_train_batch_end(0)


def test_the_bar_shows_steps_loss_and_validations(capsys: pytest.CaptureFixture):
    model = Model(4)
    bar = ProgressBar(
        4, train_steps=8, tokens=lambda step: 100 * step, peak_seconds=lambda step: step * 1e-28
    )
    bar.set_model(model)
    train(model, bar, 2)
    bar.on_test_end({"loss": 1.25, "mlm_loss": 0.5, "negative_cosine": 0.1})
    train(model, bar, 2, {"loss": 0.125})
    bar.on_train_end()
    bar.close()
    shown = capsys.readouterr().err
    assert "step 6: validation loss 1.250, mlm_loss 0.500\n" in shown
    assert "negative_cosine" not in shown
    last = re.split(r"[\r\n]+", shown.strip())[-1]
    assert "8/8" in last and "loss 0.12" in last and "tokens/s, MFU 0.0%" in last

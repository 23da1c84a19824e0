import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.finetuning.config import TrainerConfig
from cocolm_tf.finetuning.run import EvaluationSchedule, Training
from cocolm_tf.finetuning.tasks.task import Prepared


class Line(Prepared):
    """A line through points, with noise; `scores` says what its measurements give."""

    metric = "f1"

    def __init__(self, scores):
        keras.utils.set_random_seed(0)
        self.scores, self.weights = scores, []
        inputs = keras.Input((2,))
        outputs = keras.layers.Dense(1)(keras.layers.GaussianNoise(0.1)(inputs))
        self.model = keras.Model(inputs, outputs)
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        # A graph of a few steps would not earn back its tracing.
        self.model.compile(optimizer, "mse", run_eagerly=True)

    def training(self):
        x = np.random.default_rng(0).normal(size=[6, 2]).astype(np.float32)
        rows = tf.data.Dataset.from_tensor_slices((x, x[:, :1]))
        return rows.batch(2).repeat(), 3, 6

    def measure(self):
        number = len(self.weights)
        self.weights.append(np.array(self.model.layers[-1].kernel))
        if self.scores[number] is None:
            raise FloatingPointError
        return {"dev": {self.metric: self.scores[number]}}

    def artifacts(self, folder):
        return {}

    def card(self, results):
        return {}


@pytest.fixture
def train(listener, tmp_path: Path):
    """Trains a line; gives what trained it, the line and what was told."""

    def train(scores=(0.2, 0.9, 0.9, 0.1), until=0.0, of=Line, callback=None, **trainer):
        line = of(list(scores))
        listener.heard.clear()
        config = TrainerConfig()
        config.override({"epochs": len(scores)} | trainer)
        batches, steps, rows = line.training()
        schedule = EvaluationSchedule.of(config, steps, rows)
        training = Training(line, schedule, config, str(tmp_path), listener, "this run")
        if callback:
            callback(training)
        training.run(batches, until)
        return training, line, [*listener.heard]

    return train


def kernel(line: Line) -> np.ndarray:
    return np.array(line.model.layers[-1].kernel)


def test_the_weights_of_the_best_measurement_come_back(train):
    training, line, heard = train()
    best = training.best
    assert (best["epoch"], best["step"], best["score"]) == (2, 6, 0.9)
    assert [entry["score"] for entry in training.history] == [0.2, 0.9, 0.9, 0.1]
    assert not np.array_equal(kernel(line), line.weights[1])
    training.restore_best()
    np.testing.assert_array_equal(kernel(line), line.weights[1])
    assert training.results()["examples_per_second"] > 0
    shares = [share for share, _ in heard]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert heard[0][1].startswith("epoch 1/4, loss ")
    assert {(0.25, "dev 0.200"), (0.5, "dev 0.900")} < set(heard)


def test_lower_may_be_better(train):
    class Errors(Line):
        metric = "rmse"

    training, line, _ = train((0.9, 0.2, 0.5), of=Errors)
    assert training.best["epoch"] == 2


def test_a_run_whose_outputs_are_not_finite_ends_with_the_best_so_far(train):
    training, line, _ = train((0.5, None, 0.7, 0.7))
    assert training.diverged and len(line.weights) == 2 and training.best["epoch"] == 1
    training.restore_best()
    np.testing.assert_array_equal(kernel(line), line.weights[0])


def test_a_run_that_never_was_finite_has_no_best(train):
    training, line, _ = train((None, 0.5))
    assert training.best is None and len(line.weights) == 1


def test_patience_ends_a_run_that_gets_no_better(train):
    training, line, _ = train((0.2, 0.3, 0.1, 0.3, 0.9), patience=2)
    assert len(training.history) == 4 and training.best["epoch"] == 2


@pytest.mark.parametrize(
    ("trainer", "evaluations"),
    [
        ({"epochs": 2}, [3, 6]),
        ({"epochs": 2, "validation_interval": 4}, [4, 6]),
        ({"steps": 7}, [3, 6, 7]),
        ({"steps": 2}, [2]),
        ({"steps": 100, "validation_interval": 50, "steps_per_execution": 20}, [60, 100]),
    ],
)
def test_when_a_run_is_measured(trainer, evaluations):
    config = TrainerConfig()
    config.override(trainer)
    schedule = EvaluationSchedule.of(config, 3, 6)
    assert [schedule.end(evaluation) for evaluation in range(schedule.evaluations)] == evaluations
    for step in range(schedule.steps):
        rest = list(schedule.rest(step, schedule.evaluations))
        assert sum(count * steps for _, count, steps in rest) == schedule.steps - step


def test_steps_between_measurements_may_be_any_number(train):
    training, _, _ = train((0.1, 0.2, 0.3), epochs=2, validation_interval=2)
    assert [(one["epoch"], one["step"]) for one in training.history] == [
        (0.667, 2),
        (1.333, 4),
        (2, 6),
    ]


def stop_before(step: int):
    """Has a run stop before a step as if it were killed, but for a checkpoint just before."""

    def change(training: Training) -> None:
        ordinary = training.on_train_batch_begin

        def begin(batch, logs=None):
            training._saved -= 1e9 if training._interval_begin + batch == step - 1 else 0
            ordinary(batch, logs)
            if training._interval_begin + batch == step:
                raise KeyboardInterrupt

        training.on_train_batch_begin = begin

    return change


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_resumes_within_an_epoch_as_if_nothing_had_happened(train, tmp_path, step):
    whole, line, _ = train(log_interval=1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert not (tmp_path / "state.npz").exists()
    with pytest.raises(KeyboardInterrupt):
        train(log_interval=1, callback=stop_before(step), checkpoint_minutes=1e6)
    scores = [0.2, 0.9, 0.9, 0.1][(step - 1) // 3 :]

    again, same, _ = train(scores, epochs=4, log_interval=1)
    assert again.history == whole.history
    for one, other in zip(same.model.variables, line.model.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    again.restore_best()
    np.testing.assert_array_equal(kernel(same), line.weights[1])

    def without_seconds(lines):
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    found = (tmp_path / "metrics.jsonl").read_text().splitlines()
    order = lambda line: (line["step"], line["split"])  # noqa: E731
    assert sorted(without_seconds(found), key=order) == sorted(without_seconds(lines), key=order)


def test_a_run_that_was_paused_resumes_to_its_end(train):
    whole, line, _ = train()
    paused, _, _ = train(until=0.5)
    assert len(paused.history) == 2
    ended, same, _ = train((0.9, 0.1), epochs=4, until=1.0)
    assert ended.history == whole.history
    for one, other in zip(same.model.variables, line.model.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    # What was done to the end has nothing left to do, whoever asks.
    done, _, _ = train((), epochs=4)
    assert done.history == whole.history
    done.restore_best()
    np.testing.assert_array_equal(kernel(done._prepared), line.weights[1])


def test_no_run_resumes_with_the_checkpoint_of_another(train):
    def rename(training: Training) -> None:
        training._identity = "another run"

    train((0.5, 0.5), until=0.5)
    other, _, _ = train((0.1, 0.2), callback=rename)
    assert [entry["score"] for entry in other.history] == [0.1, 0.2]


def test_the_log_has_steps_and_measurements(train, tmp_path: Path):
    train(log_interval=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8, 10, 12]
    measured = [line for line in lines if line["split"] == "validation"]
    assert [line["dev_f1"] for line in measured] == [0.2, 0.9, 0.9, 0.1]
    assert all(line["learning_rate"] == pytest.approx(0.01) for line in lines if "loss" in line)
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"train", "validation"}


def test_steps_do_not_wait_for_the_host(train, monkeypatch):
    """Nothing reads a loss but for the log and, after a second, for people."""
    read, seen = [], []

    def watch(training: Training) -> None:
        ordinary = training.on_train_batch_end

        class Loss:
            def __init__(self, value):
                self.value = value

            def __float__(self):
                read.append(self.value)
                return float(self.value)

        def end(batch, logs=None):
            seen.append(batch)
            assert tf.is_tensor(logs["loss"])
            ordinary(batch, {"loss": Loss(logs["loss"])})

        training.on_train_batch_end = end
        training._last_loss_read = float("inf")

    train(callback=watch, log_interval=5)
    assert len(seen) == 12 and len(read) == 2

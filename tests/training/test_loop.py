"""When the loop logs, saves, validates and stops: with a model that only counts."""

import json
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tensorflow as tf

from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.training import loop as module
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.monitoring import METRICS_FILENAME
from cocolm_tf.training.stages import stages

STEPS = 12


class Model:
    """As much of a pretrainer as the loop sees."""

    def __init__(self, config: PretrainingConfig, step: int, skipped: Sequence[int]):
        self.optimizer = types.SimpleNamespace(iterations=tf.Variable(step))
        self.skipped_in_a_row, self.skipped_at = tf.Variable(0), tf.Variable(0)
        self.distribute_strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        self._loop, self._skipped = config.trainer.steps_per_loop, list(skipped)
        self.events: list[tuple[str, int]] = []
        self.losses = {"loss": 1.0}

    @property
    def step(self) -> int:
        return int(self.optimizer.iterations)

    def note(self, event: str) -> None:
        self.events.append((event, self.step))

    def steps_of(self, event: str) -> list[int]:
        return [step for what, step in self.events if what == event]

    def make_train_function(self) -> Callable:
        def function(iterator) -> dict[str, float]:
            self.optimizer.iterations.assign_add(self._loop)
            self.skipped_in_a_row.assign(self._skipped.pop(0) if self._skipped else 0)
            if self.skipped_in_a_row == 1:
                self.skipped_at.assign(self.step)
            return {"loss": 0.5}

        return function

    def evaluate(self, batches, callbacks=(), **options) -> dict[str, float]:
        self.note("validate")
        for callback in callbacks:
            callback.on_test_batch_end(0, {})
        return self.losses

    def reset_metrics(self) -> None:
        self.note("reset")


@pytest.fixture(autouse=True)
def reported(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps after which a skipped update was reported."""
    steps: list[int] = []
    monkeypatch.setattr(module, "print_skipped_update", lambda model: steps.append(model.step))
    return steps


@pytest.fixture
def run(tiny, tmp_path: Path):
    """Runs the loop to its end or to an error, and returns the model."""

    def run(
        step: int = 0,
        skipped: Sequence[int] = (),
        stop_at: int | None = None,
        held_out: bool = True,
        at_batch: Callable[[Model], None] = lambda model: None,
        folder: Path = tmp_path,
        raises: str = "",
        check: Callable[[], None] = lambda: None,
        profile_steps: Sequence[int] = (),
        is_chief: bool = True,
        data: dict | None = None,
        **trainer: int,
    ) -> Model:
        quiet = {"log_interval": 100, "validation_interval": 100, "checkpoint_interval": 100}
        config = tiny(trainer=quiet | {"train_steps": STEPS} | trainer, data=data or {})
        model = Model(config, step, skipped)
        checkpoints = types.SimpleNamespace(
            save=lambda: model.note("save"),
            wait=lambda: model.note("wait"),
            restore_metrics=lambda: model.note("restore"),
            failure=lambda why: UserError(f"{why} at step {model.step}"),
            check=check,
        )
        feed = types.SimpleNamespace(
            stages=stages(config),
            training=lambda step: [],
            validation=lambda step: [step] if held_out else None,
            sequences_by_dataset=lambda: None,
        )
        workers = types.SimpleNamespace(
            is_chief=is_chief,
            any=lambda flag: bool(flag),
            wait_for_all=lambda: model.note("all workers"),
        )

        class Stop:
            @property
            def received(self) -> bool:
                return model.step == stop_at

        class Listener(module.keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                at_batch(model)

        def train() -> None:
            run = feed, checkpoints, workers, Stop(), [Listener()], profile_steps
            module.train(model, config, str(folder), *run)

        if raises:
            with pytest.raises((UserError, RestartableError), match=raises):
                train()
        else:
            train()
        return model

    return run


def lines(folder: Path) -> list[tuple[int, str]]:
    text = (folder / METRICS_FILENAME).read_text()
    return [(line["step"], line["split"]) for line in map(json.loads, text.splitlines())]


@pytest.mark.parametrize("loop", [1, 2])
def test_all_is_done_when_due(run, tmp_path: Path, loop: int):
    model = run(log_interval=4, validation_interval=6, checkpoint_interval=2, steps_per_loop=loop)
    assert model.steps_of("save") == [2, 4, 6, 8, 10, 12, 12]
    assert model.steps_of("validate") == [6, 12]
    assert lines(tmp_path) == [
        (4, "train"),
        (6, "validation"),
        (8, "train"),
        (12, "train"),
        (12, "validation"),
    ]
    # The means of a line are over the steps since the line before it, of either split.
    assert model.steps_of("reset") == [4, 6, 8, 12, 12]
    # What is saved is logged before.
    assert model.events.index(("reset", 4)) < model.events.index(("save", 4))


@pytest.mark.parametrize(
    ("step", "interval", "switch", "validated"),
    [(0, 7, 5, [5, 7, 12]), (6, 7, 5, [7, 12]), (0, 6, 6, [6, 12]), (0, 15, 11, [11, 12])],
)
def test_validations_are_at_their_interval_and_at_the_end_of_stages(
    run, step: int, interval: int, switch: int, validated: list[int]
):
    data = {"sequence_length_schedule": [switch / STEPS, 8]}
    assert run(step, data=data, validation_interval=interval).steps_of("validate") == validated


def test_a_resumed_run_restores_what_its_metrics_had_summed_up(run, tmp_path: Path):
    assert run(step=5).steps_of("restore") == [5]
    assert not run().steps_of("restore")
    # After a validation they begin anew, and one that was lost is made up for, once.
    (tmp_path / METRICS_FILENAME).unlink()
    for validations in ([6, 12], [12]):
        model = run(step=6, validation_interval=6)
        assert model.steps_of("validate") == validations
        assert not model.steps_of("restore")


def test_a_checkpoint_waits_for_an_update_that_succeeds(run):
    """Those between would push the sound ones out."""
    model = run(skipped=[0, 1, 2, 3, 0, 0, 0, 1], checkpoint_interval=3)
    assert model.steps_of("save") == [5, 6, 9, 12, 12]


def test_a_checkpoint_that_could_not_be_written_ends_the_run_soon(run):
    def check() -> None:
        raise UserError("the disk is full")

    assert run(check=check, raises="the disk is full").step == 1


def test_sigterm_saves_and_ends_the_run(run):
    model = run(stop_at=7, raises="stopped by SIGTERM at step 7, which is saved")
    assert [what for what, _ in model.events] == ["save", "wait", "all workers"]


def test_sigterm_is_heeded_within_a_validation(run):
    calls = []

    def later(model: Model) -> None:
        calls.append(model.step)

    model = run(
        step=6, stop_at=6, validation_interval=6, raises="SIGTERM at step 6", at_batch=later
    )
    assert model.steps_of("validate") == [6] and not calls


def test_sigterm_while_updates_are_skipped_saves_nothing(run):
    model = run(
        skipped=[0, 1, 2], stop_at=3, raises="step 3, whose last 2 updates were skipped: it is not"
    )
    assert not model.steps_of("save")


def test_a_failed_run_is_ended_with_the_count(run):
    model = run(
        skipped=[0, 1, 2, 0, 1, 2, 3],
        max_skipped_updates=3,
        raises="the last 3 updates were skipped.* at step 7",
    )
    assert model.step == 7


def test_a_run_may_not_end_in_ruin(run):
    """Though it has fewer skipped updates than end one."""
    skipped = [0] * (STEPS - 2) + [1, 2]
    assert run(skipped=skipped, held_out=False).steps_of("save") == [STEPS]

    def ruin(model: Model) -> None:
        model.losses = {"loss": math.nan}

    run(skipped=skipped, at_batch=ruin, held_out=False, raises="run's last 2 updates were skipped")


def test_the_first_skipped_update_is_reported_once_and_soon(run, reported: list[int]):
    run(skipped=[0, 0, 1, 0, 0, 1])
    assert reported == [3], "while updates are skipped, the end may be near"
    reported.clear()

    # Of several steps in one loop, the last may have succeeded.
    def skip_unseen(model: Model) -> None:
        model.skipped_at.assign(2 if model.step >= 2 else 0)

    run(log_interval=4, at_batch=skip_unseen)
    assert reported == [4]


def test_a_worker_that_does_not_write_does_all_else_alike(run, tmp_path: Path, capsys):
    """Sums over the workers are of the same steps, and what needs all of them is met by all."""
    intervals = {"log_interval": 4, "validation_interval": 6, "checkpoint_interval": 3}
    model = run(folder=tmp_path / "other", is_chief=False, skipped=[0, 1], **intervals)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err
    assert model.events == run(skipped=[0, 1], **intervals).events


def test_every_call_of_the_compiled_function_may_be_profiled(run, monkeypatch):
    calls = []

    class Profile(module.Profile):
        def record(self, first: int, last: int):
            calls.append((first, last))
            return super().record(first, last)

    monkeypatch.setattr(module, "Profile", Profile)
    run(profile_steps=(99, 100), steps_per_loop=4, data={"sequence_length_schedule": [0.5, 8]})
    assert calls == [(1, 4), (5, 8), (9, 12)]


def test_a_finished_run_only_saves(run, tmp_path: Path):
    run(step=STEPS - 1)
    model = run(step=STEPS)
    assert model.events == [("save", STEPS), ("wait", STEPS)]

"""One fine-tuning run, whatever its task, and the process that does it.

A run has the folder of its job, see `cocolm_tf.jobs`, where it leaves

    preset/          the model of its best measurement, with a model card
    predictions/     what that predicts, as its task has it
    metrics.jsonl    the log of its steps and measurements; the same in tensorboard/
    state.npz        while it is not done: the checkpoint from which it goes on
"""

import contextlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.costs.step_benchmark import describe_device
from cocolm_tf.finetuning.config import FinetuningConfig, TrainerConfig, from_dict
from cocolm_tf.finetuning.metrics import worth
from cocolm_tf.finetuning.optimization import build_optimizer
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.task import (
    METRICS_FILENAME,
    STATE_FILENAME,
    TENSORBOARD_DIRECTORY,
    Prepared,
)
from cocolm_tf.jobs import UNTIL_KEY, Reporter, serve
from cocolm_tf.training.distribution import make_strategy, per_replica_batch
from cocolm_tf.training.model_card import write_model_card
from cocolm_tf.versions import own_versions

PRESET_DIRECTORY = "preset"
DIVERGED = {"diverged": True, "headline": "diverged"}
"""The results of a run whose outputs never were finite."""

_SECONDS_BETWEEN_LOOKS_AT_THE_LOSS = 1.0


def run_task(
    spec: Mapping[str, Any],
    folder: str,
    reporter: Reporter,
    until: float = 0.0,
    distribution_strategy: str = "one_device",
    tpu: str = "",
) -> dict[str, Any]:
    """Trains, measures as often as the configuration has it, and keeps what was best.

    A run whose process was ended goes on from its last checkpoint, and ends as if nothing had
    happened.

    Args:
        spec: What `Task.spec()` gave.
        folder: Of the run.
        reporter: Is told.
        until: float. After which share of its measurements to pause, with a checkpoint, up to 1
            for after all of them; 0 for never.
        distribution_strategy: Of `make_strategy`.
        tpu: Of `make_strategy`.

    Returns:
        What JSON can hold: `task`, `metric`, `score`, that of the best measurement, and `dev`, all
        its metrics; `best_epoch` and `best_step`, when that was; `epochs`, all measurements, and
        `looks`, how many a run to the end has; `steps_per_epoch`; `data`, what was read;
        `examples_per_second`, `seconds`, `parameters` (of the encoder), `device` and `versions`;
        and where the run counts what `Prepared.artifacts` says. Of a run whose outputs never were
        finite only `diverged`, true; of one that was paused `until` besides.

    Raises:
        UserError: If the data, the preset or a setting is not what it should be.

    Example:
    ```python
    run_task(task.spec(), "runs/rte/seed_0", Reporter())["score"]
    ```
    """
    task = task_of(spec)
    config = from_dict(task.config, "the run's configuration")
    with strategy_scope(distribution_strategy, tpu):
        trainer, strategy = config.trainer, tf.distribute.get_strategy()
        per_replica_batch(trainer.batch_size, trainer.micro_batches, strategy)
        prepared = task.prepare(config)
        reporter.say(prepared.summary)
        batches, steps, rows = prepared.training()
        course = Course.of(config.trainer, steps, rows)
        model = prepared.model
        model.compile(
            build_optimizer(config.optimizer, course.steps, model, model.backbone),
            metrics=[],
            **compile_settings(config),
            **prepared.compile_arguments(),
        )
        training = Training(prepared, course, config.trainer, folder, reporter, _identity(spec))
        training.run(batches, until)
        if training.best is None:
            return DIVERGED
        training.restore_best()
        results = training.results() | {
            "task": prepared.name,
            "metric": prepared.metric,
            "steps_per_epoch": steps,
            "data": prepared.report,
            "parameters": sum(math.prod(v.shape) for v in model.backbone.variables),
            "device": describe_device(),
            "versions": own_versions(),
        }
        if task.save_preset:
            left = prepared.artifacts(folder)
            results |= left | {"headline": left.get("headline", results["headline"])}
            results["seconds"] = training.seconds
            save_model(prepared, results, folder)
    if until:
        return results | {UNTIL_KEY: until}
    files.remove(os.path.join(folder, STATE_FILENAME))
    return results


def strategy_scope(name: str, tpu: str) -> contextlib.AbstractContextManager[Any]:
    """The scope of a distribution strategy; one device needs none."""
    return contextlib.nullcontext() if name == "one_device" else make_strategy(name, tpu).scope()


def compile_settings(config: FinetuningConfig) -> dict[str, Any]:
    """What `compile()` gets of a configuration."""
    return {
        "jit_compile": config.runtime.jit_compile,
        "micro_batches": config.trainer.micro_batches,
        "steps_per_execution": config.trainer.steps_per_execution,
    }


class Course(NamedTuple):
    """How long a run is, and when it is measured."""

    steps: int  # Of the whole run
    interval: int  # Between two measurements
    steps_per_epoch: int
    rows_per_step: float  # Examples, on average

    @classmethod
    def of(cls, trainer: TrainerConfig, steps_per_epoch: int, rows: int) -> "Course":
        """The course that a configuration asks for, given what an epoch is."""
        loop = trainer.steps_per_execution
        steps = trainer.steps or trainer.epochs * steps_per_epoch
        interval = min(steps, trainer.validation_interval or steps_per_epoch)
        # The devices take whole loops.
        steps, interval = (-(-count // loop) * loop for count in (steps, interval))
        return cls(steps, interval, steps_per_epoch, rows / steps_per_epoch)

    @property
    def looks(self) -> int:
        """How many measurements there are."""
        return -(-self.steps // self.interval)

    def end(self, look: int) -> int:
        """The step after which a measurement is, counted from 0."""
        return min(self.steps, (look + 1) * self.interval)

    def rest(self, step: int, looks: int) -> Iterator[tuple[int, int, int]]:
        """What is left of the first so many looks when a step is done.

        Each is the number of the first look, how many there are, and the steps of each of them,
        which are as many for all.
        """
        found = []
        for look in range(looks):
            begin = self.end(look - 1) if look else 0
            if self.end(look) > step:
                found.append((look, self.end(look) - max(step, begin)))
        for length, group in itertools.groupby(found, lambda one: one[1]):
            numbers = [look for look, _ in group]
            yield numbers[0], len(numbers), length


class _Unhurried(keras.callbacks.CallbackList):
    """Callbacks that get what a step gave as it is.

    Keras reads every number of every step, and so has the devices wait for the host.
    """

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class Training(keras.callbacks.Callback):
    """Trains a model, keeps the weights of its best measurement, and tells how far it is.

    Args:
        prepared: What to train; it is compiled.
        course: How long.
        trainer: When to stop early, to log and to save.
        folder: Of the run.
        reporter: Is told.
        identity: What this run is, so that no other goes on with its state.
    """

    def __init__(
        self,
        prepared: Prepared,
        course: Course,
        trainer: TrainerConfig,
        folder: str,
        reporter: Reporter,
        identity: str,
    ) -> None:
        super().__init__()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.diverged = False
        self._prepared, self._course, self._trainer = prepared, course, trainer
        self._reporter, self._identity = reporter, identity
        self._state_path = os.path.join(folder, STATE_FILENAME)
        self._log = StepLog(folder)
        self._weights: list[np.ndarray] = []
        self._step = self._begun = 0  # of the look that is going on, and where it began
        self._to_restore: dict[str, np.ndarray] | None = None
        self._started = self._saved = self._look_started = time.monotonic()
        self._seconds_before = 0.0
        self._logged = 0
        self._last_look_at_loss = 0.0
        self._timed: list[tuple[int, float]] = []  # steps and seconds, of looks without the first

    @property
    def seconds(self) -> float:
        """How long the run took, all its processes together."""
        return self._seconds_before + time.monotonic() - self._started

    def results(self) -> dict[str, Any]:
        """What came out, for JSON."""
        best, metric = self.best, self._prepared.metric
        steps, seconds = map(sum, zip(*self._timed, strict=True))
        return {
            "headline": f"{metric} {best['score']:.4f} in epoch {best['epoch']:g}",
            "score": best["score"],
            "dev": best["dev"],
            "best_epoch": best["epoch"],
            "best_step": best["step"],
            "epochs": self.history,
            "looks": self._course.looks,
            # Measurements are left out, and the first look, which compiles, where there are more.
            "examples_per_second": self._course.rows_per_step * steps / seconds,
            "seconds": self.seconds,
        }

    def run(self, batches: tf.data.Dataset, until: float = 0.0) -> None:
        """Trains until the end, or until such a share of the measurements is done, and saves."""
        course, model = self._course, self._prepared.model
        looks = math.ceil(until * course.looks) or course.looks
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._load()
        for first, count, steps in course.rest(self._step, looks):
            if self._is_over():
                break
            model.fit(
                batches.skip(self._step),
                steps_per_epoch=steps,
                initial_epoch=first,
                epochs=first + count,
                callbacks=_Unhurried([self], add_history=True, model=model),
                shuffle=False,
                verbose=0,
            )
        if until:
            model.reset_metrics()  # as at the beginning of the next look
            self._save()

    def restore_best(self) -> None:
        """Gives the model the weights of its best measurement."""
        for variable, value in zip(self._trainable(), self._weights, strict=True):
            variable.assign(value)

    # --- What Keras calls ---

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Goes on where a checkpoint is, the first time."""
        if self._to_restore is not None:
            # Keras has just set the mean of the loss to zero.
            for name, variable in self._variables().items():
                variable.assign(self._to_restore[name])
            self._to_restore = None
        self._begun = self._step
        self._look_started = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves a checkpoint now and then."""
        self._step = self._begun + batch
        if time.monotonic() - self._saved >= 60 * self._trainer.checkpoint_minutes:
            self._save()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells and logs now and then: to read the loss, the host waits for the devices."""
        done, now = self._begun + batch + 1, time.monotonic()
        is_logged = done // self._trainer.log_interval > self._logged
        if not is_logged and now - self._last_look_at_loss < _SECONDS_BETWEEN_LOOKS_AT_THE_LOSS:
            return
        self._last_look_at_loss, loss = now, float(logs["loss"])
        if is_logged:
            self._logged = done // self._trainer.log_interval
            rate = self._learning_rate(done)
            self._log.write(done, "train", {"loss": loss, "learning_rate": rate}, self.seconds)
        score = f", dev {self.best['score']:.3f}" if self.best else ""
        steps, epoch = self._course.steps, self._course.steps_per_epoch
        self._reporter.progress(
            done / steps,
            f"epoch {-(-done // epoch)}/{-(-steps // epoch)}, loss {loss:.3f}{score}",
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, and keeps what is better."""
        done = self._course.end(epoch)
        self._timed.append((done - self._begun, time.monotonic() - self._look_started))
        if len(self._timed) == 2:
            # Its steps were compiled.
            del self._timed[0]
        self._step = done
        try:
            scores = self._prepared.measure()
        except FloatingPointError:
            self.diverged = True
            self.model.stop_training = True
            return
        score = next(iter(scores.values()))[self._prepared.metric]
        number = done / self._course.steps_per_epoch
        entry = {
            "epoch": int(number) if number == int(number) else round(number, 3),
            "step": done,
            "loss": float(logs["loss"]),
            "score": score,
            "dev": {part: dict(metrics) for part, metrics in scores.items()},
        }
        self.history.append(entry)
        flat = {f"{part}_{name}": v for part, of in scores.items() for name, v in of.items()}
        self._log.write(done, "validation", flat, self.seconds)
        if self.best is None or self._worth(entry) > self._worth(self.best):
            self.best = entry
            self._weights = [np.array(variable) for variable in self._trainable()]
        self._reporter.progress(done / self._course.steps, f"dev {self.best['score']:.3f}")
        self.model.stop_training = self._is_over()

    # --- What is kept of it ---

    def _is_over(self) -> bool:
        """Whether it diverged, or had no better measurement for too long."""
        if self.diverged:
            return True
        if not self._trainer.patience or self.best is None:
            return False
        since = len(self.history) - 1 - self.history.index(self.best)
        return since >= self._trainer.patience

    def _worth(self, entry: Mapping[str, Any]) -> float:
        return worth(self._prepared.metric, entry["score"])

    def _learning_rate(self, step: int) -> float:
        optimizer = self._prepared.model.optimizer
        rate = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
        is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        return float(rate(step - 1)) if is_schedule else float(rate)

    def _trainable(self) -> list[keras.Variable]:
        return self._prepared.model.trainable_variables

    def _variables(self) -> dict[str, keras.Variable]:
        """All that a step reads and writes: weights, random numbers' seeds, moments, means."""
        model = self._prepared.model
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        unique = {id(variable): variable for variable in variables}
        return {f"variable_{number}": one for number, one in enumerate(unique.values())}

    def _save(self) -> None:
        arrays = {name: np.array(variable) for name, variable in self._variables().items()}
        arrays |= {f"best_{number}": value for number, value in enumerate(self._weights)}
        facts = {
            "identity": self._identity,
            "step": self._step,
            "history": self.history,
            "best": self.history.index(self.best) if self.best else None,
            "seconds": self.seconds,
            "timed": self._timed,
            "diverged": self.diverged,
        }
        write_state(self._state_path, facts, arrays)
        self._saved = time.monotonic()

    def _load(self) -> None:
        facts, arrays = read_state(self._state_path)
        if facts.get("identity") == self._identity:
            self._step, self.history = facts["step"], facts["history"]
            self.best = None if facts["best"] is None else self.history[facts["best"]]
            self._seconds_before, self.diverged = facts["seconds"], facts["diverged"]
            self._timed = list(map(tuple, facts["timed"]))
            best = [name for name in arrays if name.startswith("best_")]
            self._weights = [arrays.pop(f"best_{number}") for number in range(len(best))]
            self._to_restore = arrays
        self._logged = self._step // self._trainer.log_interval
        self._log.begin(self._step)


class StepLog:
    """`metrics.jsonl` and TensorBoard's files, as pretraining has them.

    A line has `step`, `split` (`train` or `validation`), the `seconds` that the run took so far,
    and numbers by their names: the mean `loss` since the last measurement and the
    `learning_rate`, or the metrics as `dev_accuracy`.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, METRICS_FILENAME)
        self._directory = os.path.join(folder, TENSORBOARD_DIRECTORY)
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def begin(self, step: int) -> None:
        """Drops what an earlier process wrote after the step from which the run goes on."""
        if not files.is_file(self._path):
            return
        lines = files.read_text(self._path).split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        files.write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, split: str, values: Mapping[str, float], seconds: float) -> None:
        """Adds a line."""
        # JSON has no word for what is not finite.
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "split": split, "seconds": round(seconds, 1), **finite}
        with files.open_append(self._path) as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if split not in self._writers:
            path = os.path.join(self._directory, split)
            self._writers[split] = tf.summary.create_file_writer(path)
        with self._writers[split].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writers[split].flush()


def write_state(path: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint, which appears when it is complete."""
    facts = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    temporary = f"{path}.tmp.npz"
    with contextlib.ExitStack() as stack:
        if files.is_remote(path):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cocolm_tf."))
            temporary = os.path.join(folder, STATE_FILENAME)
        np.savez(temporary, facts=facts, **arrays)
        files.rename(temporary, path)


def read_state(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a checkpoint; nothing where there is none."""
    if not files.is_file(path):
        return {}, {}
    with files.open_read(path) as file:
        arrays = dict(np.load(file))
    return json.loads(bytes(arrays.pop("facts"))), arrays


def save_model(prepared: Prepared, results: Mapping[str, Any], folder: str) -> None:
    """Saves the model as a preset, which is there when it is complete, with its card."""
    with files.new_folder(os.path.join(folder, PRESET_DIRECTORY), True, "config.json") as preset:
        prepared.model.save_to_preset(preset)
        write_model_card(preset, prepared.facts(results))


def _identity(spec: Mapping[str, Any]) -> str:
    """What a run is, whether it counts or not: what a search found best counts then."""
    return json.dumps({key: spec[key] for key in sorted(spec) if key != "save_preset"})


if __name__ == "__main__":
    serve(run_task)

"""What happens between steps: logs, a progress bar, checkpoints, the end of a hopeless run."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.errors import RestartableError
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training.checkpoints import Checkpoints, steps_taken, variable_paths
from cocolm_tf.training.preemption import StopSignal
from cocolm_tf.training.workers import Workers

METRICS_FILENAME = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"

# How many gradients a line names.
_NAMED = 5


class MetricsLog(keras.callbacks.Callback):
    """Writes every metric to `metrics.jsonl` and for TensorBoard.

    A training line holds the means over the steps since the line before it, of either split, so
    the model's metrics start anew with each. A line is an object with `step`, `split` (`train` or
    `validation`), `seconds` that the run took so far, attempts that ended early included, and the
    metrics by their names, null where they are not finite. Training lines also have
    `tokens_per_second` and, where the devices' peak is known, `mfu`: model FLOPs utilization, the
    share of the peak that the model's FLOPs reach.

    Args:
        directory: the run's folder; None, where another worker writes, leaves the metrics' starting
            anew, which all workers must do alike.
        first_step: int. Where the run goes on; later lines of an earlier attempt are dropped.
        interval: int. Steps between two lines.
        tokens: from a number of steps, counted from the first, the tokens of all of them.
        peak_seconds: likewise, the seconds that they would take at the peak of all devices
            together; None for not known.
        counts: likewise, what else is to be logged of them by name; None for nothing.

    Example:
    ```python
    log = MetricsLog("runs/first", 0, 100, tokens=lambda steps: steps * 32 * 128)
    pretrainer.fit(batches, callbacks=[log])
    ```
    """

    def __init__(
        self,
        directory: str | None,
        first_step: int,
        interval: int,
        tokens: Callable[[int], float],
        peak_seconds: Callable[[int], float] | None = None,
        counts: Callable[[int], Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self._path = os.path.join(directory, METRICS_FILENAME) if directory else ""
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        # The clock goes on from the last line: what a preemption undid was spent all the same.
        lines = read_lines(self._path) if directory else []
        spent = lines[-1].get("seconds", 0.0) if lines else 0.0
        if directory:
            if lines:
                kept = [line for line in lines if line["step"] <= first_step]
                text = "".join(json.dumps(line) + "\n" for line in kept)
                files.write_text(self._path, text)
            for split in ("train", "validation"):
                self._writers[split] = tf.summary.create_file_writer(
                    os.path.join(directory, TENSORBOARD_DIRECTORY, split)
                )
        self._interval = interval
        self._tokens, self._peak_seconds, self._counts = tokens, peak_seconds, counts
        self._lap = time.monotonic()
        self._start = self._lap - spent
        self._lap_step = first_step

    def has(self, step: int, split: str) -> bool:
        """Whether there is a line of a step."""
        lines = read_lines(self._path)
        return any((line["step"], line["split"]) == (step, split) for line in lines)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a training line when its time has come."""
        step = steps_taken(self.model)
        if step % self._interval:
            return
        now = time.monotonic()
        values = {name: float(value) for name, value in (logs or {}).items()}
        names = {"tokens_per_second": self._tokens, "mfu": self._peak_seconds}
        for name, amount in names.items():
            if amount:
                values[name] = (amount(step) - amount(self._lap_step)) / (now - self._lap)
        if self._counts:
            values |= self._counts(step)
        self._write(step, "train", values)
        self.model.reset_metrics()
        self._lap, self._lap_step = time.monotonic(), step

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes a validation line."""
        training = ("gradient_norm", "learning_rate", "skipped_updates")
        values = {k: float(v) for k, v in (logs or {}).items() if k not in training}
        step = steps_taken(self.model)
        self._write(step, "validation", values)
        self._lap, self._lap_step = time.monotonic(), step

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        if not self._path:
            return
        seconds = round(time.monotonic() - self._start, 1)
        # JSON has no word for what is not finite.
        finite = {k: value if math.isfinite(value) else None for k, value in values.items()}
        line = {"step": step, "split": split, "seconds": seconds, **finite}
        with files.open_append(self._path) as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        with self._writers[split].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writers[split].flush()


def skipped_in_a_row(model: TrainingStep) -> int:
    """How many updates were skipped since the last one that was not."""
    return int(model.skipped_in_a_row.numpy())


def read_lines(path: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics; none where there is no such file."""
    if not files.is_file(path):
        return []
    # What follows the last end of a line was being written when the run was killed.
    return [json.loads(line) for line in files.read_text(path).split("\n")[:-1]]


class ProgressBar(keras.callbacks.Callback):
    """A line on the terminal: steps, time left, loss and speed.

    Args:
        first_step: int. Where the run starts.
        train_steps: int. Where it ends.
        tokens: as of `MetricsLog`.
        peak_seconds: as of `MetricsLog`.

    Example:
    ```python
    bar = ProgressBar(0, 1000, tokens=lambda steps: steps * 32 * 128)
    pretrainer.fit(batches, verbose=0, callbacks=[bar])
    ```
    """

    def __init__(
        self,
        first_step: int,
        train_steps: int,
        tokens: Callable[[int], float],
        peak_seconds: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self._tokens, self._peak_seconds = tokens, peak_seconds
        self._bar = tqdm(
            total=train_steps,
            initial=first_step,
            unit="step",
            desc="pretraining",
            file=sys.stderr,
            mininterval=1.0,
            # A log file wants a line now and then, not one a second.
            miniters=None if sys.stderr.isatty() else max(1, train_steps // 200),
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar."""
        step = steps_taken(self.model)
        done, rate = step - self._bar.n, self._bar.format_dict["rate"] or 0.0
        tokens = self._tokens(step) - self._tokens(step - 1)
        told = f"loss {float(logs['loss']):.2f}, {rate * tokens:.0f} tokens/s"
        if self._peak_seconds:
            told += f", MFU {rate * (self._peak_seconds(step) - self._peak_seconds(step - 1)):.1%}"
        self._bar.set_postfix_str(told, refresh=False)
        self._bar.update(done)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Prints what a validation found, above the bar."""
        shown = ("loss", "mlm_loss", "copy_loss", "lm_loss", "scl_loss")
        losses = ", ".join(f"{k} {float(logs[k]):.3f}" for k in shown if k in logs)
        self._bar.write(f"step {self._bar.n}: validation {losses}", file=sys.stderr)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the bar as it is."""
        self._bar.refresh()

    def close(self) -> None:
        """Ends the line."""
        self._bar.close()


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves a checkpoint every so many steps; later where an update was just skipped.

    Weights after which no update succeeds are ruined, and would push out the sound ones.

    Example:
    ```python
    pretrainer.fit(batches, callbacks=[SaveCheckpoints(checkpoints, interval=5000)])
    ```
    """

    def __init__(self, checkpoints: Checkpoints, interval: int) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._interval = interval
        self._is_due = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves when the time has come; ends the run if the last time that failed."""
        self._is_due |= steps_taken(self.model) % self._interval == 0
        if self._is_due and not skipped_in_a_row(self.model):
            self._checkpoints.save()
            self._is_due = False
        self._checkpoints.check()


class ResumeMetrics(keras.callbacks.Callback):
    """Lets the first line after a resumption hold the means of the whole interval.

    `fit()` sets metrics to zero when it begins; this gives them back what a checkpoint says.

    Example:
    ```python
    step = checkpoints.restore()
    pretrainer.fit(batches, callbacks=[ResumeMetrics(checkpoints)])
    ```
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._is_done = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores them, the first time."""
        if not self._is_done:
            self._checkpoints.restore_metrics()
        self._is_done = True


class StopWhenAsked(keras.callbacks.Callback):
    """Saves a checkpoint and ends the run once any of its workers is told to stop.

    Args:
        signal: what tells this worker.
        checkpoints: of the run.
        workers: of the run.

    Example:
    ```python
    with StopSignal() as signal, signal.deferred():
        pretrainer.fit(batches, callbacks=[StopWhenAsked(signal, checkpoints, workers)])
    ```
    """

    def __init__(self, signal: StopSignal, checkpoints: Checkpoints, workers: Workers) -> None:
        super().__init__()
        self._signal = signal
        self._checkpoints = checkpoints
        self._workers = workers

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raises a `RestartableError` when it is time."""
        if not self._workers.any(self._signal.received):
            return
        skipped = skipped_in_a_row(self.model)
        if not skipped:
            self._checkpoints.save()
        self._checkpoints.wait()
        # Who ends first would be missed by the others.
        self._workers.wait_for_all()
        what = f"whose last {skipped} updates were skipped: it is not saved, and" if skipped else ""
        raise RestartableError(
            f"stopped by SIGTERM at step {steps_taken(self.model)}, {what or 'which is saved:'} "
            f"start{'ing' if skipped else ''} again with the same flags "
            + ("goes on from the checkpoint before." if skipped else "to go on.")
        )

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """As `on_train_batch_end`: a validation may be long."""
        self.on_train_batch_end(batch)


class TellSkippedUpdate(keras.callbacks.Callback):
    """Names the gradients that were not finite, once: when the first update was skipped for them.

    Args:
        interval: int. Steps between two looks; while updates are being skipped, it looks at once.

    Example:
    ```python
    pretrainer.fit(batches, callbacks=[TellSkippedUpdate(interval=100)])
    ```
    """

    def __init__(self, interval: int) -> None:
        super().__init__()
        self._interval = interval
        self._is_told = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells when there is something to tell."""
        if self._is_told:
            return
        is_due = steps_taken(self.model) % self._interval == 0
        if (is_due or skipped_in_a_row(self.model)) and self.model.skipped_at.numpy():
            self._is_told = True
            tqdm.write(skipped_update(self.model), file=sys.stderr)


def skipped_update(model: TrainingStep) -> str:
    """Says in three lines which gradients were not finite when a model skipped an update."""
    paths = {id(variable): path for path, variable in variable_paths(model).items()}
    names = [paths[id(variable)] for variable in model.trainable_variables]
    norms = dict(zip(names, model.skipped_norms.numpy().tolist(), strict=True))
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    ruined = [f"{name} ({norm})" for name, norm in norms.items() if name not in finite]
    largest = sorted(finite.items(), key=lambda item: -item[1])[:_NAMED]
    more = f" and {len(ruined) - _NAMED} more" if len(ruined) > _NAMED else ""
    scale = " The loss scale adapts to that." if model.compute_dtype == "float16" else ""
    return (
        f"step {int(model.skipped_at.numpy())}: update skipped, as gradients were not finite; told "
        f"once, then counted as skipped_updates.{scale}\n"
        f"  norms not finite, {len(ruined)} of {len(norms)}, first layers first: "
        f"{', '.join(ruined[:_NAMED]) + more or 'none, but their sum is not'}\n"
        f"  largest finite norms: "
        f"{', '.join(f'{name} ({norm:.3g})' for name, norm in largest) or 'none'}"
    )


class Profile(keras.callbacks.Callback):
    """Records what devices and host do in some steps, for TensorBoard's profiler.

    Args:
        directory: where TensorBoard looks; the profile is in `plugins/profile` in it.
        first_step: int. The first step to record, counted from 1.
        last_step: int. The last one. Of loops of several steps, whole loops are recorded.

    Example:
    ```python
    profile = Profile("runs/first/tensorboard", 100, 110)
    pretrainer.fit(batches, steps_per_epoch=200, callbacks=[profile])
    profile.close()
    ```
    """

    def __init__(self, directory: str, first_step: int, last_step: int) -> None:
        super().__init__()
        self._directory = directory
        self._first_step = first_step
        self._last_step = last_step
        self._begun_at: int | None = None
        self._trace = contextlib.ExitStack()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins to record when the time has come, and marks the step."""
        step = steps_taken(self.model)
        loop = self.model.steps_per_execution
        if self._begun_at is None and step < self._last_step and step + loop >= self._first_step:
            self._begun_at = step + 1
            tf.profiler.experimental.start(self._directory)
        if self._begun_at is not None:
            self._trace.enter_context(
                tf.profiler.experimental.Trace("train", step_num=step + 1, _r=1)
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the profile after the last step."""
        self._trace.close()
        if self._begun_at is not None and steps_taken(self.model) >= self._last_step:
            self.close()

    def close(self) -> None:
        """Writes what there is, if the run ends before the last step."""
        if self._begun_at is None:
            return
        self._trace.close()
        tf.profiler.experimental.stop()
        tqdm.write(
            f"profile of steps {self._begun_at} to {steps_taken(self.model)}: tensorboard "
            f"--logdir={self._directory}, or {self._directory}/plugins/profile",
            file=sys.stderr,
        )
        self._begun_at, self._last_step = None, 0


class StopHopelessRun(keras.callbacks.Callback):
    """Ends a run whose updates are skipped again and again.

    Args:
        limit: int. How many updates in a row may be skipped.
        checkpoints: of the run.

    Example:
    ```python
    pretrainer.fit(batches, callbacks=[StopHopelessRun(limit=100, checkpoints=checkpoints)])
    ```
    """

    def __init__(self, limit: int, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._limit = limit
        self._checkpoints = checkpoints

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raises a `UserError` when it is enough."""
        skipped = skipped_in_a_row(self.model)
        if skipped >= self._limit:
            raise self._checkpoints.hopeless(
                f"the last {skipped} updates were skipped, as their losses or gradients were not "
                "finite,"
            )

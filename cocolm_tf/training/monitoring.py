"""Reports of a run: metrics.jsonl and TensorBoard, a progress bar, skipped updates, a profile."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training.checkpoints import variable_paths

METRICS_FILENAME = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"

# How many gradients a line names.
_NAMED = 5
# Metrics that validation lines leave out.
_TRAINING = ("gradient_norm", "learning_rate", "skipped_updates")

# From a number of steps, counted from the first, to the sum of a quantity over them.
Sum = Callable[[int], float]


class MetricsLog:
    """Writes every metric to `metrics.jsonl` and for TensorBoard; without a directory, nothing."""

    # A line is an object with `step`, `split` (`train` or `validation`), `seconds` that the run
    # took so far, attempts that ended early included, and the metrics by their names, null where
    # they are not finite. Training lines also have `tokens_per_second`, and `mfu`, model FLOPs
    # utilization, where the time that the steps would take at the devices' peak is known.

    def __init__(
        self,
        directory: str | None,
        first_step: int,
        tokens: Sum,
        peak_seconds: Sum | None = None,
        counts: Callable[[int], Mapping[str, float]] | None = None,
    ) -> None:
        self._path = os.path.join(directory, METRICS_FILENAME) if directory else ""
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        # The clock continues from the last line: time for steps that a preemption undid counts too.
        lines = read_lines(self._path) if directory else []
        spent = lines[-1].get("seconds", 0.0) if lines else 0.0
        if directory:
            if lines:
                write_lines(self._path, lines, first_step)
            for split in ("train", "validation"):
                self._writers[split] = tf.summary.create_file_writer(
                    os.path.join(directory, TENSORBOARD_DIRECTORY, split)
                )
        self._tokens, self._peak_seconds, self._counts = tokens, peak_seconds, counts
        self._lap = time.monotonic()
        self._start = self._lap - spent
        self._lap_step = first_step

    def has(self, step: int, split: str) -> bool:
        """Whether there is a line of a step and split."""
        lines = read_lines(self._path)
        return any((line["step"], line["split"]) == (step, split) for line in lines)

    def write_training(self, step: int, logs: Mapping[str, Any]) -> None:
        """Writes the means over the steps since the last line, of either split."""
        now = time.monotonic()
        values = {name: float(value) for name, value in logs.items()}
        for name, amount in (("tokens_per_second", self._tokens), ("mfu", self._peak_seconds)):
            if amount:
                values[name] = (amount(step) - amount(self._lap_step)) / (now - self._lap)
        if self._counts:
            values |= self._counts(step)
        self._write(step, "train", values)

    def write_validation(self, step: int, logs: Mapping[str, Any]) -> None:
        """Writes the metrics of a validation."""
        values = {name: float(value) for name, value in logs.items() if name not in _TRAINING}
        self._write(step, "validation", values)

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        if self._path:
            seconds = time.monotonic() - self._start
            append_line(self._path, self._writers[split], step, split, seconds, values)
        self._lap, self._lap_step = time.monotonic(), step


def read_lines(path: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics; none where there is no such file."""
    if not files.is_file(path):
        return []
    # Text after the last line end was being written when the run was killed.
    return [json.loads(line) for line in files.read_text(path).split("\n")[:-1]]


def append_line(
    path: str,
    writer: tf.summary.SummaryWriter,
    step: int,
    split: str,
    seconds: float,
    values: Mapping[str, float],
) -> None:
    """Adds a line to a run's metrics, and its values to TensorBoard's file of the split."""
    # JSON has no numbers that are not finite.
    finite = {k: value if math.isfinite(value) else None for k, value in values.items()}
    line = {"step": step, "split": split, "seconds": round(seconds, 1), **finite}
    with files.open_append(path) as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    with writer.as_default(step):
        for name, value in values.items():
            tf.summary.scalar(name, value)
    writer.flush()


def write_lines(path: str, lines: list[dict[str, Any]], last_step: int) -> None:
    """Replaces a run's metrics by the lines up to a step."""
    kept = (json.dumps(line) + "\n" for line in lines if line["step"] <= last_step)
    files.write_text(path, "".join(kept))


class ProgressBar:
    """A line on the terminal: steps, time left, loss and throughput."""

    def __init__(
        self, first_step: int, train_steps: int, tokens: Sum, peak_seconds: Sum | None = None
    ) -> None:
        self._tokens, self._peak_seconds = tokens, peak_seconds
        self._bar = tqdm(
            total=train_steps,
            initial=first_step,
            unit="step",
            desc="training",
            file=sys.stderr,
            mininterval=1.0,
            # In a log file, a line now and then is enough.
            miniters=None if sys.stderr.isatty() else max(1, train_steps // 200),
        )

    def update(self, step: int, logs: Mapping[str, Any]) -> None:
        """Moves the bar to a step."""
        rate = self._bar.format_dict["rate"] or 0.0
        tokens = self._tokens(step) - self._tokens(step - 1)
        text = f"loss {float(logs['loss']):.2f}, {rate * tokens:.0f} tokens/s"
        if self._peak_seconds:
            text += f", MFU {rate * (self._peak_seconds(step) - self._peak_seconds(step - 1)):.1%}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def print_validation(self, step: int, logs: Mapping[str, Any]) -> None:
        """Prints the losses of a validation above the bar."""
        shown = ("loss", "mlm_loss", "copy_loss", "lm_loss", "scl_loss")
        losses = ", ".join(f"{k} {float(logs[k]):.3f}" for k in shown if k in logs)
        self._bar.write(f"step {step}: validation {losses}", file=sys.stderr)

    def close(self) -> None:
        """Closes the bar, which stays on the terminal."""
        self._bar.refresh()
        self._bar.close()


class Profile:
    """A profile of devices and host in some steps, counted from 1, for TensorBoard."""

    def __init__(self, directory: str, first_step: int, last_step: int) -> None:
        self._directory = directory
        self._first_step, self._last_step = first_step, last_step
        self._begun_at: int | None = None
        self._reached = 0

    @contextlib.contextmanager
    def record(self, first: int, last: int) -> Iterator[None]:
        """A context for one call of the compiled function, all of whose steps are recorded."""
        if self._begun_at is None and first <= self._last_step and last >= self._first_step:
            self._begun_at = first
            tf.profiler.experimental.start(self._directory)
        if self._begun_at is None:
            yield
            return
        with tf.profiler.experimental.Trace("train", step_num=first, _r=1):
            yield
        self._reached = last
        if last >= self._last_step:
            self.close()

    def close(self) -> None:
        """Writes the steps recorded so far, also where the run ends before the last one."""
        if self._begun_at is None:
            return
        tf.profiler.experimental.stop()
        tqdm.write(
            f"profile of steps {self._begun_at} to {self._reached}: tensorboard "
            f"--logdir={self._directory}, or {self._directory}/plugins/profile",
            file=sys.stderr,
        )
        self._begun_at, self._last_step = None, 0


def print_skipped_update(model: TrainingStep) -> None:
    """Prints, in three lines, which gradients were not finite when a model skipped an update."""
    paths = {id(variable): path for path, variable in variable_paths(model).items()}
    names = [paths[id(variable)] for variable in model.trainable_variables]
    norms = dict(zip(names, model.skipped_norms.numpy().tolist(), strict=True))
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    bad = [f"{name} ({norm})" for name, norm in norms.items() if name not in finite]
    largest = sorted(finite.items(), key=lambda item: -item[1])[:_NAMED]
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    scale = " The loss scale adapts to that." if model.compute_dtype == "float16" else ""
    text = (
        f"step {int(model.skipped_at.numpy())}: update skipped, as gradients were not finite; "
        f"reported once, then counted as skipped_updates.{scale}\n"
        f"  norms not finite, {len(bad)} of {len(norms)}, first layers first: "
        f"{', '.join(bad[:_NAMED]) + more or 'none, but their sum is not'}\n"
        f"  largest finite norms: "
        f"{', '.join(f'{name} ({norm:.3g})' for name, norm in largest) or 'none'}"
    )
    tqdm.write(text, file=sys.stderr)

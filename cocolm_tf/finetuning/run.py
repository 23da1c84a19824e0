"""One fine-tuning run, whatever its task, and the process that does it.

A run has the folder of its job, see `cocolm_tf.jobs`, where it leaves

    preset/          the model with the weights of its best measurement, with a model card
    predictions/     what that model predicts, in the format of its task
    metrics.jsonl    the log of its steps and measurements; the same in tensorboard/
    state.npz        until the run is done: the checkpoint that it resumes from
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
from cocolm_tf.costs.accelerators import describe_device
from cocolm_tf.finetuning.config import OptimizerConfig, TrainerConfig, from_dict
from cocolm_tf.finetuning.metrics import comparable
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.task import (
    METRICS_FILENAME,
    STATE_FILENAME,
    TENSORBOARD_DIRECTORY,
    Prepared,
)
from cocolm_tf.jobs import UNTIL_KEY, Reporter, serve
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.distribution import make_strategy, per_replica_batch
from cocolm_tf.training.model_card import write_model_card
from cocolm_tf.training.monitoring import append_line, read_lines, write_lines
from cocolm_tf.training.optimization import AdamW, WarmupDecay
from cocolm_tf.versions import own_versions

PRESET_DIRECTORY = "preset"
DIVERGED = {"diverged": True, "headline": "diverged"}
"""The results of a run whose outputs were not finite at its first measurement."""

_SECONDS_BETWEEN_LOSS_READS = 1.0


def run_task(
    spec: Mapping[str, Any],
    folder: str,
    reporter: Reporter,
    until: float = 0.0,
    distribution_strategy: str = "one_device",
    tpu: str = "",
) -> dict[str, Any]:
    """Trains a task's model, measures it regularly, and keeps the weights of the best measurement.

    A run whose process was killed resumes from its last checkpoint, and gives the same results as
    one that was not interrupted.

    Args:
        spec: What `Task.spec()` returned.
        folder: The run's folder.
        reporter: Receives what the run reads and how far it is.
        until: The share of the measurements after which to pause, with a checkpoint: 1 pauses after
            all of them, 0 never.
        distribution_strategy: `one_device`, `mirrored` for all GPUs of the machine, or `tpu`.
        tpu: Address of the TPU, or `local`.

    Returns:
        What JSON can hold: `task`, `metric`; `score`, that of the best measurement, and `dev`, all
        its metrics; `best_epoch` and `best_step`, when that was; `epochs`, all measurements, and
        `evaluations`, how many a whole run has; `steps_per_epoch`; `data`, what was read;
        `examples_per_second`, `seconds`, `parameters` (of the encoder), `device` and `versions`.
        Where the task has `save_preset`, what `Prepared.artifacts` returned, too. Of a run that
        diverged before it had any finite measurement only `diverged`, true; of one that was paused
        `until` besides.

    Raises:
        UserError: If the data, the preset or a setting is not what it should be.

    Example:
    ```python
    run_task(task.spec(), "runs/rte/seed_0", Reporter())["score"]
    ```
    """
    task = task_of(spec)
    config = from_dict(task.config, "the run's configuration")
    with contextlib.ExitStack() as stack:
        if distribution_strategy != "one_device":
            stack.enter_context(make_strategy(distribution_strategy, tpu).scope())
        trainer, strategy = config.trainer, tf.distribute.get_strategy()
        per_replica_batch(trainer.batch_size, trainer.micro_batches, strategy)
        prepared = task.prepare(config)
        reporter.say(prepared.summary)
        batches, steps, rows = prepared.training()
        schedule = EvaluationSchedule.of(trainer, steps, rows)
        model = prepared.model
        model.compile(
            build_optimizer(config.optimizer, schedule.steps, model, model.backbone),
            metrics=[],
            jit_compile=config.runtime.jit_compile,
            micro_batches=trainer.micro_batches,
            steps_per_execution=trainer.steps_per_execution,
            **prepared.compile_arguments(),
        )
        training = Training(prepared, schedule, trainer, folder, reporter, _identity(spec))
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
            preset = os.path.join(folder, PRESET_DIRECTORY)
            # The folder appears when it is complete.
            with files.new_folder(preset, True, "config.json") as preset:
                model.save_to_preset(preset)
                write_model_card(preset, prepared.facts(results))
    if until:
        return results | {UNTIL_KEY: until}
    files.remove(os.path.join(folder, STATE_FILENAME))
    return results


def build_optimizer(
    config: OptimizerConfig, total_steps: int, model: keras.Model, backbone: CocoLMBackbone
) -> AdamW:
    """Builds the optimizer of an encoder with a head, for a run of so many steps."""
    warmup_steps = math.ceil(config.warmup_fraction * total_steps)
    optimizer = AdamW(
        WarmupDecay(config.learning_rate, warmup_steps, total_steps),
        weight_decay=config.weight_decay,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
        global_clipnorm=config.clip_norm or None,
    )
    trainable = model.trainable_variables
    optimizer.exclude_from_weight_decay(var_list=[v for v in trainable if len(v.shape) < 2])
    if config.layer_decay < 1:
        depths = layer_depths(backbone)
        top = backbone.num_layers + 1
        for variable in trainable:
            below = top - depths.get(id(variable), top)
            optimizer.scale_learning_rate([variable], config.layer_decay**below)
    return optimizer


def layer_depths(backbone: CocoLMBackbone) -> dict[int, int]:
    """The depth of each of an encoder's variables, by its `id`: 1 is the lowest layer's."""
    # 0 is that of the embeddings and of the relative positions, which all layers share.
    depths = {id(variable): 0 for variable in backbone.variables}
    for number, block in enumerate(backbone.blocks, start=1):
        depths |= {id(variable): number for variable in block.variables}
    return depths


class EvaluationSchedule(NamedTuple):
    """How long a run is, and when it is measured."""

    steps: int  # Of the whole run
    interval: int  # Between two measurements
    steps_per_epoch: int
    rows_per_step: float  # Examples, on average

    @classmethod
    def of(cls, trainer: TrainerConfig, steps_per_epoch: int, rows: int) -> "EvaluationSchedule":
        """The schedule that a configuration asks for, given an epoch's steps and examples."""
        loop = trainer.steps_per_execution
        steps = trainer.steps or trainer.epochs * steps_per_epoch
        interval = min(steps, trainer.validation_interval or steps_per_epoch)
        # Multiples of `steps_per_execution`: the devices run so many steps as one loop.
        steps, interval = (-(-count // loop) * loop for count in (steps, interval))
        return cls(steps, interval, steps_per_epoch, rows / steps_per_epoch)

    @property
    def evaluations(self) -> int:
        """How many measurements there are."""
        return -(-self.steps // self.interval)

    def end(self, evaluation: int) -> int:
        """The step after which a measurement, counted from 0, is made."""
        return min(self.steps, (evaluation + 1) * self.interval)

    def rest(self, step: int, evaluations: int) -> Iterator[tuple[int, int, int]]:
        """What is left, in groups: the first evaluation, how many there are, steps to each."""
        # `fit()` takes one number of steps for all its epochs, so those of a group have equally
        # many; a run that resumes between two evaluations has fewer to the next.
        found = []
        for evaluation in range(evaluations):
            begin = self.end(evaluation - 1) if evaluation else 0
            if self.end(evaluation) > step:
                found.append((evaluation, self.end(evaluation) - max(step, begin)))
        for length, group in itertools.groupby(found, lambda one: one[1]):
            numbers = [evaluation for evaluation, _ in group]
            yield numbers[0], len(numbers), length


class _NonBlockingCallbacks(keras.callbacks.CallbackList):
    """Callbacks that get the logs of a step as tensors."""

    # Keras's own list reads every number of every step, which makes the devices wait for the host.

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class Training(keras.callbacks.Callback):
    """Trains a compiled model, keeps the weights of its best measurement, and reports progress."""

    # `identity` tells runs apart: a checkpoint with another identity is not resumed from.
    # One of Keras's epochs is the steps up to an evaluation.

    def __init__(
        self,
        prepared: Prepared,
        schedule: EvaluationSchedule,
        trainer: TrainerConfig,
        folder: str,
        reporter: Reporter,
        identity: str,
    ) -> None:
        super().__init__()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.diverged = False
        self._prepared, self._schedule, self._trainer = prepared, schedule, trainer
        self._reporter, self._identity = reporter, identity
        self._folder = folder
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        self._weights: list[np.ndarray] = []
        self._step = self._interval_begin = 0  # steps done now, and at the last evaluation
        self._to_restore: dict[str, np.ndarray] | None = None
        self._started = self._saved = self._interval_started = time.monotonic()
        self._seconds_before = 0.0
        self._logged = 0
        self._last_loss_read = 0.0
        # (steps, seconds) up to each evaluation; the first is removed when there is a second.
        self._timed: list[tuple[int, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds that the run took, those of its earlier processes included."""
        return self._seconds_before + time.monotonic() - self._started

    def results(self) -> dict[str, Any]:
        """The results, for JSON."""
        best, metric = self.best, self._prepared.metric
        steps, seconds = map(sum, zip(*self._timed, strict=True))
        return {
            "headline": f"{metric} {best['score']:.4f} in epoch {best['epoch']:g}",
            "score": best["score"],
            "dev": best["dev"],
            "best_epoch": best["epoch"],
            "best_step": best["step"],
            "epochs": self.history,
            "evaluations": self._schedule.evaluations,
            # Of training alone, without the steps to the first evaluation, if there are others.
            "examples_per_second": self._schedule.rows_per_step * steps / seconds,
            "seconds": self.seconds,
        }

    def run(self, batches: tf.data.Dataset, until: float = 0.0) -> None:
        """Trains to the end, or until such a share of the measurements is made, and then saves."""
        schedule, model = self._schedule, self._prepared.model
        evaluations = math.ceil(until * schedule.evaluations) or schedule.evaluations
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._load()
        for first, count, steps in schedule.rest(self._step, evaluations):
            if self._is_over():
                break
            model.fit(
                batches.skip(self._step),
                steps_per_epoch=steps,
                initial_epoch=first,
                epochs=first + count,
                callbacks=_NonBlockingCallbacks([self], add_history=True, model=model),
                shuffle=False,
                verbose=0,
            )
        if until:
            model.reset_metrics()  # as Keras does at the beginning of its next epoch
            self._save()

    def restore_best(self) -> None:
        """Gives the model the weights of its best measurement."""
        for variable, value in zip(self._trainable(), self._weights, strict=True):
            variable.assign(value)

    # --- What Keras calls ---

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._to_restore is not None:
            # Not before `fit()`, which resets the mean of the loss when it begins.
            for name, variable in self._variables().items():
                variable.assign(self._to_restore[name])
            self._to_restore = None
        self._interval_begin = self._step
        self._interval_started = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step = self._interval_begin + batch
        if time.monotonic() - self._saved >= 60 * self._trainer.checkpoint_minutes:
            self._save()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Reading the loss makes the host wait for the devices, so it is not done at every step.
        done, now = self._interval_begin + batch + 1, time.monotonic()
        is_logged = done // self._trainer.log_interval > self._logged
        if not is_logged and now - self._last_loss_read < _SECONDS_BETWEEN_LOSS_READS:
            return
        self._last_loss_read, loss = now, float(logs["loss"])
        if is_logged:
            self._logged = done // self._trainer.log_interval
            rate = self._learning_rate(done)
            self._write_log(done, "train", {"loss": loss, "learning_rate": rate})
        score = f", dev {self.best['score']:.3f}" if self.best else ""
        steps, epoch = self._schedule.steps, self._schedule.steps_per_epoch
        self._reporter.progress(
            done / steps,
            f"epoch {-(-done // epoch)}/{-(-steps // epoch)}, loss {loss:.3f}{score}",
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        done = self._schedule.end(epoch)
        self._timed.append((done - self._interval_begin, time.monotonic() - self._interval_started))
        if len(self._timed) == 2:
            # The time to the first evaluation includes compiling.
            del self._timed[0]
        self._step = done
        try:
            scores = self._prepared.measure()
        except FloatingPointError:
            self.diverged = True
            self.model.stop_training = True
            return
        score = next(iter(scores.values()))[self._prepared.metric]
        number = done / self._schedule.steps_per_epoch
        entry = {
            "epoch": int(number) if number == int(number) else round(number, 3),
            "step": done,
            "loss": float(logs["loss"]),
            "score": score,
            "dev": {part: dict(metrics) for part, metrics in scores.items()},
        }
        self.history.append(entry)
        flat = {f"{part}_{name}": v for part, of in scores.items() for name, v in of.items()}
        self._write_log(done, "validation", flat)
        if self.best is None or self._gain(entry) > self._gain(self.best):
            self.best = entry
            self._weights = [np.array(variable) for variable in self._trainable()]
        self._reporter.progress(done / self._schedule.steps, f"dev {self.best['score']:.3f}")
        self.model.stop_training = self._is_over()

    # --- The log, when to stop, and checkpoints ---

    def _write_log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a line to `metrics.jsonl`, and its values to TensorBoard's files."""
        # Training lines have the mean `loss` since the last measurement and the `learning_rate`;
        # validation lines the metrics, as `dev_accuracy`.
        if split not in self._writers:
            path = os.path.join(self._folder, TENSORBOARD_DIRECTORY, split)
            self._writers[split] = tf.summary.create_file_writer(path)
        log = os.path.join(self._folder, METRICS_FILENAME)
        append_line(log, self._writers[split], step, split, self.seconds, values)

    def _is_over(self) -> bool:
        """Whether it diverged, or `patience` measurements in a row were no better than the best."""
        if self.diverged:
            return True
        if not self._trainer.patience or self.best is None:
            return False
        since = len(self.history) - 1 - self.history.index(self.best)
        return since >= self._trainer.patience

    def _gain(self, entry: Mapping[str, Any]) -> float:
        return comparable(self._prepared.metric, entry["score"])

    def _learning_rate(self, step: int) -> float:
        optimizer = self._prepared.model.optimizer
        rate = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
        is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        return float(rate(step - 1)) if is_schedule else float(rate)

    def _trainable(self) -> list[keras.Variable]:
        return self._prepared.model.trainable_variables

    def _variables(self) -> dict[str, keras.Variable]:
        """All variables that a step reads or writes: weights, seeds, moments, means of metrics."""
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
        write_state(os.path.join(self._folder, STATE_FILENAME), facts, arrays)
        self._saved = time.monotonic()

    def _load(self) -> None:
        facts, arrays = read_state(os.path.join(self._folder, STATE_FILENAME))
        if facts.get("identity") == self._identity:
            self._step, self.history = facts["step"], facts["history"]
            self.best = None if facts["best"] is None else self.history[facts["best"]]
            self._seconds_before, self.diverged = facts["seconds"], facts["diverged"]
            self._timed = list(map(tuple, facts["timed"]))
            best = [name for name in arrays if name.startswith("best_")]
            self._weights = [arrays.pop(f"best_{number}") for number in range(len(best))]
            self._to_restore = arrays
        self._logged = self._step // self._trainer.log_interval
        log = os.path.join(self._folder, METRICS_FILENAME)
        if files.is_file(log):  # It may have lines of steps after the checkpoint.
            write_lines(log, read_lines(log), self._step)


def write_state(path: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint under another name and renames it, so that none is incomplete."""
    facts = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    temporary = f"{path}.tmp.npz"
    with contextlib.ExitStack() as stack:
        if files.is_remote(path):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cocolm_tf."))
            temporary = os.path.join(folder, STATE_FILENAME)
        np.savez(temporary, facts=facts, **arrays)
        files.rename(temporary, path)


def read_state(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads the facts and the arrays of a checkpoint; both are empty where there is none."""
    if not files.is_file(path):
        return {}, {}
    with files.open_read(path) as file:
        arrays = dict(np.load(file))
    return json.loads(bytes(arrays.pop("facts"))), arrays


def _identity(spec: Mapping[str, Any]) -> str:
    """What a run is, but for `save_preset`, as JSON."""
    # A run of the search does not save a preset; the run that resumes from its checkpoint does.
    return json.dumps({key: spec[key] for key in sorted(spec) if key != "save_preset"})


if __name__ == "__main__":
    serve(run_task)

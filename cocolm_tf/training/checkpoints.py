"""Checkpoints: the whole state of a run, from which it can resume."""

import contextlib
import operator
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training.distribution import Workers
from cocolm_tf.training.optimization import ShardedSlot

_FILE = re.compile(r"ckpt-(\d+)\.(index|data-.*)")
_UNFINISHED = "unfinished"
_STATE, _METRICS = "state/", "metrics/"
# The keys of variables in checkpoints from before paths were the keys.
_NUMBERED = re.compile(r"\d+/")
# The errors of reading or writing a damaged file, and of a full disk.
_FAILURES = (tf.errors.OpError, OSError, ValueError, IndexError)


class Checkpoints:
    """The checkpoints of a run."""

    # One holds every variable of the model and of its optimizer, which counts the steps, and the
    # sums of the metrics. Nothing else is needed: data, masks, crops, samples and dropout are
    # functions of the step.
    #
    # They are TensorFlow's checkpoints, `ckpt-<step>`, keyed by the paths of the variables:
    # `state/backbone/blocks/0/query/kernel`. One is written under another name while training
    # continues, read back and compared, and only then gets its name, so that a run that is killed
    # leaves none that is incomplete. The chief alone reads and writes them. (`tf.train.Checkpoint`
    # would key the optimizer's variables by their positions, and `tf.train.CheckpointManager`
    # neither verifies, nor renames, nor keeps those of chosen steps.) The latest `keep` are kept,
    # and for ever those of steps that are multiples of `keep_interval`.

    def __init__(
        self,
        directory: str,
        model: TrainingStep,
        keep: int,
        keep_interval: int = 0,
        workers: Workers | None = None,
    ) -> None:
        self._directory = directory
        self._model = model
        self._keep = keep
        self._keep_interval = keep_interval
        self._workers = workers or Workers(model.distribute_strategy)
        self._metrics = {
            f"{_METRICS}{metric.name}/{number}": variable.value
            for metric in model.metrics
            for number, variable in enumerate(metric.variables)
        }
        self._state = {
            _STATE + path: variable.value for path, variable in _state_variables(model).items()
        } | _averages(model)
        self._restored_metrics: dict[str, np.ndarray] = {}
        self._saved_step: int | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def save(self) -> None:
        """Copies the present values, on all workers, and writes them in the background."""
        self.wait()
        step = steps_taken(self._model)
        if step == self._saved_step:
            return
        bad = [name for name, variable in self._state.items() if not _is_finite(variable)]
        if bad:
            raise self.failure(f"{len(bad)} of the run's variables are not finite")
        self._saved_step = step
        values = {name: variable.numpy() for name, variable in self._metrics.items()}
        for name, variable in self._state.items():
            # Each worker has a part of a sharded moment.
            if self._workers.is_chief or isinstance(variable, ShardedSlot):
                values[name] = variable.numpy()
        if self._workers.is_chief:
            self._writing = self._writer.submit(self._write, step, values)

    def failure(self, why: str) -> UserError:
        """Sets aside checkpoints of ruined weights; returns the error that ends the run."""
        self.wait()
        step = steps_taken(self._model)
        updated = step - int(self._model.skipped_in_a_row.numpy())
        steps = checkpoint_steps(self._directory)
        sound = [one for one in steps if one < updated]
        if self._workers.is_chief and sound != steps:
            self._set_aside([one for one in steps if one >= updated])
        then = f"resumes from its last sound checkpoint, of step {sound[-1]}" if sound else ""
        return UserError(
            f"{why} at step {step}: lower optimizer.learning_rate, lengthen "
            "optimizer.warmup_steps, or train in another runtime.precision, and start again with "
            f"--model_dir={os.path.dirname(self._directory)}: the run "
            f"{then or 'has no sound checkpoint and begins at step 0'}."
        )

    def check(self) -> None:
        """Raises the error of a write that has failed by now, without waiting."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on the disk; raises `UserError` if it failed."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def restore(self, step: int | None = None, directory: str = "") -> int:
        """Loads the latest whole checkpoint or a step's, also another run's; returns the step."""
        # Without a checkpoint nothing is loaded. Checkpoints of another model are a `UserError`.
        found = None
        if self._workers.is_chief:
            path = os.path.join(directory or self._directory, f"ckpt-{step}")
            found = self._read_latest() if step is None else self._read_step(path)
        if not self._workers.any(found is not None):
            return steps_taken(self._model)
        variables = self._state | self._metrics
        values = [(found or {}).get(name, _zeros_like(v)) for name, v in variables.items()]
        values = dict(zip(variables, self._workers.from_chief(values), strict=True))
        for name, variable in self._state.items():
            variable.assign(values[name])
        self._restored_metrics = {name: values[name] for name in self._metrics}
        self._saved_step = None if directory else steps_taken(self._model)
        return steps_taken(self._model)

    def restore_metrics(self) -> None:
        """Sets the metrics to the sums that the restored checkpoint has of them."""
        strategy, values = self._model.distribute_strategy, self._restored_metrics

        def assign() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            is_first = tf.equal(replica, 0)
            for name, value in values.items():
                # A metric's value is the sum of its values on the replicas.
                self._metrics[name].assign(tf.where(is_first, value, tf.zeros_like(value)))

        tf.function(lambda: strategy.run(assign), autograph=False)()

    def _write(self, step: int, values: dict[str, np.ndarray]) -> None:
        try:
            with _unfinished(self._directory) as unfinished:
                _write_verified(os.path.join(unfinished, f"ckpt-{step}"), values)
                # The index comes last: without it, there is no checkpoint.
                for path, _ in reversed(_files_in(unfinished)):
                    files.rename(path, os.path.join(self._directory, os.path.basename(path)))
            files.sync(self._directory)
            self._drop_superfluous()
        except _FAILURES as error:
            steps = checkpoint_steps(self._directory)
            rest = f"those up to step {steps[-1]} are whole" if steps else "there is none yet"
            raise UserError(
                f"the checkpoint of step {step} could not be written into {self._directory} "
                f"({_reason(error)}); {rest}: make room and start again with the same flags."
            ) from error

    def _drop_superfluous(self) -> None:
        steps = checkpoint_steps(self._directory)
        kept = set(steps[-self._keep :])
        if self._keep_interval:
            kept |= {step for step in steps if step % self._keep_interval == 0}
        _note_latest(self._directory, sorted(kept))
        for path, step in _files_in(self._directory):
            if step not in kept:
                files.remove(path)

    def _read_latest(self) -> dict[str, np.ndarray] | None:
        """The values of the latest checkpoint that is whole; damaged ones are set aside."""
        damaged = []
        for step in reversed(checkpoint_steps(self._directory)):
            path = os.path.join(self._directory, f"ckpt-{step}")
            try:
                values = _read_finite(path)
            except _FAILURES as error:
                damaged.append(step)
                print(f"{path} is damaged ({_reason(error)}).", file=sys.stderr)
                continue
            self._check(path, values)
            if damaged:
                self._set_aside(damaged)
                print(f"The run goes back to step {step}.", file=sys.stderr)
            return values
        if damaged:
            raise UserError(
                f"all checkpoints in {self._directory} are damaged: restore one from a backup, or "
                "give another --model_dir."
            )
        return None

    def _read_step(self, path: str) -> dict[str, np.ndarray]:
        try:
            values = _read_finite(path)
        except _FAILURES as error:
            raise UserError(f"{path} cannot be read ({_reason(error)}).") from error
        self._check(path, values)
        return values

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that they are not counted among those to keep."""
        rest = [step for step in checkpoint_steps(self._directory) if step not in steps]
        _note_latest(self._directory, rest)
        for path, step in _files_in(self._directory):
            if step in steps:
                name = f"damaged-{os.path.basename(path)}"
                files.rename(path, os.path.join(self._directory, name))

    def _check(self, path: str, values: dict[str, np.ndarray]) -> None:
        """Refuses a checkpoint whose variables are not exactly those of the model."""
        found = {
            name.removeprefix(_STATE): f"{value.dtype.name} {list(value.shape)}"
            for name, value in values.items()
            if name.startswith(_STATE)
        }
        if any(map(_NUMBERED.match, found)):
            raise UserError(
                f"{path} is of a version that numbered the variables instead of naming them: go "
                "on with that version, or make a preset of the checkpoint by its "
                "export_checkpoints.py and start a new --model_dir from that --init_preset."
            )
        wanted = {
            name.removeprefix(_STATE): f"{variable.dtype.name} {variable.shape.as_list()}"
            for name, variable in self._state.items()
        }
        others = [
            f"{name} ({found[name]}, not {kind})"
            for name, kind in wanted.items()
            if found.get(name, kind) != kind
        ]
        differences = {
            "the checkpoint lacks": [name for name in wanted if name not in found],
            "the model lacks": sorted(found.keys() - wanted.keys()),
            "of another shape or type is": others,
        }
        if any(differences.values()):
            text = "; ".join(
                f"{what} {_some(names)}" for what, names in differences.items() if names
            )
            run = os.path.dirname(self._directory)
            raise UserError(
                f"{path} does not fit this configuration: {text}. Give another --model_dir, or "
                f"the configuration in {os.path.join(run, 'config.yaml')}."
            )


def checkpoint_steps(directory: str) -> list[int]:
    """The steps that there are checkpoints of, in order."""
    return sorted(step for path, step in _files_in(directory) if path.endswith(".index"))


def steps_taken(model: TrainingStep) -> int:
    """The number of steps that a model has been trained for, the skipped ones included."""
    # `int()` of the variable itself fails where it is mirrored.
    return int(model.optimizer.iterations.numpy())


def variable_paths(model: TrainingStep) -> dict[str, keras.Variable]:
    """A model's variables by the attributes that lead to them: `backbone/blocks/0/key/bias`."""
    # Unlike Keras's paths, these depend neither on the order in which layers are made nor on what
    # else the process has made, and the layers of two models inside one have different ones. A
    # layer without a public attribute, as in a functional model, goes by its name; layers that
    # several others share, by the shortest path. Variables of metrics are left out, and those of
    # seed generators, which every step sets anew. Two variables of one path are a `ValueError`.
    named = {id(variable) for metric in model.metrics for variable in metric.variables}
    named |= {id(generator.state) for generator in model.seed_generators()}
    paths: dict[str, keras.Variable] = {}
    seen, queue = {id(model)}, [("", model)]
    for prefix, layer in queue:  # The queue grows in the loop: breadth first.
        children = sorted(_sublayers(layer), key=operator.itemgetter(0))
        below = {id(variable) for _, child in children for variable in child.variables}
        for variable in layer.variables:
            if id(variable) in below | named:
                continue
            path = prefix + variable.name
            if path in paths:
                raise ValueError(f"two variables of the layer {layer.name} are called {path}.")
            paths[path] = variable
            named.add(id(variable))
        new = [(name, child) for name, child in children if id(child) not in seen]
        seen |= {id(child) for _, child in new}
        queue += [(f"{prefix}{name}/", child) for name, child in new]
    return paths


def _sublayers(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """The layers directly inside a layer, by the attributes that hold them."""
    found = set()

    def layers_in(name: str, value: object) -> Iterator[tuple[str, keras.Layer]]:
        if isinstance(value, keras.Layer):
            found.add(id(value))
            yield name, value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from layers_in(f"{name}/{key}", item)
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                yield from layers_in(f"{name}/{number}", item)

    for name, value in vars(layer).items():
        if not name.startswith("_"):
            yield from layers_in(name, value)
    if isinstance(layer, keras.Model):
        yield from ((one.name, one) for one in layer.layers if id(one) not in found)


def _state_variables(model: TrainingStep) -> dict[str, keras.Variable | ShardedSlot]:
    """The variables that a checkpoint holds, metrics aside, by path."""
    paths, learned = variable_paths(model), {id(v) for v in model.trainable_variables}
    slots = {
        f"optimizer/{name}/{path}": slot
        for path, variable in paths.items()
        if id(variable) in learned
        for name, slot in model.optimizer.slots(variable).items()
    }
    counters = {f"optimizer/{one.name}": one for one in model.optimizer.counters()}
    return paths | counters | slots


def _averages(model: TrainingStep) -> dict[str, tf.Variable]:
    """The moving averages of a model's weights, if it has any, as a checkpoint names them."""
    if not model.averages:
        return {}
    path_of = {id(variable): path for path, variable in variable_paths(model).items()}
    return {
        f"{_STATE}average/{path_of[id(variable)]}": average
        for variable, average in zip(model.trainable_variables, model.averages, strict=True)
    }


def _some(names: Sequence[str], count: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _files_in(directory: str) -> list[tuple[str, int]]:
    """The files of checkpoints and their steps, indices first: without one, there is none."""
    found = [match for match in map(_FILE.fullmatch, files.list_dir(directory)) if match]
    found.sort(key=lambda match: match[2] != "index")
    return [(os.path.join(directory, match[0]), int(match[1])) for match in found]


@contextlib.contextmanager
def _unfinished(directory: str) -> Iterator[str]:
    """A local folder to write a checkpoint into: the same one each time, or a temporary one."""
    if files.is_remote(directory):
        files.make_dirs(directory)
        with tempfile.TemporaryDirectory(prefix="cocolm_tf.") as unfinished:
            yield unfinished
        return
    unfinished = os.path.join(directory, _UNFINISHED)
    files.remove_tree(unfinished)
    files.make_dirs(unfinished)
    try:
        yield unfinished
    finally:
        files.remove_tree(unfinished)


def _write_verified(path: str, values: dict[str, np.ndarray]) -> None:
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=list(values.values()),
        )
    for file, _ in _files_in(os.path.dirname(path)):
        files.sync(file)
    reader = tf.train.load_checkpoint(path)
    for name, value in values.items():
        if reader.get_tensor(name).tobytes() != value.tobytes():
            raise OSError(f"{name} reads otherwise than it was written")


def _read(path: str) -> dict[str, np.ndarray]:
    """All values of a checkpoint; TensorFlow checks the checksums in it as it reads."""
    directory, prefix = os.path.split(path)
    # Copied first: remote files are read in blocks of 64 MB, and the values not in their order.
    names = [name for name in files.list_dir(directory) if name.startswith(f"{prefix}.")]
    with files.local_copy(directory, names) as local:
        reader = tf.train.load_checkpoint(os.path.join(local, prefix))
        wanted = reader.get_variable_to_shape_map()
        return {
            name: reader.get_tensor(name) for name in wanted if name.startswith((_STATE, _METRICS))
        }


def _read_finite(path: str) -> dict[str, np.ndarray]:
    values = _read(path)
    for name, value in values.items():
        if name.startswith(_STATE) and not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite")
    return values


def _is_finite(variable: tf.Variable | ShardedSlot) -> bool:
    """Whether all values are finite, computed on the device."""
    value = tf.convert_to_tensor(variable)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))


def _note_latest(directory: str, steps: list[int]) -> None:
    """Writes the file that `tf.train.latest_checkpoint` reads."""
    if not steps:
        files.remove(os.path.join(directory, "checkpoint"))
        return
    lines = [f'model_checkpoint_path: "ckpt-{steps[-1]}"']
    lines += [f'all_model_checkpoint_paths: "ckpt-{step}"' for step in steps]
    files.write_text(os.path.join(directory, "checkpoint"), "\n".join(lines) + "\n")


def _zeros_like(variable: tf.Variable) -> np.ndarray:
    return np.zeros(variable.shape, variable.dtype.as_numpy_dtype)


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return " ".join(text.split())

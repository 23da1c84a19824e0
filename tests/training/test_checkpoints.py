import gc
import random
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training import checkpoints as module
from cocolm_tf.training.build import build_optimizer, build_pretrainer
from cocolm_tf.training.checkpoints import (
    Checkpoints,
    checkpoint_steps,
    steps_taken,
    variable_paths,
)
from cocolm_tf.training.optimization import AdamW, ShardedAdamW


class TwoLayers(TrainingStep):
    """Has two layers of one shape, which it makes in the order of their names or in the other."""

    loss_weights = {"loss": 1.0}

    def __init__(self, backwards: bool = False, optimizer: type[AdamW] = AdamW):
        super().__init__()
        for name in ("second", "first") if backwards else ("first", "second"):
            layer = keras.layers.Dense(2, use_bias=False)
            layer.build((None, 3))
            setattr(self, name, layer)
        self.built = True
        self.compile(optimizer(0.1))

    def seed_generators(self):
        return iter(())

    def meter_names(self):
        return []


@pytest.fixture
def pretrainer(tiny):
    """Makes a compiled pretrainer."""

    def make(**changes):
        config = tiny(**changes)
        pretrainer = build_pretrainer(config, mask_token_id=59)
        pretrainer.compile(build_optimizer(config.optimizer, 10, pretrainer))
        return pretrainer

    return make


def state_of(model) -> list[np.ndarray]:
    variables = [*model.trainable_variables, *model.optimizer.variables]
    return [variable.numpy() for variable in variables]


def move(model, step: int, seed: int) -> None:
    """Gives everything that a run changes another value."""
    rng = np.random.default_rng(seed)
    for variable in [*model.trainable_variables, *model.optimizer.variables]:
        if variable.shape:
            variable.assign(rng.normal(size=variable.shape))
    model.skipped_in_a_row.assign(seed)
    model.loss_scale.assign(2.0**seed)
    model.optimizer.iterations.assign(step)


def save(folder: Path, model, steps: list[int] | None = None, **options) -> None:
    """Saves checkpoints of the given steps, by default of the present one."""
    checkpoints = Checkpoints(str(folder), model, **({"keep": 9} | options))
    for step in [steps_taken(model)] if steps is None else steps:
        model.optimizer.iterations.assign(step)
        checkpoints.save()
    checkpoints.wait()


def restore(folder: Path, model) -> int:
    return Checkpoints(str(folder), model, keep=9).restore()


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in folder.glob("ckpt-*.index"))


def test_a_new_run_stands_at_step_0(tmp_path: Path):
    assert restore(tmp_path / "new", TwoLayers()) == 0
    assert not checkpoint_steps(str(tmp_path / "new"))


def test_all_of_a_run_is_restored(tmp_path: Path):
    model = TwoLayers()
    move(model, step=7, seed=5)
    save(tmp_path, model)
    assert checkpoint_steps(str(tmp_path))

    other = TwoLayers()
    move(other, step=3, seed=6)
    assert restore(tmp_path, other) == 7
    for restored, saved in zip(state_of(other), state_of(model), strict=True):
        np.testing.assert_array_equal(restored, saved)
    assert int(other.skipped_in_a_row) == 5
    assert float(other.loss_scale) == 32


def test_what_is_saved_is_the_moment_of_saving(tmp_path: Path, monkeypatch):
    """Though training goes on while the checkpoint is being written."""
    may_write, write = threading.Event(), module._write_verified

    def write_later(*arguments) -> None:
        assert may_write.wait(60)
        write(*arguments)

    monkeypatch.setattr(module, "_write_verified", write_later)
    model = TwoLayers()
    move(model, step=7, seed=5)
    before = state_of(model)
    checkpoints = Checkpoints(str(tmp_path), model, keep=1)
    checkpoints.save()
    move(model, step=8, seed=6)
    assert not checkpoint_steps(str(tmp_path)), "nothing is there before all of it is"
    may_write.set()
    checkpoints.wait()
    other = TwoLayers()
    assert restore(tmp_path, other) == 7
    for restored, saved in zip(state_of(other), before, strict=True):
        np.testing.assert_array_equal(restored, saved)


def test_metrics_resume_when_asked(tmp_path: Path):
    model = TwoLayers()
    meter = model.metrics[0]
    meter.update_state(3.0)
    meter.update_state(4.0, 0.1)
    save(tmp_path, model)

    other = TwoLayers()
    other.metrics[0].update_state(50.0)
    checkpoints = Checkpoints(str(tmp_path), other, keep=1)
    checkpoints.restore()
    assert float(other.metrics[0].result()) == 50
    checkpoints.restore_metrics()
    assert float(other.metrics[0].result()) == float(meter.result())
    assert [float(v) for v in other.metrics[0].variables] == [float(v) for v in meter.variables]


def test_a_metric_more_or_less_leaves_checkpoints_usable(tmp_path: Path):
    model = TwoLayers()
    save(tmp_path, model)
    other = TwoLayers()
    del other._meters["learning_rate"]
    assert restore(tmp_path, other) == 0
    save(tmp_path / "fewer", other)
    checkpoints = Checkpoints(str(tmp_path / "fewer"), model, keep=1)
    assert checkpoints.restore() == 0
    checkpoints.restore_metrics()
    assert float(model.metrics[-1].result()) == 0


def test_tensorflow_finds_the_latest(tmp_path: Path):
    model = TwoLayers()
    save(tmp_path, model, [2, 4])
    latest = tf.train.latest_checkpoint(str(tmp_path))
    assert latest == str(tmp_path / "ckpt-4")
    names = {name for name, _ in tf.train.list_variables(latest)}
    assert {"state/first/kernel", "state/optimizer/momentum/first/kernel"} <= names
    assert "metrics/loss/0" in names


def test_the_latest_are_kept_also_by_the_run_that_resumes(tmp_path: Path):
    model = TwoLayers()
    for first, last in ((1, 4), (5, 6)):
        checkpoints = Checkpoints(str(tmp_path), model, keep=2)
        for step in range(first, last + 1):
            model.optimizer.iterations.assign(step)
            checkpoints.save()
            checkpoints.wait()
        assert steps_in(tmp_path) == [last - 1, last]
    assert restore(tmp_path, model) == 6
    kept = {"checkpoint", *(f"ckpt-{step}.{end}" for step in (5, 6) for end in _ENDS)}
    assert {path.name for path in tmp_path.iterdir()} == kept


_ENDS = ("index", "data-00000-of-00001")


def test_some_are_kept_for_ever(tmp_path: Path):
    save(tmp_path, TwoLayers(), list(range(2, 31, 2)), keep=2, keep_interval=10)
    assert steps_in(tmp_path) == [10, 20, 28, 30]


def test_a_step_is_saved_once(tmp_path: Path):
    model = TwoLayers()
    checkpoints, written = Checkpoints(str(tmp_path), model, keep=2), []
    for _ in range(2):
        checkpoints.save()
        checkpoints.wait()
        (index,) = tmp_path.glob("*.index")
        written.append(index.stat().st_mtime_ns)
    assert written[0] == written[1]


def test_a_run_can_be_moved(tmp_path: Path):
    model = TwoLayers()
    move(model, step=2, seed=1)
    save(tmp_path / "here", model)
    (tmp_path / "here").rename(tmp_path / "there")
    assert restore(tmp_path / "there", TwoLayers()) == 2


# What is whose.


def test_layers_made_in_another_order_are_still_their_own(tmp_path: Path):
    one, other = TwoLayers(), TwoLayers(backwards=True)
    move(one, step=7, seed=5)
    save(tmp_path, one)
    move(other, step=3, seed=6)
    assert restore(tmp_path, other) == 7
    for layer in ("first", "second"):
        kernels = [getattr(model, layer).kernel for model in (one, other)]
        np.testing.assert_array_equal(*kernels)
        slots = [model.optimizer.slots(v) for model, v in zip((one, other), kernels, strict=True)]
        for name in ("momentum", "velocity"):
            np.testing.assert_array_equal(*(slot[name] for slot in slots))


@pytest.mark.parametrize("mirrored_strategy", [4], indirect=True)
def test_moments_are_read_by_any_number_of_replicas(mirrored_strategy, tmp_path: Path):
    """Whoever wrote them: what a checkpoint has of sharded ones is the same."""
    whole = TwoLayers()
    move(whole, step=7, seed=5)
    save(tmp_path / "whole", whole)
    with mirrored_strategy.scope():
        sharded = TwoLayers(optimizer=ShardedAdamW)
    assert restore(tmp_path / "whole", sharded) == 7
    save(tmp_path / "sharded", sharded)
    again = TwoLayers()
    assert restore(tmp_path / "sharded", again) == 7
    for restored, saved in zip(state_of(again), state_of(whole), strict=True):
        np.testing.assert_array_equal(restored, saved)


def test_paths_are_each_variables_own(pretrainer):
    """And the same in a model that the process has made later, whatever Keras calls it."""
    first, second = pretrainer(), pretrainer()
    paths = variable_paths(first)
    assert paths.keys() == variable_paths(second).keys()
    assert {id(v) for v in first.trainable_variables} < {id(v) for v in paths.values()}
    assert paths["backbone/token_embedding/embeddings"] is first.backbone.token_embedding.embeddings
    blocks = first.backbone.blocks[0], first.auxiliary.backbone.blocks[0]
    for prefix, block in zip(("", "auxiliary/"), blocks, strict=True):
        assert paths[f"{prefix}backbone/blocks/0/key/bias"] is block.key.bias
    assert "backbone/embeddings_norm/gamma" in paths, "which no attribute leads to"


def test_two_variables_of_one_path_are_a_defect():
    model = TwoLayers()
    model.add_weight(name="loss_scale", shape=())
    with pytest.raises(ValueError, match="two variables .* are called loss_scale"):
        variable_paths(model)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model": {"hidden_dim": 8}},
            "of another shape or type is copy_head/kernel (float32 [16], not float32 [8]), ",
        ),
        (
            {"model": {"num_layers": 2}},
            "the checkpoint lacks backbone/blocks/1/attention_norm/",
        ),
        ({"objective": {"scl_weight": 0.0}}, "the model lacks optimizer/momentum/projection/"),
        ({"auxiliary": {"replacements": "random"}}, "the model lacks auxiliary/backbone/"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_model_is_refused(
    pretrainer, tmp_path: Path, changes: dict, told: str, caplog: pytest.LogCaptureFixture
):
    model = pretrainer()
    model.optimizer.iterations.assign(7)
    folder = tmp_path / "run" / "checkpoints"
    save(folder, model)
    with pytest.raises(UserError) as caught:
        restore(folder, pretrainer(**changes))
    message = str(caught.value)
    assert message.startswith(f"{folder}/ckpt-7 does not fit")
    assert told in message and " more" in message and "\n" not in message
    assert f"{tmp_path}/run/config.yaml" in message and "--model_dir" in message
    gc.collect()
    assert not caplog.records, "TensorFlow has nothing to add"


def test_a_checkpoint_of_numbered_variables_is_refused(tmp_path: Path):
    """Of what order they are in, it says nothing."""
    names = ["state/0/.ATTRIBUTES/VARIABLE_VALUE", "metrics/loss/0"]
    path = str(tmp_path / "ckpt-7")
    values = [np.float32(1), np.float32(2)]
    tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=["", ""], tensors=values)
    with pytest.raises(UserError, match=f"{path} is of a version that numbered the variables"):
        restore(tmp_path, TwoLayers())


# Damage.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's checkpoints of three steps."""
    model = TwoLayers()
    for step in (2, 4, 6):
        move(model, step, seed=step)
        save(tmp_path, model)
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("end", _ENDS)
@pytest.mark.parametrize("damage", [cut, empty, flip, Path.unlink])
def test_the_run_goes_back_where_the_latest_is_damaged(
    run: Path, end: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture
):
    damage(run / f"ckpt-6.{end}")
    model = TwoLayers()
    assert restore(run, model) == 4
    assert int(model.skipped_in_a_row) == 4
    if (damage, end) == (Path.unlink, "index"):
        return  # it is as if it had not been written
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{run}/ckpt-6 is damaged (")
    assert second == "The run goes back to step 4."
    assert steps_in(run) == [2, 4]
    assert any(path.name.startswith("damaged-ckpt-6.") for path in run.iterdir())


def test_what_is_damaged_is_not_one_of_those_to_keep(run: Path):
    cut(run / "ckpt-6.index")
    model = TwoLayers()
    checkpoints = Checkpoints(str(run), model, keep=2)
    checkpoints.restore()
    model.optimizer.iterations.assign(5)
    checkpoints.save()
    checkpoints.wait()
    assert steps_in(run) == [4, 5]


def test_no_flipped_byte_goes_unnoticed(run: Path):
    """Wherever it is: either nothing that is read has changed, or the damage is found."""
    rng, model, intact = random.Random(0), TwoLayers(), module._read(str(run / "ckpt-6"))
    for number in range(60):
        folder = run / f"copy-{number}"
        folder.mkdir()
        for path in run.glob("ckpt-6.*"):
            shutil.copy(path, folder)
        flip(folder / f"ckpt-6.{rng.choice(_ENDS)}", rng.random())
        try:
            found = module._read(str(folder / "ckpt-6"))
        except module._FAILURES:
            continue
        assert found.keys() == intact.keys()
        for name, value in intact.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert restore(run, model) == 6


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(run: Path):
    for path in run.glob("*.index"):
        cut(path)
    with pytest.raises(UserError, match=f"all checkpoints in {run} are damaged"):
        restore(run, TwoLayers())
    assert steps_in(run) == [2, 4, 6], "they are left as they were"


# Values that are not finite.


def test_what_is_not_finite_is_not_saved(run: Path):
    model = TwoLayers()
    checkpoints = Checkpoints(str(run), model, keep=3)
    checkpoints.restore()
    model.optimizer.iterations.assign(8)
    model.skipped_in_a_row.assign(0)
    weights = model.trainable_variables[0]
    weights.assign(tf.where(tf.random.uniform(weights.shape) < 0.01, np.inf, weights))
    weights.value[0, 0].assign(np.nan)
    with pytest.raises(UserError) as caught:
        checkpoints.save()
    assert "1 of the run's variables are not finite at step 8: lower" in str(caught.value)
    assert f"--model_dir={run.parent}: the run resumes from its last sound" in str(caught.value)
    assert steps_in(run) == [2, 4, 6]


def test_what_is_not_finite_is_not_restored(run: Path, monkeypatch, capsys):
    model = TwoLayers()
    checkpoints = Checkpoints(str(run), model, keep=9)
    checkpoints.restore()
    model.optimizer.iterations.assign(8)
    model.trainable_variables[0].value[0, 0].assign(np.nan)
    monkeypatch.setattr(module, "_is_finite", lambda variable: True)
    checkpoints.save()
    checkpoints.wait()
    assert restore(run, TwoLayers()) == 6
    assert "ckpt-8 is damaged (state/" in capsys.readouterr().err


def test_a_failed_run_loses_the_checkpoints_that_led_there(run: Path):
    """Those since whose weights no update succeeded."""
    model = TwoLayers()
    checkpoints = Checkpoints(str(run), model, keep=3)
    checkpoints.restore()
    model.optimizer.iterations.assign(10)
    model.skipped_in_a_row.assign(6)
    error = checkpoints.failure("it failed")
    assert str(error).startswith("it failed at step 10: lower optimizer.learning_rate")
    assert str(error).endswith("resumes from its last sound checkpoint, of step 2.")
    assert steps_in(run) == [2] and (run / "damaged-ckpt-4.index").exists()
    assert tf.train.latest_checkpoint(str(run)) == str(run / "ckpt-2")
    model.skipped_in_a_row.assign(10)
    assert str(checkpoints.failure("it is")).endswith("no sound checkpoint and begins at step 0.")
    assert not steps_in(run) and tf.train.latest_checkpoint(str(run)) is None


# A disk that is full.


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """Lets the system refuse to write files beyond a size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_older_ones_whole(run: Path, limit_file_size):
    model = TwoLayers()
    checkpoints = Checkpoints(str(run), model, keep=3)
    checkpoints.restore()
    model.optimizer.iterations.assign(8)
    limit_file_size(100)
    checkpoints.save()
    with pytest.raises(UserError) as caught:
        checkpoints.wait()
    limit_file_size(resource.RLIM_INFINITY)
    message = str(caught.value)
    assert f"the checkpoint of step 8 could not be written into {run} (" in message
    assert "File too large" in message
    assert "those up to step 6 are whole: make room and start again" in message
    assert "\n" not in message
    assert steps_in(run) == [2, 4, 6]
    assert not (run / "unfinished").exists(), "nothing is left in the way"
    assert restore(run, TwoLayers()) == 6


def test_a_failed_save_is_reported_at_the_next_look(tmp_path: Path, limit_file_size):
    checkpoints = Checkpoints(str(tmp_path), TwoLayers(), keep=3)
    checkpoints.check()
    limit_file_size(100)
    checkpoints.save()
    checkpoints._writer.shutdown()
    limit_file_size(resource.RLIM_INFINITY)
    with pytest.raises(UserError, match="step 0 could not be written .* there is none yet"):
        checkpoints.check()


def test_what_reads_otherwise_than_written_is_no_checkpoint(run: Path, monkeypatch):
    def save_other(prefix, tensor_names, shape_and_slices, tensors) -> None:
        tensors = [value + np.ones_like(value) for value in tensors]
        save_v2(
            prefix=prefix,
            tensor_names=tensor_names,
            shape_and_slices=shape_and_slices,
            tensors=tensors,
        )

    save_v2 = tf.raw_ops.SaveV2
    monkeypatch.setattr(tf.raw_ops, "SaveV2", save_other)
    with pytest.raises(UserError, match="reads otherwise than it was written"):
        save(run, TwoLayers(), [8])
    assert steps_in(run) == [2, 4, 6]


def test_remains_of_a_killed_save_are_cleared(run: Path):
    (run / "unfinished").mkdir()
    (run / "unfinished" / "ckpt-7.index").write_text("half of it")
    (run / "ckpt-7.data-00000-of-00001").write_text("without its index")
    assert restore(run, TwoLayers()) == 6
    save(run, TwoLayers(), [8])
    assert steps_in(run) == [2, 4, 6, 8]
    assert not [path for path in run.iterdir() if "7" in path.name or path.is_dir()]


@pytest.mark.parametrize("mirrored_strategy", [2], indirect=True)
def test_replicas_are_saved_and_restored_as_one(mirrored_strategy, tmp_path: Path):
    with mirrored_strategy.scope():
        model = TwoLayers()
    move(model, step=7, seed=5)
    mirrored_strategy.run(lambda: model.metrics[0].update_state(1.5))
    save(tmp_path, model)
    assert module._read(str(tmp_path / "ckpt-7"))["metrics/loss/0"] == 3

    with mirrored_strategy.scope():
        other = TwoLayers()
    checkpoints = Checkpoints(str(tmp_path), other, keep=1)
    assert checkpoints.restore() == 7
    checkpoints.restore_metrics()
    assert float(other.metrics[0].variables[0].value.numpy()) == 3
    for restored, saved in zip(state_of(other), state_of(model), strict=True):
        np.testing.assert_array_equal(restored, saved)
    alone = TwoLayers()
    assert restore(tmp_path, alone) == 7, "and by a run on another number of devices"

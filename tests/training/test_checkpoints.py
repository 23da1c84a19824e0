import gc
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.training.build import build_optimizer, build_pretrainer
from cocolm_tf.training.checkpoints import Checkpoints


@pytest.fixture
def compiled(tiny):
    """Makes a compiled pretrainer; every one of a `seed` is the same."""

    def make(seed: int = 0, **changes):
        config = tiny(runtime={"seed": seed}, **changes)
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


def test_a_new_run_stands_at_step_0(compiled, tmp_path: Path):
    assert Checkpoints(str(tmp_path / "new"), compiled(), keep=1).restore() == 0


def test_all_of_a_run_is_restored(compiled, tmp_path: Path):
    model = compiled()
    move(model, step=7, seed=5)
    path = Checkpoints(str(tmp_path), model, keep=1).save()
    assert Path(path).name == "ckpt-7"

    other = compiled(seed=1)
    move(other, step=3, seed=6)
    assert Checkpoints(str(tmp_path), other, keep=1).restore() == 7
    for restored, saved in zip(state_of(other), state_of(model), strict=True):
        np.testing.assert_array_equal(restored, saved)
    assert int(other.skipped_in_a_row) == 5
    assert float(other.loss_scale) == 32


def test_the_metrics_are_not_the_runs(compiled, tmp_path: Path):
    """So that a metric more or less leaves a run's checkpoints usable."""
    model = compiled()
    Checkpoints(str(tmp_path), model, keep=1).save()
    other = compiled()
    other.metrics[0].update_state(3.0)
    Checkpoints(str(tmp_path), other, keep=1).restore()
    assert float(other.metrics[0].result()) == 3


def test_the_latest_are_kept_also_by_the_run_that_goes_on(compiled, tmp_path: Path):
    model = compiled()
    for first, last in ((1, 4), (5, 6)):
        checkpoints = Checkpoints(str(tmp_path), model, keep=2)
        for step in range(first, last + 1):
            model.optimizer.iterations.assign(step)
            checkpoints.save()
        found = sorted(path.stem for path in tmp_path.glob("*.index"))
        assert found == [f"ckpt-{last - 1}", f"ckpt-{last}"]
    assert Checkpoints(str(tmp_path), model, keep=2).restore() == 6


def test_a_run_can_be_moved(compiled, tmp_path: Path):
    model = compiled()
    move(model, step=2, seed=1)
    Checkpoints(str(tmp_path / "here"), model, keep=1).save()
    (tmp_path / "here").rename(tmp_path / "there")
    assert Checkpoints(str(tmp_path / "there"), compiled(), keep=1).restore() == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"hidden_dim": 8}},
        {"model": {"num_layers": 2}},
        {"objective": {"scl_weight": 0.0}},
        {"auxiliary": {"replacements": "random"}},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_model_is_refused(
    compiled, tmp_path: Path, changes: dict, caplog: pytest.LogCaptureFixture
):
    model = compiled()
    model.optimizer.iterations.assign(7)
    folder = tmp_path / "run" / "checkpoints"
    Checkpoints(str(folder), model, keep=1).save()
    with pytest.raises(UserError) as caught:
        Checkpoints(str(folder), compiled(**changes), keep=1).restore()
    message = str(caught.value)
    assert message.startswith(f"{folder}/ckpt-7 does not fit")
    assert f"{tmp_path}/run/config.yaml" in message and "--model_dir" in message
    gc.collect()
    assert not caplog.records, "TensorFlow has nothing to add"


def test_a_damaged_checkpoint_is_named(compiled, tmp_path: Path):
    model = compiled()
    Checkpoints(str(tmp_path), model, keep=1).save()
    (index,) = tmp_path.glob("*.index")
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(UserError, match=f"ckpt-0 is damaged.* in {tmp_path}/checkpoint"):
        Checkpoints(str(tmp_path), model, keep=1).restore()

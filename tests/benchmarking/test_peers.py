"""That the contenders do the same work, and what is made of their times."""

import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tf_keras
from benchmarks import model_garden
from benchmarks import peers as module

from cocolm_tf.benchmarking.alternation import Contender, Timings
from cocolm_tf.costs.step_benchmark import random_batches
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig

Batches = list[dict[str, np.ndarray]]
SECONDS = {"electra": [1.0, 1.0, 4.0], "model_garden": [1.5, 2.0, 10.0], "coco_lm": [2.0, 3.0, 8.0]}


@pytest.fixture
def batches(tiny: PretrainingConfig) -> Batches:
    return list(random_batches(tiny, 2).take(2).as_numpy_iterator())


@pytest.fixture
def tf_keras_policy() -> Iterator[None]:
    before = tf_keras.mixed_precision.global_policy()
    yield
    tf_keras.mixed_precision.set_global_policy(before)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """What would be timed; it takes `SECONDS`."""
    contenders = []

    def alternate(given: list[Contender], rounds: int, warmup_steps: int) -> dict[str, Timings]:
        contenders.extend(given)
        return {one.name: Timings(30.0, 39.5, SECONDS[one.name], [], 0.01) for one in given}

    monkeypatch.setattr(module, "alternate", alternate)
    return contenders


def expected_loss(config: PretrainingConfig) -> float:
    """What models with fresh weights, which know nothing, lose."""
    return math.log(config.model.vocabulary_size) + 50 * math.log(2)


def check_that_it_learns(step: Callable[[], float], config: PretrainingConfig) -> None:
    first = step()
    assert first == pytest.approx(expected_loss(config), rel=0.1)
    for _ in range(30):
        last = step()
    assert last < first - 5


@pytest.mark.slow
@pytest.mark.usefixtures("tf_keras_policy")
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_model_gardens_step_trains_electra(
    tiny: PretrainingConfig, batches: Batches, precision: str
):
    tiny.override({"runtime": {"precision": precision}})
    check_that_it_learns(model_garden.electra_step(tiny, batches), tiny)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hugging_faces_step_trains_electra(
    tiny: PretrainingConfig, batches: Batches, precision: str, attention: str
):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    from benchmarks import hugging_face

    tiny.override({"runtime": {"precision": precision}})
    check_that_it_learns(hugging_face.electra_step(tiny, batches, attention), tiny)


@pytest.mark.slow
def test_our_step_starts_from_the_same_loss(tiny: PretrainingConfig, batches: Batches):
    tiny.override(module.OURS["electra"])
    assert module.our_step(tiny, batches)() == pytest.approx(expected_loss(tiny), rel=0.1)


def test_model_garden_gets_the_same_masked_positions(batches: Batches):
    batch = batches[0]
    inputs = model_garden._to_inputs(batch, mask_token_id=96)
    masked = inputs["input_word_ids"] == 96
    for row in range(len(masked)):
        used = batch["masked_weights"][row] > 0
        positions = batch["masked_positions"][row][used]
        assert sorted(np.flatnonzero(masked[row])) == sorted(positions)
        np.testing.assert_array_equal(inputs["masked_lm_positions"][row][used], positions)
        np.testing.assert_array_equal(
            inputs["masked_lm_ids"][row][used], batch["token_ids"][row][positions]
        )
        assert not inputs["masked_lm_positions"][row][~used].any()
    np.testing.assert_array_equal(inputs["masked_lm_weights"], batch["masked_weights"])


def test_times_are_compared_round_by_round(tiny: PretrainingConfig, timed: list[Contender]):
    result = module.compare(tiny, list(SECONDS), ["float32", "mixed_bfloat16"], 3, 1, threads=2)
    assert list(result["precisions"]) == ["float32", "mixed_bfloat16"]
    for contenders in result["precisions"].values():
        garden = contenders["model_garden"]
        assert garden["step_seconds"]["median"] == 2.0
        assert garden["tokens_per_second"] == 8 * 24 / 2.0
        assert garden["times"]["electra"]["median"] == 2.0
        assert garden["times"]["coco_lm"]["median"] == 0.75
        assert "rtd" not in garden["times"]
        assert garden["first_loss"] == 39.5 and garden["first_step_seconds"] == 30.0
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lines = module.format_comparison(result).splitlines()
    (row,) = {line for line in lines if line.startswith("model_garden")}
    assert "2 (1.75 to 2.25)" in row and "96" in row and "1.0%" in row
    assert all(one.environment["OMP_NUM_THREADS"] == "2" for one in timed)


def test_contenders_have_the_configurations_they_are_named_for(
    tiny: PretrainingConfig, timed: list[Contender]
):
    module.compare(tiny, list(SECONDS), ["mixed_bfloat16"], 3, 1, threads=2)
    by_name = {one.name: one.build.args for one in timed}
    electra, batches = by_name["electra"]
    assert electra.objective.lm_weight == electra.objective.scl_weight == 0
    assert electra.auxiliary.sampling == "train" and electra.model.relative_position_bins == 0
    assert by_name["coco_lm"][0].objective.scl_weight == 1
    for config, same in by_name.values():
        assert config.runtime.precision == "mixed_bfloat16"
        assert same is batches, "all train on the same"
    assert tiny.runtime.precision == "float32", "what was given stays as it was"


@pytest.mark.usefixtures("timed")
def test_a_peer_that_is_not_installed_is_told_and_left_out(
    tiny: PretrainingConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(module.PEERS, "absent", module.Peer(print, ("no_such_package",)))
    result = module.compare(tiny, ["electra", "absent"], ["float32"], 3, 1, threads=2)
    assert list(result["precisions"]["float32"]) == ["electra"]
    told = [line for line in module.format_comparison(result).splitlines() if "absent" in line]
    assert len(told) == 1 and "no_such_package not installed" in told[0]
    with pytest.raises(UserError, match="no contender is left: no_such_package"):
        module.compare(tiny, ["absent"], ["float32"], 3, 1, threads=2)


@pytest.mark.parametrize(
    ("changes", "names", "complaint"),
    [
        ({}, ["nobody"], "--contenders has 'nobody'"),
        ({"auxiliary": {"replacements": "random"}}, ["model_garden"], "has a generator"),
        ({"trainer": {"micro_batches": 2}}, ["model_garden"], "takes a batch as a whole"),
    ],
)
def test_what_cannot_be_compared_is_the_users_mistake(
    tiny: PretrainingConfig, changes: dict, names: list[str], complaint: str
):
    tiny.override(changes)
    with pytest.raises(UserError, match=complaint):
        module.compare(tiny, names, ["float32"], 1, 1, threads=1)

"""That the contenders do the same work, and what is made of their times, by name and by size."""

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tf_keras
from benchmarks import model_garden
from benchmarks import pretraining as module
from benchmarks.alternation import Contender, Timings
from in_one_process import run_benchmark
from programs import Program

from cocolm_tf.costs.formatting import format_result
from cocolm_tf.costs.step_benchmark import random_batches
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig

benchmark_peers, benchmark_scaling = map(Program, ("benchmark_peers.py", "benchmark_scaling.py"))
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
    for _ in range(20):
        last = step()
    assert last < first - 3


@pytest.mark.slow
@pytest.mark.usefixtures("tf_keras_policy")
def test_model_gardens_step_trains_electra(tiny: PretrainingConfig, batches: Batches):
    tiny.override({"runtime": {"precision": "mixed_bfloat16"}})
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
    step = hugging_face.electra_step(tiny.as_dict(), batches, precision, attention)
    check_that_it_learns(lambda: step()[0].item(), tiny)


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
    lines = format_result(result, result["precisions"]).splitlines()
    rows = [line for line in lines if line.startswith("model_garden")]
    assert len(rows) == 2
    assert all("2 (1.75 to 2.25)" in row and "96" in row and "1.0%" in row for row in rows)
    assert all(one.environment["OMP_NUM_THREADS"] == "2" for one in timed)


def test_contenders_have_the_configurations_they_are_named_for(
    tiny: PretrainingConfig, timed: list[Contender]
):
    module.compare(tiny, list(SECONDS), ["mixed_bfloat16"], 3, 1, threads=2)
    by_name = {one.name: one.build.args[1:] for one in timed}
    electra, batches = by_name["electra"]
    assert electra.objective.lm_weight == electra.objective.scl_weight == 0
    assert electra.auxiliary.sampling == "train" and electra.model.relative_position_bins == 0
    assert by_name["coco_lm"][0].objective.scl_weight == 1
    for config, same in by_name.values():
        assert config.runtime.precision == "mixed_bfloat16"
        assert same is batches, "all train on the same"
    assert tiny.runtime.precision == "float32", "what was given stays as it was"


@pytest.mark.usefixtures("timed")
def test_a_peer_that_is_not_installed_is_reported_and_left_out(
    tiny: PretrainingConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(module.PEERS, "absent", {})
    monkeypatch.setitem(module._PACKAGES, "absent", ("no_such_package",))
    result = module.compare(tiny, ["electra", "absent"], ["float32"], 3, 1, threads=2)
    assert list(result["precisions"]["float32"]) == ["electra"]
    assert "absent no_such_package not installed" in format_result(result, {})
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


@pytest.mark.slow
def test_ours_and_the_peers_at_hand_take_turns(config_file: Path):
    lines, result = run_benchmark(
        "benchmark_peers.py",
        f"--config_file={config_file}",
        "--contenders=electra,model_garden,hugging_face",
        "--precisions=float32",
        "--rounds=2",
        "--threads=1",
    )
    contenders = result["precisions"]["float32"]
    at_hand = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    left_out = set() if at_hand else {"hugging_face"}
    assert set(contenders) == {"electra", "model_garden", "hugging_face"} - left_out
    assert set(result["left_out"]) == left_out
    assert all(one["step_seconds"]["min"] > 0 for one in contenders.values())
    # All start knowing nothing of the same tokens.
    losses = [one["first_loss"] for one in contenders.values()]
    assert max(losses) < 1.1 * min(losses)
    (row,) = [line for line in lines if line.startswith("model_garden")]
    assert f"{contenders['model_garden']['times']['electra']['median']:.4g} (" in row


# --- By size ---


@pytest.fixture
def timed_layers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps that take as long as their number of layers, but for a second that all take."""
    names = []

    def alternate(given: list[Contender], rounds: int, warmup_steps: int) -> dict[str, Timings]:
        names.extend(one.name for one in given)
        layers = {one.name: one.build.args[0].model.num_layers for one in given}
        return {
            name: Timings(30.0, 39.5, [1.0 + number] * rounds, [], 0.0)
            for name, number in layers.items()
        }

    monkeypatch.setattr(module, "alternate", alternate)
    return names


def test_time_is_set_beside_the_flops(tiny: PretrainingConfig, timed_layers: list[str]):
    result = module.measure_scaling(tiny, ["model.num_layers"], [2, 0.5], 3, 1, threads=2)
    assert timed_layers == ["model.num_layers=1", "model.num_layers=2", "model.num_layers=4"]
    rows = result["axes"]["model.num_layers"]
    assert [row["value"] for row in rows] == [1, 2, 4]
    assert [row["step_seconds"]["median"] for row in rows] == [2.0, 3.0, 5.0]
    assert rows[1]["flops_growth"] == rows[1]["time_per_flop_growth"]["median"] == 1
    largest = rows[2]
    assert largest["flops_growth"] == largest["flops"] / rows[1]["flops"] > 1
    assert largest["time_growth"]["median"] == pytest.approx(5 / 3)
    assert largest["time_per_flop_growth"]["median"] == pytest.approx(
        5 / 3 / largest["flops_growth"]
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_what_belongs_to_a_size_grows_with_it(tiny: PretrainingConfig):
    wide = module.scaled(tiny, "model.hidden_dim", 2)
    assert (wide.model.hidden_dim, wide.model.intermediate_dim, wide.model.num_heads) == (32, 64, 4)
    long = module.scaled(tiny, "data.sequence_length", 2)
    assert long.data.sequence_length == long.model.max_sequence_length == 48
    assert tiny.model.hidden_dim == 16, "what was given stays as it was"


@pytest.mark.parametrize(
    ("axis", "factor", "complaint"),
    [
        ("model.dropout", 2, "--axes has 'model.dropout'"),
        ("trainer.batch_size", 0.3, "not a whole number"),
        ("model.hidden_dim", 0.25, "not a whole number"),
    ],
)
def test_sizes_that_there_cannot_be_are_the_users_mistake(
    tiny: PretrainingConfig, axis: str, factor: float, complaint: str
):
    with pytest.raises(UserError, match=complaint):
        module.scaled(tiny, axis, factor)


def test_an_impossible_size_is_reported_before_anything_is_timed(
    tiny: PretrainingConfig, timed_layers: list[str]
):
    with pytest.raises(UserError):
        module.measure_scaling(
            tiny, ["model.num_layers", "trainer.batch_size"], [0.5, 0.3], 3, 1, threads=2
        )
    assert not timed_layers


@pytest.mark.slow
def test_a_size_is_measured_beside_its_double(config_file: Path):
    lines, result = run_benchmark(
        "benchmark_scaling.py",
        f"--config_file={config_file}",
        "--params_override=objective.scl_weight=0,auxiliary.replacements=random",
        "--axes=trainer.batch_size",
        "--factors=2",
        "--rounds=2",
        "--warmup_steps=0",
    )
    one, two = result["axes"]["trainer.batch_size"]
    assert (one["value"], two["value"]) == (8, 16)
    assert two["time_growth"]["median"] > 0
    assert any(line.split()[:2] == ["16", "16"] for line in lines)


# --- The programs' flags ---


@pytest.mark.parametrize(
    ("program", "arguments", "complaint"),
    [
        (benchmark_peers, ["--config_file=/nowhere.yaml"], "/nowhere.yaml does not exist."),
        (benchmark_peers, ["--precisions=float32,float8"], "--precisions has 'float8'"),
        (benchmark_peers, ["--threads=0"], "--threads"),
        (benchmark_scaling, ["--factors=2,many"], "--factors has 'many'"),
        (benchmark_scaling, ["--factors=-1"], "--factors has '-1'"),
        (benchmark_scaling, ["--rounds=0"], "--rounds"),
    ],
    ids=["config", "precision", "threads", "factor", "sign", "rounds"],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    config_file: Path, program: Program, arguments: list[str], complaint: str
):
    (said,) = program.mistakes_before_tensorflow(f"--config_file={config_file}", *arguments)
    assert complaint in said


def test_help_names_every_contender_and_axis():
    told = benchmark_peers.help()
    assert all(name in told for name in (*module.OURS, *module.PEERS))
    told = "".join(benchmark_scaling.help().split())  # which breaks lines within words
    assert all(axis in told for axis in module.AXES)

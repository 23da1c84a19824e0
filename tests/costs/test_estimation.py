"""The arithmetic by hand, and what it decides."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import VARIANTS, tiny

from cocolm_tf.costs import estimation as module
from cocolm_tf.costs.accelerators import ACCELERATORS, Accelerator, published_share
from cocolm_tf.costs.estimation import device_flops, estimate, format_report, plan
from cocolm_tf.costs.flops import (
    pass_flops,
    pretraining_flops,
    rematerialization_flops,
    similarity_flops,
)
from cocolm_tf.costs.memory import step_memory
from cocolm_tf.costs.workload import encoder_passes
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig

DEVICE = Accelerator(
    "toy",
    bfloat16_flops=2e9,
    float32_flops=1e9,
    memory=1e6,
    memory_bandwidth=1e6,
    link_bandwidth=1e6,
    device_kind="TOY",
)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_objective_is_estimated_and_shown(changes: dict):
    result = estimate(tiny(changes, {"trainer": {"batch_size": 8}}), devices=2)
    assert json.loads(json.dumps(result)) == result
    shown = format_report(result)
    assert all(part in shown for part in result["parameters_by_part"])
    assert all(part in shown for part in result["flops_by_part"])
    assert all(accelerator.title in shown for accelerator in ACCELERATORS.values())


def test_totals_of_a_run():
    config = tiny({"trainer": {"batch_size": 8, "train_steps": 50_000}})
    result = estimate(config, devices=2, accelerators=[])
    assert result["tokens_per_step"] == 8 * 26
    assert result["tokens_per_run"] == 50_000 * 8 * 26
    flops = sum(pretraining_flops(config).values())
    assert result["flops_per_step"] == sum(result["flops_by_part"].values()) == flops
    assert result["flops_per_token"] == flops / (8 * 26)
    assert result["flops_per_run"] == flops * 50_000
    assert result["parameters"] == sum(result["parameters_by_part"].values())


def test_base_takes_six_flops_for_each_parameter_and_token_it_reads():
    """Attention's products come on top, which 512 tokens make a twelfth of the blocks'."""
    flops = pretraining_flops(PretrainingConfig())["main_corrupted"]
    blocks = 12 * 12 * 768**2
    assert flops == pytest.approx(6 * blocks * 2048 * 512 * (1 + 512 / (6 * 768)))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_what_a_device_sends(devices: int):
    config = tiny({"trainer": {"batch_size": 16}})
    result = estimate(config, devices, accelerators=[])
    assert result["all_reduce_bytes"] == 2 * 4 * result["parameters"] * (devices - 1) / devices
    # 2 views of 2 * 16 / devices vectors of 12 float32 numbers, to and fro and fro.
    assert result["gather_bytes"] == 4 * (devices - 1) * (2 * 16 // devices) * 12 * 4
    config.objective.scl_weight = 0.0
    assert estimate(config, devices, accelerators=[])["gather_bytes"] == 0


@pytest.mark.parametrize("devices", [1, 4])
def test_sharded_moments_are_shared_out(devices: int):
    config = tiny({"trainer": {"batch_size": 16}, "optimizer": {"sharded": True}})
    result = estimate(config, devices, ["v5e"])
    parameters = result["parameters"]
    assert result["memory"]["kept"]["optimizer"] == 8 * -(-parameters // devices)
    # The updated weights go the way of the gradients once more.
    assert result["update_gather_bytes"] == result["all_reduce_bytes"]
    moved = 28 * parameters / devices + 8 * parameters * (devices > 1)
    assert result["accelerators"]["v5e"]["update_seconds"] == pytest.approx(moved / 819e9)


def test_links_and_memory_take_their_time():
    config = tiny({"trainer": {"batch_size": 8}})
    result = estimate(config, 4, ["v5e"])
    sent = result["all_reduce_bytes"] + result["gather_bytes"]
    of_v5e = result["accelerators"]["v5e"]
    assert of_v5e["link_seconds"] == sent / 200e9
    assert of_v5e["update_seconds"] == 28 * result["parameters"] / 819e9
    slow = estimate(config, 4, ["v5e"], link_bandwidth=1e9)
    assert slow["accelerators"]["v5e"]["link_seconds"] == sent / 1e9


@settings(max_examples=30)
@given(
    per_device=st.integers(1, 48),
    devices=st.integers(1, 4),
    memory=st.floats(1e5, 5e7),
    share=st.floats(0.1, 1.0),
    rematerialize=st.booleans(),
)
def test_a_plan_has_the_fewest_micro_batches_that_fit(
    per_device: int, devices: int, memory: float, share: float, rematerialize: bool
):
    config = tiny({"trainer": {"batch_size": per_device * devices, "micro_batches": per_device}})
    device = Accelerator("toy", 2e9, 1e9, memory, 1e6, 1e6, "TOY")
    found = plan(config, devices, device, rematerialize, 0.5, share)

    def takes(micro_batches: int) -> int:
        changed = tiny(
            {"trainer": {"batch_size": per_device * devices, "micro_batches": micro_batches}}
        )
        return sum(step_memory(changed, devices, rematerialize).values())

    fitting = [m for m in range(1, per_device + 1) if per_device % m == 0]
    fitting = [m for m in fitting if takes(m) <= share * memory]
    assert (found is None) == (not fitting)
    if found:
        assert found["micro_batches"] == min(fitting)
        assert found["memory"] == takes(min(fitting))
        assert found["sequences"] * found["micro_batches"] == per_device
        assert found["contrasted"] == found["sequences"] * devices
    assert config.trainer.micro_batches == per_device  # as it was


def test_contrasting_the_whole_batch_takes_a_forward_pass_more():
    changes = {"trainer": {"batch_size": 16, "micro_batches": 4}}
    within = tiny(changes)
    whole = tiny(changes, {"objective": {"scl_over_micro_batches": True}})
    forward = 16 * sum(map(pass_flops, encoder_passes(whole).values()))
    similarities = similarity_flops(whole) - similarity_flops(within)
    assert similarities == 3 * similarity_flops(within)
    more = device_flops(whole, 2, False) - device_flops(within, 2, False)
    assert more == forward / 2 + similarities
    compared = [step_memory(one, 2, False)["similarities"] for one in (within, whole)]
    assert compared[1] == 16 * compared[0]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_a_step_takes_the_flops_of_a_device_at_its_share_of_the_peak(
    precision: str, rematerialize: bool
):
    config = tiny({"trainer": {"batch_size": 8, "train_steps": 100_000}})
    config.runtime.precision = precision
    found = plan(config, 2, ACCELERATORS["v4"], rematerialize, 0.25, 1.0)
    similarities = similarity_flops(config)
    flops = sum(pretraining_flops(config).values()) - similarities
    if rematerialize:
        flops += rematerialization_flops(config)
    assert found["step_seconds"] == pytest.approx((flops / 2 + similarities) / (0.25 * 275e12))
    assert found["run_seconds"] == pytest.approx(100_000 * found["step_seconds"])
    of_toy = [
        plan(config, 2, DEVICE, rematerialize, 0.25, 1e9)["step_seconds"],
        (flops / 2 + similarities) / (0.25 * (1e9 if precision == "float32" else 2e9)),
    ]
    assert of_toy[0] == pytest.approx(of_toy[1])


def test_what_fits_nowhere_is_said():
    config = tiny()
    assert plan(config, 1, DEVICE, False, 0.4, 0.01) is None
    result = estimate(config, accelerators=["v5e"], share_of_memory=1e-6)
    assert "does not fit" in format_report(result)


def test_steps_reach_what_was_published_for_the_size():
    assert published_share(1e6) == 0.057
    assert published_share(150e6) == pytest.approx(0.246)
    assert published_share((17e6 * 68e6) ** 0.5) == pytest.approx((0.057 + 0.166) / 2)
    assert published_share(1e12) == 0.39
    result = estimate(PretrainingConfig(), accelerators=[])
    main = result["parameters_by_part"]["embeddings"] + result["parameters_by_part"]["main"]
    assert result["share_of_peak"] == published_share(main)
    assert estimate(PretrainingConfig(), accelerators=[], share_of_peak=0.3)["share_of_peak"] == 0.3


def test_a_compiled_program_bounds_the_time_and_corrects_the_memory():
    config = tiny({"trainer": {"batch_size": 64, "train_steps": 100}})
    few = tiny({"trainer": {"batch_size": 8}})
    compiled = {
        "target": "v4",
        "precision": "float32",
        "sequences": 8,
        "rematerialize": False,
        "model_flops": sum(pretraining_flops(few).values()),
        "share_of_peak_at_most": 0.1,
        "argument_bytes": 1000,
        "temporary_bytes": 500,
    }
    result = estimate(config, 4, ["v4", "v5e"], compiled=[compiled])
    assert result["accelerators"]["v5e"]["compiled"] is None
    found = result["accelerators"]["v4"]["compiled"]
    flops = sum(pretraining_flops(config).values())
    assert found["step_seconds"] == pytest.approx(flops / 4 / (0.1 * 275e12))
    assert found["run_seconds"] == pytest.approx(100 * found["step_seconds"])
    assert found["memory"] == 1500
    assert found["estimated_memory"] == sum(step_memory(few, 1, False).values())
    assert "as compiled" in format_report(result)
    with pytest.raises(UserError, match="what was compiled for v4 is"):
        estimate(config, 4, ["v4"], compiled=[compiled | {"sequences": 9}])
    with pytest.raises(UserError, match="is for v4, which is not among the accelerators"):
        estimate(config, 4, ["v5e"], compiled=[compiled])


def test_a_batch_that_cannot_be_shared_out_is_named():
    config = tiny({"trainer": {"batch_size": 12, "micro_batches": 2}})
    with pytest.raises(UserError, match=r"batch_size=12 does not divide into 4 replicas"):
        estimate(config, devices=4)


def test_rematerialization_saves_memory_and_costs_flops():
    result = estimate(PretrainingConfig(), devices=64, accelerators=["h100"])
    kept, remade = (result["memory"][way]["activations"] for way in module.ACTIVATIONS)
    assert remade < kept / 10
    plans = result["accelerators"]["h100"]["plans"]
    assert plans["rematerialized"]["micro_batches"] <= plans["kept"]["micro_batches"]
    assert plans["rematerialized"]["step_seconds"] > plans["kept"]["step_seconds"]

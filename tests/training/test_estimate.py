"""The arithmetic by hand, and what it decides."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_sizes import VARIANTS, tiny

from cocolm_tf.errors import UserError
from cocolm_tf.training import estimate as module
from cocolm_tf.training.accelerators import ACCELERATORS, Accelerator
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.estimate import estimate, format_report, plan
from cocolm_tf.training.flops import (
    pretraining_flops,
    rematerialization_flops,
    similarity_flops,
)
from cocolm_tf.training.memory import step_memory

DEVICE = Accelerator(
    "toy",
    bfloat16_flops=2e9,
    float32_flops=1e9,
    memory=1e6,
    memory_bandwidth=1e6,
    link_bandwidth=1e6,
    source="made up",
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
    assert result["gather_bytes"] == 3 * (devices - 1) * (2 * 16 // devices) * 12 * 4
    config.objective.scl_weight = 0.0
    assert estimate(config, devices, accelerators=[])["gather_bytes"] == 0


def test_links_and_memory_take_their_time():
    config = tiny({"trainer": {"batch_size": 8}})
    result = estimate(config, 4, ["v5e"])
    sent = result["all_reduce_bytes"] + result["gather_bytes"]
    of_v5e = result["accelerators"]["v5e"]
    assert of_v5e["link_seconds"] == sent / 200e9
    assert of_v5e["update_seconds"] == 28 * result["parameters"] / 819e9
    slow = estimate(config, 4, ["v5e"], link_bandwidth=1e9)
    assert slow["accelerators"]["v5e"]["link_seconds"] == sent / 1e9


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
    device = Accelerator("toy", 2e9, 1e9, memory, 1e6, 1e6, "made up", "TOY")
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


def test_a_batch_that_cannot_be_shared_out_is_named():
    config = tiny({"trainer": {"batch_size": 12, "micro_batches": 2}})
    with pytest.raises(UserError, match=r"batch_size=12 does not divide into 4 replicas"):
        estimate(config, devices=4)


def test_rematerialization_saves_memory_and_costs_flops():
    result = estimate(PretrainingConfig(), devices=64, accelerators=["h100"])
    kept, remade = (result["memory"][way]["activations"] for way in module.WAYS)
    assert remade < kept / 10
    plans = result["accelerators"]["h100"]["plans"]
    assert plans["rematerialized"]["micro_batches"] <= plans["kept"]["micro_batches"]
    assert plans["rematerialized"]["step_seconds"] > plans["kept"]["step_seconds"]

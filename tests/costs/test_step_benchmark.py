"""The benchmark's arithmetic and its data; that it is fast is not for a test to say."""

import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.costs import step_benchmark as module
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig


def tiny(**changes: dict) -> PretrainingConfig:
    config = PretrainingConfig()
    sizes = {
        "vocabulary_size": 97,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "max_sequence_length": 32,
    }
    config.override({"model": sizes, "auxiliary": {"num_layers": 1}})
    config.override({"data": {"sequence_length": 20}, "trainer": {"batch_size": 4}})
    config.override(changes)
    return config


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch):
    """Steps that took 1, 2 and 4 seconds, on a machine that slowed down meanwhile."""
    rates = iter([5e6, 3e6])
    monkeypatch.setattr(module, "matmul_rate", lambda dtype: next(rates))
    monkeypatch.setattr(module, "_time_steps", lambda *arguments: (30.0, [4.0, 1.0, 2.0]))


@pytest.mark.usefixtures("timed")
def test_rates_are_those_of_the_median_step_and_the_whole_batch():
    config = tiny(trainer={"micro_batches": 2})
    result = module.benchmark(config, steps=3)
    flops = sum(pretraining_flops(config).values())
    assert result["tokens_per_second"] == 4 * 20 / 2
    assert result["sequences_per_second"] == 4 / 2
    assert result["first_step_seconds"] == 30
    assert result["flops_per_step"] == sum(result["flops_by_part"].values()) == flops
    assert result["flops_per_second"] == flops / 2
    assert result["matmul_flops_per_second"] == 5e6, "the better of before and after"
    assert result["matmul_share"] == flops / 2 / 5e6
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.slow
def test_the_first_step_the_warm_up_and_the_timed_steps_all_train(monkeypatch):
    built = []

    def build(*arguments):
        built.append(build_pretrainer(*arguments))
        return built[0]

    build_pretrainer = module.build_pretrainer
    monkeypatch.setattr(module, "build_pretrainer", build)
    monkeypatch.setattr(module, "matmul_rate", lambda dtype: 1e9)
    # The main model alone, which is soon traced.
    config = tiny(auxiliary={"replacements": "random"}, objective={"scl_weight": 0.0})
    result = module.benchmark(config, steps=3, warmup_steps=2)
    assert int(built[0].optimizer.iterations) == 1 + 2 + 3
    spread = result["step_seconds"]
    order = ("min", "first_quartile", "median", "third_quartile", "max")
    assert all(0 < spread[a] <= spread[b] for a, b in itertools.pairwise(order))
    assert result["parameters"] == sum(v.numpy().size for v in built[0].trainable_variables)
    assert result["skipped_updates"] == 0


def test_batches_are_full_and_look_like_the_pipelines():
    config = tiny()
    first, second, again = module.random_batches(config, count=2).take(3)
    assert first["token_ids"].shape == [4, 20]
    assert first["masked_positions"].shape == first["masked_weights"].shape == [4, 3]
    assert first["crop_token_ids"].shape == [4, 1 + 17]
    assert first["padding_mask"].numpy().all() and first["crop_padding_mask"].numpy().all()
    ids = first["token_ids"].numpy()
    assert (ids[:, 0] == 0).all() and (ids[:, -1] == 2).all()
    assert ids[:, 1:-1].min() >= 4 and ids[:, 1:-1].max() < 96
    assert (ids != second["token_ids"].numpy()).any()
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": {"vocabulary_size": 5}}, "model.vocabulary_size=5 leaves no ordinary token"),
        ({"data": {"sequence_length": 2}}, "data.sequence_length=2 leaves no room"),
        ({"trainer": {"micro_batches": 3}}, "trainer.batch_size=4 does not divide"),
        ({"model": {"relative_position_bins": 6}}, "relative_position_bins must be a multiple"),
    ],
)
def test_sizes_that_do_not_fit_are_the_users_mistake(changes: dict, complaint: str):
    with pytest.raises(UserError, match=complaint) as raised:
        module.benchmark(tiny(**changes), steps=1)
    assert "\n" not in str(raised.value)


def test_too_little_memory_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def exhausted(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(module, "_time_steps", exhausted)
    monkeypatch.setattr(module, "matmul_rate", lambda dtype: 1e9)
    with pytest.raises(UserError, match="trainer.batch_size=4 in trainer.micro_batches=1"):
        module.benchmark(tiny(), steps=1)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_a_summary_is_in_order_and_of_the_times(seconds: list[float]):
    summary = module.summarize(seconds)
    assert summary["min"] == min(seconds) and summary["max"] == max(seconds)
    assert summary["first_quartile"] <= summary["median"] <= summary["third_quartile"]
    assert summary["mean"] == pytest.approx(sum(seconds) / len(seconds))


def test_the_matmul_rate_is_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.tf, "matmul", lambda left, right: left)
    # Three calls, of 3, 1 and 2 seconds.
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module.tf.config, "list_physical_devices", lambda kind: [])
    assert module.matmul_rate("bfloat16") == 2 * 2048**3


def test_a_gpu_is_asked_for_its_name_and_its_own_memory(monkeypatch: pytest.MonkeyPatch):
    config = module.tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(
        config.experimental, "get_device_details", lambda gpu: {"device_name": "Some GPU"}
    )
    monkeypatch.setattr(
        config.experimental, "get_memory_info", lambda name: {"current": 1, "peak": 7}
    )
    assert module.describe_device() == "GPU, Some GPU"
    assert module.peak_memory() == 7


def test_a_cpu_is_asked_for_the_memory_of_the_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.tf.config, "list_physical_devices", lambda kind: [])
    assert module.describe_device().startswith("CPU, ")
    # Python and TensorFlow alone take more than this, and no machine has as much as that.
    assert 50 * 2**20 < module.peak_memory() < 2**50

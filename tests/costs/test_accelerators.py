import types

import pytest
import tensorflow as tf

from cocolm_tf.costs import accelerators
from cocolm_tf.costs.accelerators import (
    ACCELERATORS,
    device_type,
    gpu_peak_flops,
    peak_flops,
    tpu_peak_flops,
)


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "mixed_bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7),
        ("NVIDIA H100 PCIe", "mixed_bfloat16", 756.5),
        ("NVIDIA H100 NVL", "mixed_bfloat16", 835.5),
        ("NVIDIA H200", "mixed_float16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "mixed_bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "float32", 156),
        ("NVIDIA A10", "mixed_bfloat16", 125),
        ("Tesla V100-SXM2-16GB", "mixed_float16", 125),
        ("Tesla V100-SXM2-16GB", "mixed_bfloat16", None),
        ("NVIDIA A10G", "mixed_bfloat16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "mixed_bfloat16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "mixed_bfloat16", None),
        ("", "float32", None),
    ],
)
def test_gpus_are_known_by_name(name: str, precision: str, teraflops: float | None):
    assert gpu_peak_flops(name, precision) == (teraflops and teraflops * 1e12)


@pytest.mark.parametrize(
    ("name", "chips", "key"),
    [("v4-32", 16, "v4"), ("v5litepod-4", 4, "v5e"), ("v5p-8", 4, "v5p")],
)
def test_tpus_are_known_by_their_slices_name(name: str, chips: int, key: str):
    assert tpu_peak_flops(name) == chips * ACCELERATORS[key].bfloat16_flops
    assert tpu_peak_flops(f"x{name}") is None and tpu_peak_flops("") is None


def test_all_devices_of_all_hosts_count(monkeypatch: pytest.MonkeyPatch):
    """Two hosts of two GPUs each, of different kinds."""
    names = ["NVIDIA A100-SXM4-40GB", "NVIDIA H100 PCIe", "NVIDIA H200"]
    fake = types.SimpleNamespace(
        list_physical_devices=lambda kind: names,
        experimental=types.SimpleNamespace(get_device_details=lambda n: {"device_name": n}),
    )
    monkeypatch.setattr(accelerators.tf, "config", fake)
    devices = [f"/job:worker/replica:0/task:1/device:GPU:{number}" for number in range(2)]
    strategy = types.SimpleNamespace(
        extended=types.SimpleNamespace(worker_devices=devices), num_replicas_in_sync=4
    )
    assert device_type(strategy) == "GPU"
    assert peak_flops(strategy, "mixed_bfloat16") == 2 * (312e12 + 756.5e12)
    names[1] = "another"
    assert peak_flops(strategy, "mixed_bfloat16") is None


def test_a_cpus_peak_is_not_known(mirrored_strategy):
    for strategy in (mirrored_strategy, tf.distribute.OneDeviceStrategy("CPU:0")):
        assert device_type(strategy) == "CPU"
        assert peak_flops(strategy, "float32") is None

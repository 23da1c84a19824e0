import subprocess
import types
from pathlib import Path

import pytest
import tensorflow as tf

from cocolm_tf.costs import accelerators
from cocolm_tf.costs.accelerators import (
    ACCELERATORS,
    device_type,
    energy_text,
    gpu_peak_flops,
    peak_flops,
    power_limit,
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


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program in the place of NVIDIA's that says something."""

    def install(says: str, then: str = "") -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{says}'\n{then}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("says", "devices", "watts"),
    [
        ("700.00\\n700.00\\n", 1, 700),
        ("700.00\\n700.00\\n", 2, 1400),
        ("[N/A]\\n", 1, None),
        ("", 1, None),
    ],
)
def test_gpus_say_it_by_nvidias_program(nvidia_smi, says: str, devices: int, watts):
    nvidia_smi(says)
    assert power_limit("GPU", devices) == watts


def test_a_program_that_hangs_says_nothing(nvidia_smi, monkeypatch: pytest.MonkeyPatch):
    """Not even when it can neither be killed, as one that waits for its driver cannot."""
    nvidia_smi("700.00\\n", then="exec /bin/sleep 30")
    monkeypatch.setattr(accelerators, "_NVIDIA_SECONDS", 0.1)
    hanging = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: hanging.append(process))
    try:
        assert power_limit("GPU") is None
    finally:
        monkeypatch.undo()
        for process in hanging:
            process.kill()
            process.wait()
    assert len(hanging) == 1


def test_processors_say_it_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accelerators, "_PROCESSORS", f"{tmp_path}/intel-rapl:[0-9]*")
    assert power_limit("CPU") is None
    for name, limit in (("intel-rapl:0", 150), ("intel-rapl:1", 100), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "constraint_0_power_limit_uw").write_text(f"{limit}000000\n")
    assert power_limit("CPU") == 250
    assert power_limit("TPU") is None, "that of the host's processors would be another's"
    (tmp_path / "intel-rapl:1" / "constraint_0_power_limit_uw").unlink()
    assert power_limit("CPU") is None


def test_energy_is_power_times_time_or_not_known():
    assert "7 kWh, 10 hours at the devices' limit of 700 W" in energy_text(10.0, 700.0)
    assert "not known" in energy_text(10.0, None)

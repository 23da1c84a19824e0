import subprocess
from pathlib import Path

import pytest

from cocolm_tf.costs import energy
from cocolm_tf.costs.energy import energy_text, power_limit


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
    monkeypatch.setattr(energy, "_NVIDIA_SECONDS", 0.1)
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
    monkeypatch.setattr(energy, "_PROCESSORS", f"{tmp_path}/intel-rapl:[0-9]*")
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

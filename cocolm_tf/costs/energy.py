"""The power that a machine's devices may draw, as the machine itself reports it."""

import glob
import os
import shutil
import subprocess

_NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits")
_NVIDIA_SECONDS = 30.0
# Each of these is a processor; those with two colons are parts of one.
_PROCESSORS = "/sys/class/powercap/intel-rapl:[0-9]*"


def power_limit(device_type: str, devices: int = 1) -> float | None:
    """The power limit in watts of this host's devices, the most that they draw for long."""
    if device_type == "GPU":
        limits = _gpu_limits()[:devices]
    else:
        limits = _processor_limits() if device_type == "CPU" else []
    return sum(limits) if limits else None


def energy_text(hours: float, watts: float | None) -> str:
    """Formats the energy that a run took at most."""
    if watts is None:
        return "Energy: not known, as the machine does not say how much power its devices draw."
    return (
        f"Energy, estimated: {hours * watts / 1000:.2g} kWh, {hours:.3g} hours at the devices' "
        f"limit of {watts:.0f} W."
    )


def _gpu_limits() -> list[float]:
    if not shutil.which(_NVIDIA_QUERY[0]):
        return []
    process = subprocess.Popen(
        _NVIDIA_QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        answer, _ = process.communicate(timeout=_NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        # Not waited for, as `subprocess.run` would: what hangs in a driver cannot be killed either.
        process.kill()
        return []
    limits = []
    for line in answer.splitlines():
        try:
            limits.append(float(line))
        except ValueError:  # "[N/A]"
            return []
    return limits


def _processor_limits() -> list[float]:
    limits = []
    for folder in sorted(glob.glob(_PROCESSORS)):
        if os.path.basename(folder).count(":") > 1:
            continue
        try:
            with open(f"{folder}/constraint_0_power_limit_uw") as file:
                limits.append(int(file.read()) / 1e6)
        except (OSError, ValueError):
            return []
    return limits

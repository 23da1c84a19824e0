"""How much power a machine's devices may draw, as the machine itself says."""

import glob
import os
import shutil
import subprocess

_NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits")
# Each of these is a processor; those with two colons are parts of one.
_PROCESSORS = "/sys/class/powercap/intel-rapl:[0-9]*"


def power_limit(uses_gpu: bool, devices: int = 1) -> float | None:
    """Reads the power that devices are limited to, the most that they draw for long.

    Args:
        uses_gpu: bool. Whether it is the NVIDIA GPUs that count, and not the processors.
        devices: int. How many GPUs, the first ones. Processors count all.

    Returns:
        Watts, or None where the machine does not say, as virtual ones mostly do not.

    Example:
    ```python
    power_limit(uses_gpu=True)  # 700.0 on an H100
    ```
    """
    limits = _gpu_limits()[:devices] if uses_gpu else _processor_limits()
    return sum(limits) if limits else None


def energy_text(hours: float, watts: float | None) -> str:
    """Says how much energy a run took at most.

    Args:
        hours: float. How long it ran.
        watts: float. As `power_limit` gives it.

    Returns:
        A sentence.

    Example:
    ```python
    energy_text(10.0, 700.0)  # "Energy, estimated: 7 kWh, 10 hours at the devices' limit of 700 W."
    ```
    """
    if watts is None:
        return "Energy: not known, as the machine does not say how much power its devices draw."
    return (
        f"Energy, estimated: {hours * watts / 1000:.2g} kWh, {hours:.3g} hours at the devices' "
        f"limit of {watts:.0f} W."
    )


def _gpu_limits() -> list[float]:
    if not shutil.which(_NVIDIA_QUERY[0]):
        return []
    answer = subprocess.run(_NVIDIA_QUERY, capture_output=True, text=True, timeout=30)
    limits = []
    for line in answer.stdout.splitlines():
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

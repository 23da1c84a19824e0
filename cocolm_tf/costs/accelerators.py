"""Accelerators by their vendors' data sheets, and the devices of this machine."""

import dataclasses
import glob
import os
import platform
import re
import shutil
import subprocess

import numpy as np
import tensorflow as tf

from cocolm_tf.cpus import available_cpus


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device, as its vendor's data sheet has it. Peaks are of dense products.

    Args:
        title: its name in full.
        bfloat16_flops: Peak FLOPs a second in bfloat16, and in float16.
        float32_flops: Peak FLOPs a second of products of float32 tensors as TensorFlow
            computes them by default: in TF32 on GPUs, by bfloat16 factors on TPUs.
        memory: Bytes.
        memory_bandwidth: Bytes a second between memory and cores.
        link_bandwidth: Bytes a second that it sends to its neighbors, in one direction.
        device_kind: how its driver, and so JAX and TensorFlow, names it.

    Example:
    ```python
    ACCELERATORS["h100"].peak_flops("mixed_bfloat16") / 1e12  # 989.4
    ```
    """

    title: str
    bfloat16_flops: float
    float32_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    device_kind: str

    def peak_flops(self, precision: str) -> float:
        """Its peak FLOPs a second in a configuration's `runtime.precision`."""
        return self.float32_flops if precision == "float32" else self.bfloat16_flops


# From NVIDIA's data sheets of the tensor core GPUs and Google's cloud.google.com/tpu/docs; v4's
# links from arxiv.org/abs/2304.01433. Data sheets of GPUs give NVLink's two directions together,
# and tensor cores' rates with sparsity: both are halved here. Those of TPUs give the interconnect
# in Gbit/s of one direction, or in GB/s of both.
ACCELERATORS = {
    "a100-40gb": Accelerator(
        "NVIDIA A100 SXM 40GB", 312e12, 156e12, 40e9, 1.555e12, 300e9, "NVIDIA A100-SXM4-40GB"
    ),
    "a100": Accelerator(
        "NVIDIA A100 SXM 80GB", 312e12, 156e12, 80e9, 2.039e12, 300e9, "NVIDIA A100-SXM4-80GB"
    ),
    "h100": Accelerator(
        "NVIDIA H100 SXM 80GB", 989.4e12, 494.7e12, 80e9, 3.35e12, 450e9, "NVIDIA H100 80GB HBM3"
    ),
    "h200": Accelerator(
        "NVIDIA H200 SXM 141GB", 989.4e12, 494.7e12, 141e9, 4.8e12, 450e9, "NVIDIA H200"
    ),
    "v4": Accelerator("Google TPU v4", 275e12, 275e12, 32 * 2**30, 1.2e12, 300e9, "TPU v4"),
    "v5e": Accelerator("Google TPU v5e", 197e12, 197e12, 16e9, 819e9, 200e9, "TPU v5 lite"),
    "v5p": Accelerator("Google TPU v5p", 459e12, 459e12, 95e9, 2.765e12, 600e9, "TPU v5"),
    "v6e": Accelerator("Google TPU v6e", 918e12, 918e12, 32e9, 1.638e12, 400e9, "TPU v6 lite"),
}

# Shares of the peak that encoders of so many parameters were pretrained at, by their authors'
# account: Ettin's, on H100s in bfloat16.
PUBLISHED_SHARES = {17e6: 0.057, 68e6: 0.166, 150e6: 0.246, 400e6: 0.34, 1e9: 0.39}


def published_share(parameters: float) -> float:
    """The share of the peak (MFU) that encoders of a size were published to reach."""
    sizes, shares = zip(*PUBLISHED_SHARES.items(), strict=True)
    return float(np.interp(np.log(parameters), np.log(sizes), shares))


# Peak FLOPs a second of dense products: in bfloat16, float16 and float32 (TF32, where there is
# such), 0 where the tensor cores have no such mode. From NVIDIA's data sheets and, of the GeForce
# cards, its white papers, with float32 sums. The first pattern found in the driver's name counts.
_GPU_PEAKS = (
    (r"\bB200\b", 2250e12, 2250e12, 1125e12),
    (r"\bH[12]00 NVL\b", 835.5e12, 835.5e12, 417.5e12),
    (r"\bG?H200\b", 989.4e12, 989.4e12, 494.7e12),
    (r"\bH100 PCIe\b", 756.5e12, 756.5e12, 378e12),
    (r"\bH100\b", 989.4e12, 989.4e12, 494.7e12),
    (r"\bA100\b", 312e12, 312e12, 156e12),
    (r"\bL40S\b", 362.05e12, 362.05e12, 183e12),
    (r"\bL4\b", 121e12, 121e12, 60e12),
    (r"\bA40\b", 149.7e12, 149.7e12, 74.8e12),
    (r"\bA30\b", 165e12, 165e12, 82e12),
    (r"\bA10\b", 125e12, 125e12, 62.5e12),
    (r"\bRTX 4090$", 165.2e12, 165.2e12, 82.6e12),
    (r"\bRTX 3090$", 71e12, 71e12, 35.6e12),
    (r"\bV100-(SXM2|SXM3)\b", 0.0, 125e12, 15.7e12),
    (r"\bV100-PCIE\b", 0.0, 112e12, 14e12),
    (r"\bT4\b", 0.0, 65e12, 8.1e12),
)
# Google's names of slices, as `v5litepod-16`: a chip's peak in bfloat16, which float32 factors are
# rounded to as well, and how many of the units that the name counts are in a chip.
_TPU_PEAKS = {
    "v2": (45e12, 2),
    "v3": (123e12, 2),
    "v4": (275e12, 2),
    "v5litepod": (197e12, 1),
    "v5p": (459e12, 2),
    "v6e": (918e12, 1),
}


def peak_flops(strategy: tf.distribute.Strategy, precision: str) -> float | None:
    """The peak FLOPs a second of all devices, of all hosts; None where one's is not known."""
    kind = device_type(strategy)
    if kind == "TPU":
        return tpu_peak_flops(os.environ.get("TPU_ACCELERATOR_TYPE", ""))
    if kind != "GPU":
        return None
    devices = strategy.extended.worker_devices
    gpus = tf.config.list_physical_devices("GPU")[: len(devices)]
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "") for gpu in gpus]
    peaks = [gpu_peak_flops(name, precision) for name in names]
    if not all(peaks):
        return None
    return sum(peaks) * strategy.num_replicas_in_sync / len(devices)


def device_type(strategy: tf.distribute.Strategy) -> str:
    """The kind of device that a strategy trains on, by TensorFlow's name: `CPU`, `GPU` or `TPU`."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type


def gpu_peak_flops(name: str, precision: str) -> float | None:
    """The peak FLOPs a second of a GPU, by its driver's name; None where it is not known."""
    for pattern, bfloat16, float16, float32 in _GPU_PEAKS:
        if re.search(pattern, name) and " MIG " not in name:
            peaks = {"mixed_bfloat16": bfloat16, "mixed_float16": float16, "float32": float32}
            return peaks[precision] or None
    return None


def tpu_peak_flops(slice_name: str) -> float | None:
    """The peak FLOPs a second of a TPU slice, by Google's name; None where it is not known."""
    found = re.fullmatch(r"(v[0-9a-z]+)-(\d+)", slice_name)
    if not found or found[1] not in _TPU_PEAKS:
        return None
    peak, units_per_chip = _TPU_PEAKS[found[1]]
    return peak * int(found[2]) / units_per_chip


# --- The devices of this machine ---

_NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits")
_NVIDIA_SECONDS = 30.0
# Each of these is a processor; those with two colons are parts of one.
_PROCESSORS = "/sys/class/powercap/intel-rapl:[0-9]*"


def describe_device() -> str:
    """The name of the device that one-device training uses: the first GPU, or the CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return f"GPU, {details.get('device_name', 'unnamed')}"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = (line.partition(":")[2].strip() for line in file if "model name" in line)
            name = next(names, name)
    return f"CPU, {name}, {available_cpus()} cores"


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

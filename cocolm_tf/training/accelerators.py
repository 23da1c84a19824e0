"""What the vendors say that their accelerators do: the figures that `estimate` reckons with."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device, as its vendor's data sheet has it. Peaks are of dense products.

    Args:
        title: its name in full.
        bfloat16_flops: float. Peak FLOPs a second in bfloat16, and in float16.
        float32_flops: float. Peak FLOPs a second of products of float32 tensors as TensorFlow
            computes them by default: in TF32 on GPUs, by bfloat16 factors on TPUs.
        memory: float. Bytes.
        memory_bandwidth: float. Bytes a second between memory and cores.
        link_bandwidth: float. Bytes a second that it sends to its neighbors, in one direction.
        source: where the figures are from.
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
    source: str
    device_kind: str

    def peak_flops(self, precision: str) -> float:
        """Its peak FLOPs a second in a configuration's `runtime.precision`."""
        return self.float32_flops if precision == "float32" else self.bfloat16_flops


# Data sheets of GPUs give NVLink's two directions together, and tensor cores' rates with sparsity:
# both are halved here. Those of TPUs give the interconnect in Gbit/s of one direction, or in GB/s
# of both.
ACCELERATORS = {
    "a100-40gb": Accelerator(
        "NVIDIA A100 SXM 40GB",
        bfloat16_flops=312e12,
        float32_flops=156e12,
        memory=40e9,
        memory_bandwidth=1.555e12,
        link_bandwidth=300e9,
        source="NVIDIA A100 Tensor Core GPU data sheet",
        device_kind="NVIDIA A100-SXM4-40GB",
    ),
    "a100": Accelerator(
        "NVIDIA A100 SXM 80GB",
        bfloat16_flops=312e12,
        float32_flops=156e12,
        memory=80e9,
        memory_bandwidth=2.039e12,
        link_bandwidth=300e9,
        source="NVIDIA A100 Tensor Core GPU data sheet",
        device_kind="NVIDIA A100-SXM4-80GB",
    ),
    "h100": Accelerator(
        "NVIDIA H100 SXM 80GB",
        bfloat16_flops=989.4e12,
        float32_flops=494.7e12,
        memory=80e9,
        memory_bandwidth=3.35e12,
        link_bandwidth=450e9,
        source="NVIDIA H100 Tensor Core GPU data sheet",
        device_kind="NVIDIA H100 80GB HBM3",
    ),
    "h200": Accelerator(
        "NVIDIA H200 SXM 141GB",
        bfloat16_flops=989.4e12,
        float32_flops=494.7e12,
        memory=141e9,
        memory_bandwidth=4.8e12,
        link_bandwidth=450e9,
        source="NVIDIA H200 Tensor Core GPU data sheet",
        device_kind="NVIDIA H200",
    ),
    "v4": Accelerator(
        "Google TPU v4",
        bfloat16_flops=275e12,
        float32_flops=275e12,
        memory=32 * 2**30,
        memory_bandwidth=1.2e12,
        link_bandwidth=300e9,
        source="cloud.google.com/tpu/docs/v4; links: arxiv.org/abs/2304.01433, 6 of 50 GB/s",
        device_kind="TPU v4",
    ),
    "v5e": Accelerator(
        "Google TPU v5e",
        bfloat16_flops=197e12,
        float32_flops=197e12,
        memory=16e9,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        source="cloud.google.com/tpu/docs/v5e",
        device_kind="TPU v5 lite",
    ),
    "v5p": Accelerator(
        "Google TPU v5p",
        bfloat16_flops=459e12,
        float32_flops=459e12,
        memory=95e9,
        memory_bandwidth=2.765e12,
        link_bandwidth=600e9,
        source="cloud.google.com/tpu/docs/v5p",
        device_kind="TPU v5",
    ),
    "v6e": Accelerator(
        "Google TPU v6e",
        bfloat16_flops=918e12,
        float32_flops=918e12,
        memory=32e9,
        memory_bandwidth=1.638e12,
        link_bandwidth=400e9,
        source="cloud.google.com/tpu/docs/v6e",
        device_kind="TPU v6 lite",
    ),
}

# Shares of the peak that encoders of so many parameters were pretrained at, by their authors'
# account: Ettin's, on H100s in bfloat16.
PUBLISHED_SHARES = {17e6: 0.057, 68e6: 0.166, 150e6: 0.246, 400e6: 0.34, 1e9: 0.39}


def published_share(parameters: float) -> float:
    """The share of the peak that encoders of a size were published to reach.

    `PUBLISHED_SHARES`, linear in the size's logarithm between them.

    Args:
        parameters: float. Of the model, word table included.

    Returns:
        The share, for sizes beyond the published ones that of the nearest.

    Example:
    ```python
    published_share(110e6)  # 0.21
    ```
    """
    sizes, shares = zip(*PUBLISHED_SHARES.items(), strict=True)
    return float(np.interp(np.log(parameters), np.log(sizes), shares))

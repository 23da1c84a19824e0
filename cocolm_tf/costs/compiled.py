"""The costs of a compiled function, read from the program that XLA makes of it."""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

from cocolm_tf.costs.accelerators import Accelerator

# The shares of their peaks that the best kernels reach, and the time from one to the next.
PRODUCT_SHARE = 0.8
BANDWIDTH_SHARE = 0.85
LAUNCH_SECONDS = 2.5e-6

_CALLS = ("call", "while", "conditional", "async-start")
# Instructions that name, regroup or await values, without moving them.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
_ENDS = ("async-update", "async-done", "copy-done", "all-reduce-done", "all-gather-done")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_TRANSFERS = ("infeed", "outfeed", "send", "recv")
_OTHER_SIZES = {"PRED": 1, "TOKEN": 0, "OPAQUE_TYPE": 0}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel: what a device runs by itself, not within a fusion."""

    instruction: hlo_pb2.HloInstructionProto  # of the optimized program
    name: str  # the layer and operation that it comes from, as the model names them
    count: int  # How often a step runs it; 1 in a loop whose length is not known
    bytes_accessed: int  # Bytes that it reads and writes in one run, each operand whole
    flops: int  # Of its matrix products in one run, two for each multiplication


def compiled_costs(
    function: tf.types.experimental.PolymorphicFunction, *arguments: Any
) -> dict[str, int]:
    """Counts what one call of a compiled function takes, without running it.

    The body of a loop counts once, however often it runs.

    Args:
        function: a `tf.function` with `jit_compile=True`.
        arguments: of the call, all that the function takes.

    Returns:
        `product_flops`, two for each multiplication of its matrix products before XLA rewrites
        them; `bytes_accessed`, what each of its kernels reads and writes, each operand whole;
        `kernels`, how many there are, and `host_transfers`, how many of them meet the host.

    Example:
    ```python
    product = tf.function(lambda x, y: x @ y, jit_compile=True)
    compiled_costs(product, tf.ones([2, 3]), tf.ones([3, 5]))["product_flops"]  # 60
    ```
    """
    program = function.experimental_get_compiler_ir(*arguments)
    written = hlo_pb2.HloModuleProto.FromString(program(stage="hlo_serialized"))
    optimized = kernels_of(program(stage="optimized_hlo_serialized"))
    return {
        "product_flops": sum(_dot_flops(computation) for computation in written.computations),
        "bytes_accessed": sum(kernel.bytes_accessed for kernel in optimized),
        "kernels": len(optimized),
        "host_transfers": sum(_is_host_transfer(kernel.instruction) for kernel in optimized),
    }


def kernels_of(program: bytes) -> list[Kernel]:
    """The kernels of an optimized program."""
    module = hlo_pb2.HloModuleProto.FromString(program)
    computations = {computation.id: computation for computation in module.computations}
    found, waiting = [], [(module.entry_computation_id, 1)]
    while waiting:
        number, times = waiting.pop()
        instructions = computations[number].instructions
        by_id = {one.id: one for one in instructions}
        for one in instructions:
            if one.opcode in _CALLS:
                trips = _trip_count(one) if one.opcode == "while" else 1
                waiting += [(called, times * trips) for called in one.called_computation_ids]
            elif one.opcode not in _FREE and one.opcode not in _ENDS:
                operands = [by_id[i] for i in one.operand_ids]
                moved = _size(one.shape) + sum(_size(operand.shape) for operand in operands)
                flops = _kernel_flops(one, operands, computations)
                found.append(Kernel(one, _origin(one, computations), times, moved, flops))
    return found


def roofline(kernels: Iterable[Kernel], device: Accelerator, precision: str) -> dict[str, Any]:
    """The least time that a GPU needs for kernels, one after the other."""
    total = collections.Counter()
    for kernel in kernels:
        total.update(_costs(kernel, device, precision))
    return dict(total)


def heaviest_groups(
    kernels: Iterable[Kernel],
    device: Accelerator,
    precision: str,
    measured: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sums kernels over layers; the heaviest groups first."""
    groups: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    shapes: dict[str, str] = {}
    for kernel in kernels:
        kind = "product" if kernel.flops else kernel.instruction.opcode
        name = f"{kind} {kernel.name}".strip()
        shapes.setdefault(name, _text(kernel.instruction.shape))
        groups[name].update(_costs(kernel, device, precision))
        if measured is not None:
            groups[name].update(measured_seconds=measured.get(kernel.instruction.name, 0.0))
    by = "least_seconds" if measured is None else "measured_seconds"
    keys = ("kernels", "flops", "bytes_accessed", "least_seconds", "measured_seconds")
    return [
        {
            "name": name,
            **{key: groups[name][key] for key in keys if key in groups[name]},
            "shape": shapes[name],
        }
        for name in sorted(groups, key=lambda name: -groups[name][by])
    ]


def _costs(kernel: Kernel, device: Accelerator, precision: str) -> dict[str, float]:
    """The costs of all runs of a kernel."""
    # It takes as long as its products at `PRODUCT_SHARE` of the peak or its bytes at
    # `BANDWIDTH_SHARE` of the memory's bandwidth, whichever is longer, and `LAUNCH_SECONDS`. What
    # devices send one another is not in it, and that something stays in a cache from one kernel to
    # the next neither.
    products = kernel.flops / (PRODUCT_SHARE * device.peak_flops(precision))
    memory = kernel.bytes_accessed / (BANDWIDTH_SHARE * device.memory_bandwidth)
    costs = {
        "kernels": 1,
        "collectives": kernel.instruction.opcode.removesuffix("-start") in _COLLECTIVES,
        "flops": kernel.flops,
        "bytes_accessed": kernel.bytes_accessed,
        "least_seconds": max(products, memory) + LAUNCH_SECONDS,
        "products_seconds": products,
        "memory_seconds": memory,
        "launches_seconds": LAUNCH_SECONDS,
    }
    return {name: kernel.count * cost for name, cost in costs.items()}


def _kernel_flops(
    kernel: hlo_pb2.HloInstructionProto,
    operands: list[hlo_pb2.HloInstructionProto],
    computations: dict[int, hlo_pb2.HloComputationProto],
) -> int:
    """The FLOPs of a kernel's matrix products: within a fusion, or by a library's call."""
    if kernel.opcode == "dot":
        axes = kernel.dot_dimension_numbers.lhs_contracting_dimensions
        return _product(kernel.shape, operands[0].shape, axes)
    if kernel.opcode == "custom-call":
        return _library_flops(kernel, operands)
    found, waiting = 0, list(kernel.called_computation_ids)
    while waiting:
        computation = computations[waiting.pop()]
        found += _dot_flops(computation)
        for one in computation.instructions:
            waiting += one.called_computation_ids
    return found


def _dot_flops(computation: hlo_pb2.HloComputationProto) -> int:
    shapes = {one.id: one.shape for one in computation.instructions}
    return sum(
        _product(
            one.shape,
            shapes[one.operand_ids[0]],
            one.dot_dimension_numbers.lhs_contracting_dimensions,
        )
        for one in computation.instructions
        if one.opcode == "dot"
    )


def _product(
    result: xla_data_pb2.ShapeProto, left: xla_data_pb2.ShapeProto, contracted: Iterable[int]
) -> int:
    summed = [left.dimensions[axis] for axis in contracted]
    return 2 * math.prod(result.dimensions) * math.prod(summed)


def _library_flops(
    kernel: hlo_pb2.HloInstructionProto, operands: list[hlo_pb2.HloInstructionProto]
) -> int:
    """The FLOPs of cuBLAS, and of attention by cuDNN: two products forward, five backward."""
    target = kernel.custom_call_target
    if target.startswith("__cublas$"):
        numbers = json.loads(kernel.backend_config)["gemm_backend_config"]["dot_dimension_numbers"]
        shape = kernel.shape.tuple_shapes[0] if kernel.shape.tuple_shapes else kernel.shape
        return _product(shape, operands[0].shape, map(int, numbers["lhs_contracting_dimensions"]))
    if target.startswith("__cudnn$fmha"):
        config = json.loads(kernel.backend_config)["cudnn_fmha_backend_config"]
        sizes = [int(size) for size in config["intermediate_tensor_shape"]["dimensions"]]
        # Queries are as many as rows of scores [batch, heads, queries, keys].
        width = math.prod(operands[0].shape.dimensions) // math.prod(sizes[:3])
        return (5 if "Backward" in target else 2) * 2 * math.prod(sizes) * width
    return 0


def _trip_count(loop: hlo_pb2.HloInstructionProto) -> int:
    config = json.loads(loop.backend_config) if loop.backend_config.startswith(b"{") else {}
    return int(config.get("known_trip_count", {}).get("n", 1))


def _origin(
    kernel: hlo_pb2.HloInstructionProto, computations: dict[int, hlo_pb2.HloComputationProto]
) -> str:
    """The layer and operation of a kernel, without numbers that distinguish like ones."""
    name = kernel.metadata.op_name
    if not name:
        inside = collections.Counter(
            one.metadata.op_name
            for called in kernel.called_computation_ids
            for one in computations[called].instructions
            if one.metadata.op_name
        )
        name = inside.most_common(1)[0][0] if inside else ""
    parts = [re.sub(r"(_\d+)+$", "", part) for part in name.split(";")[-1].split("/")]
    return "/".join(part for part in parts if part not in ("PartitionedCall", ""))


def _size(shape: xla_data_pb2.ShapeProto) -> int:
    if shape.element_type == xla_data_pb2.TUPLE:
        return sum(_size(part) for part in shape.tuple_shapes)
    name = xla_data_pb2.PrimitiveType.Name(shape.element_type)  # F32, BF16, S8, PRED, TOKEN
    bits = re.search(r"\d+", name)
    element = int(bits[0]) / 8 if bits else _OTHER_SIZES[name]
    return math.ceil(math.prod(shape.dimensions) * element)


def _text(shape: xla_data_pb2.ShapeProto) -> str:
    if shape.element_type == xla_data_pb2.TUPLE:
        return "(" + ", ".join(map(_text, shape.tuple_shapes)) + ")"
    name = xla_data_pb2.PrimitiveType.Name(shape.element_type).lower()
    return name + "[" + ",".join(map(str, shape.dimensions)) + "]"


def _is_host_transfer(kernel: hlo_pb2.HloInstructionProto) -> bool:
    return kernel.opcode in _TRANSFERS or "callback" in kernel.custom_call_target

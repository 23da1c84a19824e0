"""What a compiled function costs, read from the program that XLA makes of it."""

import math
import re
from typing import Any

import tensorflow as tf
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

_CALLS = ("call", "while", "conditional", "async-start")
# What names or regroups values, or waits for them, without touching them.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
_TRANSFERS = ("infeed", "outfeed", "send", "recv")
_OTHER_SIZES = {"PRED": 1, "TOKEN": 0, "OPAQUE_TYPE": 0}


def compiled_costs(
    function: tf.types.experimental.PolymorphicFunction, *arguments: Any
) -> dict[str, int]:
    """Counts what one call of a compiled function takes, without running it.

    The body of a loop counts once, however often it runs.

    Args:
        function: a `tf.function` with `jit_compile=True`.
        arguments: of the call, all that the function takes.

    Returns:
        `product_flops`: two for each multiplication of its matrix products, before XLA rewrites
        them;
        `bytes_accessed`: the sizes of what each of its kernels reads and writes, each operand
        whole, as XLA's cost model adds them up;
        `kernels`: how many there are;
        `host_transfers`: how many of them exchange something with the host.

    Example:
    ```python
    product = tf.function(lambda x, y: x @ y, jit_compile=True)
    compiled_costs(product, tf.ones([2, 3]), tf.ones([3, 5]))["product_flops"]  # 60
    ```
    """
    program = function.experimental_get_compiler_ir(*arguments)
    written = hlo_pb2.HloModuleProto.FromString(program(stage="hlo_serialized"))
    optimized = hlo_pb2.HloModuleProto.FromString(program(stage="optimized_hlo_serialized"))
    kernels = _kernels(optimized)
    return {
        "product_flops": sum(_product_flops(computation) for computation in written.computations),
        "bytes_accessed": sum(read_and_written for _, read_and_written in kernels),
        "kernels": len(kernels),
        "host_transfers": sum(_meets_host(kernel) for kernel, _ in kernels),
    }


def _product_flops(computation: hlo_pb2.HloComputationProto) -> int:
    shapes = {one.id: one.shape for one in computation.instructions}
    total = 0
    for one in computation.instructions:
        if one.opcode == "dot":
            left = shapes[one.operand_ids[0]].dimensions
            summed = [left[axis] for axis in one.dot_dimension_numbers.lhs_contracting_dimensions]
            total += 2 * math.prod(one.shape.dimensions) * math.prod(summed)
    return total


def _kernels(module: hlo_pb2.HloModuleProto) -> list[tuple[hlo_pb2.HloInstructionProto, int]]:
    """All that runs by itself, not within a fusion, and the bytes that it reads and writes."""
    computations = {computation.id: computation for computation in module.computations}
    found, waiting = [], [module.entry_computation_id]
    while waiting:
        instructions = computations[waiting.pop()].instructions
        sizes = {one.id: _size(one.shape) for one in instructions}
        for one in instructions:
            if one.opcode in _CALLS:
                waiting += one.called_computation_ids
            elif one.opcode not in _FREE:
                found.append((one, sizes[one.id] + sum(sizes[i] for i in one.operand_ids)))
    return found


def _size(shape: xla_data_pb2.ShapeProto) -> int:
    if shape.element_type == xla_data_pb2.TUPLE:
        return sum(_size(part) for part in shape.tuple_shapes)
    name = xla_data_pb2.PrimitiveType.Name(shape.element_type)  # F32, BF16, S8, PRED, TOKEN
    bits = re.search(r"\d+", name)
    element = int(bits[0]) / 8 if bits else _OTHER_SIZES[name]
    return math.ceil(math.prod(shape.dimensions) * element)


def _meets_host(kernel: hlo_pb2.HloInstructionProto) -> bool:
    return kernel.opcode in _TRANSFERS or "callback" in kernel.custom_call_target

"""Programs that XLA makes, and one made by hand, of one kernel of each kind."""

import json

import pytest
import tensorflow as tf
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

from cocolm_tf.costs import compiled as module
from cocolm_tf.costs.accelerators import Accelerator
from cocolm_tf.costs.compiled import compiled_costs, heaviest_groups, kernels_of, roofline


def costs(function, *arguments) -> dict[str, int]:
    return compiled_costs(tf.function(function, jit_compile=True, autograph=False), *arguments)


@pytest.mark.parametrize(("dtype", "width"), [(tf.float32, 4), (tf.float64, 8)])
def test_a_product_reads_its_factors_and_writes_itself(dtype, width):
    found = costs(lambda x, y: x @ y, tf.ones([2, 3], dtype), tf.ones([3, 5], dtype))
    assert found == {
        "product_flops": 2 * 2 * 3 * 5,
        "bytes_accessed": width * (2 * 3 + 3 * 5 + 2 * 5),
        "kernels": 1,
        "host_transfers": 0,
    }


def test_batches_of_products_count_each():
    x, y = tf.ones([7, 2, 3]), tf.ones([7, 5, 3])
    found = costs(lambda x, y: tf.matmul(x, y, transpose_b=True), x, y)
    assert found["product_flops"] == 7 * 2 * 2 * 3 * 5


def test_what_is_fused_is_read_and_written_once():
    found = costs(lambda x: tf.exp(tf.sqrt(x) + 1.0) * x, tf.ones([1000]))
    assert found == {
        "product_flops": 0,
        "bytes_accessed": 2 * 4 * 1000,
        "kernels": 1,
        "host_transfers": 0,
    }


def test_variables_are_read_and_written():
    variable = tf.Variable(tf.ones([1000]))

    def add(x):
        variable.assign_add(tf.tanh(x))

    found = costs(add, tf.ones([1000]))
    assert found["bytes_accessed"] == 3 * 4 * 1000


def test_the_body_of_a_loop_counts_once():
    def power(x):
        return tf.while_loop(lambda i, _: i < 9, lambda i, y: (i + 1, y @ x), (0, x))[1]

    assert costs(power, tf.ones([4, 4]))["product_flops"] == 2 * 4**3


@pytest.mark.parametrize(
    ("instruction", "meets"),
    [
        ({"opcode": "send"}, True),
        ({"opcode": "infeed"}, True),
        ({"opcode": "custom-call", "custom_call_target": "xla_ffi_python_cpu_callback"}, True),
        ({"opcode": "custom-call", "custom_call_target": "__cublas$gemm"}, False),
        ({"opcode": "fusion"}, False),
    ],
    ids=str,
)
def test_what_meets_the_host(instruction, meets):
    assert module._is_host_transfer(hlo_pb2.HloInstructionProto(**instruction)) is meets


@pytest.mark.parametrize(
    ("type_name", "size"), [("F32", 40), ("BF16", 20), ("PRED", 10), ("S4", 5), ("C64", 80)]
)
def test_sizes_are_those_of_the_type(type_name, size):
    shape = xla_data_pb2.ShapeProto(
        element_type=xla_data_pb2.PrimitiveType.Value(type_name), dimensions=[2, 5]
    )
    assert module._size(shape) == size
    pair = xla_data_pb2.ShapeProto(element_type=xla_data_pb2.TUPLE, tuple_shapes=[shape, shape])
    assert module._size(pair) == 2 * size


# --- By hand ---

# Its products run at 1 GFLOP/s and its memory at 1 MB/s, after the shares that kernels reach.
DEVICE = Accelerator(
    "toy",
    bfloat16_flops=1e9 / module.PRODUCT_SHARE,
    float32_flops=1e8,
    memory=1e6,
    memory_bandwidth=1e6 / module.BANDWIDTH_SHARE,
    link_bandwidth=1e6,
    device_kind="TOY",
)
LAYER = "gradient_tape/main_1/block_{}_1/PartitionedCall_2/MatMul_4"


def array(*sizes, element_type="F32"):
    number = xla_data_pb2.PrimitiveType.Value(element_type)
    return xla_data_pb2.ShapeProto(element_type=number, dimensions=sizes)


class Computation:
    """Instructions added one by one, numbered through the module."""

    def __init__(self, module):
        self.module = module
        self.proto = module.computations.add(id=100 + len(module.computations))

    def add(self, opcode, shape, *operands, called=(), op_name="", **fields):
        one = self.proto.instructions.add(
            id=len(self.proto.instructions) + 1,
            name=f"{opcode}.{len(self.proto.instructions) + 1}",
            opcode=opcode,
            shape=shape,
            operand_ids=operands,
            called_computation_ids=[computation.proto.id for computation in called],
            **fields,
        )
        one.metadata.op_name = op_name
        return one.id


def product_numbers():
    return xla_data_pb2.DotDimensionNumbers(
        lhs_contracting_dimensions=[1], rhs_contracting_dimensions=[0]
    )


@pytest.fixture
def kernels():
    module = hlo_pb2.HloModuleProto()
    fused = [Computation(module) for _ in range(2)]
    for number, one in enumerate(fused):
        left = one.add("parameter", array(20, 30, element_type="BF16"))
        right = one.add("parameter", array(30, 50, element_type="BF16"))
        one.add(
            "dot",
            array(20, 50),
            left,
            right,
            dot_dimension_numbers=product_numbers(),
            op_name=LAYER.format(number),
        )
    body = Computation(module)
    state = body.add("parameter", array(100))
    body.add("fusion", array(100), state, op_name="AddN_3")

    entry = Computation(module)
    module.entry_computation_id = entry.proto.id
    left = entry.add("parameter", array(20, 30, element_type="BF16"))
    right = entry.add("parameter", array(30, 50, element_type="BF16"))
    for number, one in enumerate(fused):
        # The first has a name of its own, the second only what is inside.
        name = LAYER.format(number) if number == 0 else ""
        entry.add("fusion", array(20, 50), left, right, called=[one], op_name=name)
    config = {"gemm_backend_config": {"dot_dimension_numbers": {"lhs_contracting_dimensions": [1]}}}
    workspace = xla_data_pb2.ShapeProto(
        element_type=xla_data_pb2.TUPLE, tuple_shapes=[array(20, 50), array(64, element_type="S8")]
    )
    entry.add(
        "custom-call",
        workspace,
        left,
        right,
        custom_call_target="__cublas$gemm",
        backend_config=json.dumps(config).encode(),
        op_name="MatMul",
    )
    start = entry.add("all-reduce-start", array(100), left, op_name="CollectiveReduceV2")
    entry.add("all-reduce-done", array(100), start)
    count = json.dumps({"known_trip_count": {"n": "4"}}).encode()
    entry.add("while", array(100), start, called=[body], backend_config=count)
    entry.add("tuple", workspace, left)
    return kernels_of(module.SerializeToString())


def test_only_what_runs_by_itself_is_a_kernel(kernels):
    found = sorted((kernel.instruction.opcode, kernel.count) for kernel in kernels)
    assert found == [
        ("all-reduce-start", 1),
        ("custom-call", 1),
        ("fusion", 1),
        ("fusion", 1),
        ("fusion", 4),
    ]


def test_products_are_counted_in_fusions_and_in_library_calls(kernels):
    assert [kernel.flops for kernel in kernels if kernel.flops] == [2 * 20 * 30 * 50] * 3


def test_bytes_are_those_of_operands_and_results(kernels):
    factors, result = 2 * (20 * 30 + 30 * 50), 4 * 20 * 50
    assert [kernel.bytes_accessed for kernel in kernels if kernel.flops] == [
        factors + result,
        factors + result,
        factors + result + 64,
    ]


def test_each_kernel_takes_the_longer_of_products_and_memory(kernels):
    found = roofline(kernels, DEVICE, "mixed_bfloat16")
    fused, library, reduced, looped = 8200, 8264, 1200 + 400, 800
    moved = 2 * fused + library + reduced + 4 * looped
    assert found["kernels"] == 8
    assert found["collectives"] == 1
    assert found["flops"] == 3 * 60_000
    assert found["bytes_accessed"] == moved
    assert found["products_seconds"] == pytest.approx(3 * 60e-6)
    assert found["memory_seconds"] == pytest.approx(moved / 1e6)
    assert found["launches_seconds"] == pytest.approx(8 * module.LAUNCH_SECONDS)
    # All of these are bound by memory; in float32 the products are.
    expected = moved / 1e6 + 8 * module.LAUNCH_SECONDS
    assert found["least_seconds"] == pytest.approx(expected)
    slow = roofline([k for k in kernels if k.flops], DEVICE, "float32")
    products = 3 * 60_000 / (module.PRODUCT_SHARE * 1e8)
    assert products < slow["memory_seconds"]
    assert slow["least_seconds"] == pytest.approx(
        slow["memory_seconds"] + 3 * module.LAUNCH_SECONDS
    )


def test_layers_that_do_the_same_are_one_group(kernels):
    groups = {group["name"]: group for group in heaviest_groups(kernels, DEVICE, "mixed_bfloat16")}
    products = groups["product gradient_tape/main/block/MatMul"]
    assert (products["kernels"], products["flops"]) == (2, 2 * 60_000)
    assert products["shape"] == "f32[20,50]"
    assert groups["fusion AddN"]["kernels"] == 4
    total = sum(group["least_seconds"] for group in groups.values())
    found = roofline(kernels, DEVICE, "mixed_bfloat16")["least_seconds"]
    assert total == pytest.approx(found)


def test_groups_are_ordered_by_their_time_or_by_what_was_measured(kernels):
    groups = heaviest_groups(kernels, DEVICE, "mixed_bfloat16")
    seconds = [group["least_seconds"] for group in groups]
    assert seconds == sorted(seconds, reverse=True)
    reduction = next(k for k in kernels if k.instruction.opcode == "all-reduce-start")
    first, *_ = heaviest_groups(
        kernels, DEVICE, "mixed_bfloat16", measured={reduction.instruction.name: 1.0}
    )
    assert first["measured_seconds"] == 1.0
    assert first["name"] == "all-reduce-start CollectiveReduceV2"


@pytest.mark.parametrize(("target", "factor"), [("Softmax", 2), ("SoftmaxBackward", 5)])
def test_attention_by_cudnn_counts_its_products(target, factor):
    module = hlo_pb2.HloModuleProto()
    entry = Computation(module)
    module.entry_computation_id = entry.proto.id
    query = entry.add("parameter", array(2, 128, 4, 64, element_type="BF16"))
    config = {
        "cudnn_fmha_backend_config": {
            "intermediate_tensor_shape": {"dimensions": ["2", "4", "128", "128"]},
        }
    }
    entry.add(
        "custom-call",
        array(2, 128, 4, 64, element_type="BF16"),
        query,
        custom_call_target=f"__cudnn$fmha{target}",
        backend_config=json.dumps(config).encode(),
    )
    (kernel,) = kernels_of(module.SerializeToString())
    assert kernel.flops == factor * 2 * (2 * 4 * 128 * 128) * 64

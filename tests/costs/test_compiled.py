import pytest
import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2

from cocolm_tf.costs import compiled as module
from cocolm_tf.costs.compiled import compiled_costs


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
    assert module._meets_host(hlo_pb2.HloInstructionProto(**instruction)) is meets


@pytest.mark.parametrize(
    ("type_name", "size"), [("F32", 40), ("BF16", 20), ("PRED", 10), ("S4", 5), ("C64", 80)]
)
def test_sizes_are_those_of_the_type(type_name, size):
    shape = module.xla_data_pb2.ShapeProto(
        element_type=module.xla_data_pb2.PrimitiveType.Value(type_name), dimensions=[2, 5]
    )
    assert module._size(shape) == size
    pair = module.xla_data_pb2.ShapeProto(
        element_type=module.xla_data_pb2.TUPLE, tuple_shapes=[shape, shape]
    )
    assert module._size(pair) == 2 * size

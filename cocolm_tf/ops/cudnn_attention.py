"""NVIDIA's fused attention, called from a compiled step as JAX calls it.

XLA knows cuDNN's attention as custom calls: what they compute stands in a configuration, and which
layout their results have in attributes that no operation of TensorFlow sets. So a call is written
as a small StableHLO module, which TensorFlow takes as a part of a function.

Its dropout counts the calls of a kernel on the host, which a command buffer (a CUDA graph) would
leave out: `XLA_OPTIONS` keep it out of them, and are needed with it.
"""

import json
from typing import Any

import tensorflow as tf
from tensorflow.compiler.mlir.stablehlo import stablehlo
from tensorflow.compiler.tf2xla.python import xla

from cocolm_tf.ops.fusion import Gradient, device_kind, is_compiled

XLA_OPTIONS = {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT"}

_ELEMENTS = {tf.bfloat16: "bf16", tf.float16: "f16", tf.float32: "f32", tf.int32: "i32"}


def fits_cudnn(query: tf.Tensor, key: tf.Tensor) -> bool:
    """Whether `cudnn_attention` supports this."""
    return (
        is_compiled(query, key)
        and device_kind() == "GPU"
        and query.shape == key.shape
        and query.dtype in (tf.bfloat16, tf.float16)
    )


def cudnn_attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    excluded: tf.Tensor,
    relative: tf.Tensor,
    rate: float,
    seed: int,
) -> tf.Tensor:
    """`attention` of tensors [B, heads, S, D]; padding stands at the end of each sequence."""
    batch, heads, length, width = query.shape
    has_bias = relative.shape.num_elements() > 1
    target = f"__cudnn$fmha{'ScaleBias' * has_bias}Softmax{'Dropout' * (rate > 0)}"
    lengths = tf.reduce_sum(tf.cast(tf.equal(excluded[:, 0, 0], 0), tf.int32), axis=1)
    lengths = [tf.fill([batch], length), lengths]  # all queries, the keys that are no padding
    statistics_spec = tf.TensorSpec([batch, heads, length], tf.float32)

    def config(**products: dict[str, list[str]]) -> str:
        return _config([batch, heads, length, length], width, query.dtype, rate, seed, products)

    @tf.custom_gradient
    def compute(
        query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, *biases: tf.Tensor
    ) -> tuple[tf.Tensor, Gradient]:
        spec = tf.TensorSpec([batch, length, heads, width], query.dtype)
        operands = [_transposed(x) for x in (query, key, value)]
        attended, statistics = _call(
            target,
            config(
                bmm1_dot_dimension_numbers=_product(3, 3, "02", "02"),
                bmm2_dot_dimension_numbers=_product(3, 1, "01", "02"),
            ),
            [*operands, *biases, *lengths],
            [spec, statistics_spec],
        )

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            slopes = _call(
                target + "Backward",
                config(
                    bmm1_grad_gemm1_dot_dimension_numbers=_product(2, 1, "01", "02"),
                    bmm1_grad_gemm2_dot_dimension_numbers=_product(3, 1, "01", "02"),
                    bmm2_grad_gemm1_dot_dimension_numbers=_product(2, 1, "01", "02"),
                    bmm2_grad_gemm2_dot_dimension_numbers=_product(3, 3, "02", "02"),
                ),
                [*operands, statistics, _transposed(upstream), *biases, attended, *lengths],
                [spec] * 3 + [tf.TensorSpec(bias.shape, bias.dtype) for bias in biases],
            )
            return *(_transposed(slope) for slope in slopes[:3]), *slopes[3:]

        return _transposed(attended), gradient

    return compute(query, key, value, *([relative] if has_bias else []))


def _transposed(x: tf.Tensor) -> tf.Tensor:
    """[B, heads, S, D], attention's shape, to cuDNN's [B, S, heads, D], or back."""
    return tf.transpose(x, [0, 2, 1, 3])


def _call(
    target: str, config: str, operands: list[tf.Tensor], results: list[tf.TensorSpec]
) -> list[tf.Tensor]:
    """Calls a kernel; results in the operands' shape [B, S, heads, D] have their layout too."""
    names = [f"%in{number}" for number in range(len(operands))]
    types = [_type(x.shape, x.dtype) for x in operands]
    own_types, layouts, lines, returned = [], [], [], []
    for number, spec in enumerate(results):
        name, layout = f"%out#{number}", list(reversed(range(spec.shape.rank)))
        shape = spec.shape.as_list()
        if shape == operands[0].shape:
            # cuDNN calls it [B, heads, S, D], and writes it as it reads the operands.
            own, layout = [shape[0], shape[2], shape[1], shape[3]], [3, 1, 2, 0]
            lines.append(
                f"%back{number} = stablehlo.transpose {name}, dims = [0, 2, 1, 3] : "
                f"({_type(own, spec.dtype)}) -> {_type(shape, spec.dtype)}"
            )
            shape, name = own, f"%back{number}"
        own_types.append(_type(shape, spec.dtype))
        layouts.append(layout)
        returned.append(name)
    result_types = [_type(spec.shape, spec.dtype) for spec in results]
    parameters = ", ".join(f"{name}: {kind}" for name, kind in zip(names, types, strict=True))
    newline, escaped = "\n    ", config.replace('"', "\\22")
    module = f"""module {{
  func.func public @main({parameters}) -> ({", ".join(result_types)}) {{
    %out:{len(results) + 1} = stablehlo.custom_call @{target}({", ".join(names)}) {{
      api_version = 2 : i32, backend_config = "{escaped}",
      operand_layouts = {_layouts([reversed(range(x.shape.rank)) for x in operands])},
      result_layouts = {_layouts([*layouts, [0]])}
    }} : ({", ".join(types)}) -> ({", ".join(own_types)}, tensor<0xui8>)
    {newline.join(lines)}
    return {", ".join(returned)} : {", ".join(result_types)}
  }}
}}"""
    return xla.call_module(
        operands,
        version=xla.call_module_maximum_supported_version(),
        module=stablehlo.serialize_portable_artifact_str(module, stablehlo.get_current_version()),
        Tout=[spec.dtype for spec in results],
        Sout=[spec.shape for spec in results],
        platforms=["CUDA"],
        # A program for a GPU may be compiled on a machine without one.
        disabled_checks=[xla.call_module_disable_check_platform()],
    )


def _type(shape: Any, dtype: tf.DType) -> str:
    return f"tensor<{''.join(f'{size}x' for size in shape)}{_ELEMENTS[dtype]}>"


def _layouts(layouts: list[Any]) -> str:
    parts = (f"dense<{axes}> : tensor<{len(axes)}xindex>" for axes in map(list, layouts))
    return f"[{', '.join(parts)}]"


def _config(
    shape: list[int],
    width: int,
    dtype: tf.DType,
    rate: float,
    seed: int,
    products: dict[str, dict[str, Any]],
) -> str:
    """The JSON of a call's `CudnnfMHABackendConfig`, which XLA reads."""
    described = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": width**-0.5,
        "intermediate_tensor_shape": {
            "element_type": "BF16" if dtype == tf.bfloat16 else "F16",
            "dimensions": [str(size) for size in shape],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": "PADDING",
        "dropout_rate": rate,
        "seed": seed,
        "sliding_window_length": 0,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }
    return json.dumps(
        {"operation_queue_id": "0", "cudnn_fmha_backend_config": described | products}
    )


def _product(left: int, right: int, left_batch: str, right_batch: str) -> dict[str, list[str]]:
    return {
        "lhs_contracting_dimensions": [str(left)],
        "rhs_contracting_dimensions": [str(right)],
        "lhs_batch_dimensions": list(left_batch),
        "rhs_batch_dimensions": list(right_batch),
    }

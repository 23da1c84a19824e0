"""The whole training step as one file, which a machine with JAX alone compiles and runs."""

import copy
import io
import json
import os
import zipfile
from typing import Any

import numpy as np
import tensorflow as tf

from cocolm_tf.fusion import compiling_for
from cocolm_tf.modeling.cudnn_attention import XLA_OPTIONS
from cocolm_tf.training.accelerators import ACCELERATORS
from cocolm_tf.training.benchmark import prepare_step, random_batches
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.flops import pretraining_flops

FORMAT = 1
_BATCHES = 4


def export_step(
    config: PretrainingConfig, path: str, title: str = "", kind: str = "GPU"
) -> dict[str, Any]:
    """Writes the training step of a configuration, compiled as a whole, for one device.

    The file is a ZIP archive of three members, which `scripts/run_step.py` reads:

    - `step.mlir`: StableHLO as text. Its results are the variables that the step writes, and
      its attribute `mhlo.input_output_alias` says which argument each of them updates;
    - `step.json`: what its arguments are, in order, and what the step does (see Returns);
    - `arrays.npz`: batches of random tokens, masked and cropped as in training, and what the step
      reads beside them and the variables.

    Args:
        config: the run. `trainer.batch_size` sequences are one step.
        path: the file to write.
        title: what the program is called in reports.
        kind: of the device that it is for, one of `cocolm_tf.fusion.DEVICE_KINDS`.

    Returns:
        The description in `step.json`:
        `arguments`, a list of `name`, `shape`, `dtype` and `kind`: `feature` (of a batch),
        `variable` (with the `mean` and `deviation` of its initial values) or `constant`;
        `title`, `precision`, `batch_size`, `sequence_length`, `replicas`;
        `tokens` and model `flops` of a step; `peak_flops` of known devices in this precision;
        `xla_options`, what XLA must be told to run it;
        `losses`, the name of each loss with those of the variables that its mean is made of;
        `config`, the run as a dict.

    Raises:
        UserError: if the sizes do not go together.

    Example:
    ```python
    config = load_config("configs/pretrain/base.yaml", "trainer.batch_size=32")
    export_step(config, "base.step")
    ```
    """
    config = copy.deepcopy(config)
    config.runtime.jit_compile = True
    batches = random_batches(config)
    pretrainer, _ = prepare_step(config, batches)
    step = tf.function(pretrainer.train_step, jit_compile=True, autograph=False)
    groups = (pretrainer.variables, pretrainer.optimizer.variables, pretrainer.metrics_variables)
    variables = [(one.path, one.value) for group in groups for one in group]
    variables += [(name, getattr(pretrainer, name)) for name in ("skipped_at", "skipped_norms")]
    with compiling_for(kind):
        program, arguments, arrays = stablehlo(step, list(batches.take(_BATCHES)), variables)
    tokens = config.trainer.batch_size * config.data.sequence_length
    description = {
        "format": FORMAT,
        "title": title,
        "precision": config.runtime.precision,
        "batch_size": config.trainer.batch_size,
        "sequence_length": config.data.sequence_length,
        "replicas": 1,
        "tokens": tokens,
        "xla_options": XLA_OPTIONS if config.runtime.attention == "cudnn" else {},
        "flops": sum(pretraining_flops(config).values()),
        "peak_flops": {
            one.device_kind: one.peak_flops(config.runtime.precision)
            for one in ACCELERATORS.values()
        },
        "losses": {
            meter.name: [meter.total.path, meter.count.path]
            for meter in pretrainer.metrics
            if meter.name.endswith("loss")
        },
        "arguments": arguments,
        "config": config.as_dict(),
    }
    write_program(path, program, description, arrays)
    return description


def write_program(
    path: str, program: bytes, description: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Writes a program with what a run of it needs: all of the file, or none."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    partial = f"{path}.partial"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("step.mlir", program)
        archive.writestr("step.json", json.dumps(description, indent=1))
        archive.writestr("arrays.npz", buffer.getvalue())
    os.replace(partial, path)


def stablehlo(
    step: tf.types.experimental.PolymorphicFunction,
    batches: list[dict[str, tf.Tensor]],
    variables: list[tuple[str, tf.Variable]],
) -> tuple[bytes, list[dict[str, Any]], dict[str, np.ndarray]]:
    """The program of a compiled function of a batch, its arguments, and the arrays among them."""
    # As text: the bytes of one version of MLIR are not always those of another.
    program = step.experimental_get_compiler_ir(batches[0])(stage="stablehlo").encode()
    handles = {id(variable.handle): (name, variable) for name, variable in variables}
    # Features come first, in the order in which TensorFlow flattens a dict: by name.
    features = sorted(batches[0])
    arguments = [_argument(name, "feature", batches[0][name]) for name in features]
    arrays = {
        f"batch{number}/{name}": batch[name].numpy()
        for number, batch in enumerate(batches)
        for name in features
    }
    for number, captured in enumerate(step.get_concrete_function(batches[0]).captured_inputs):
        if captured.dtype == tf.resource:
            name, variable = handles[id(captured)]
            # An optimizer's variables may have the same path, as those of two models' layers.
            again = sum(one["name"].split(":")[0] == name for one in arguments)
            argument = _argument(f"{name}:{again}" if again else name, "variable", variable)
            argument["mean"] = float(np.mean(variable.numpy(), dtype=np.float64))
            argument["deviation"] = float(np.std(variable.numpy(), dtype=np.float64))
        else:
            argument = _argument(f"constant/{number}", "constant", captured)
            arrays[argument["name"]] = captured.numpy()
        arguments.append(argument)
    return program, arguments, arrays


def _argument(name: str, kind: str, value: tf.Tensor | tf.Variable) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "shape": value.shape.as_list(),
        "dtype": value.dtype.name,
    }

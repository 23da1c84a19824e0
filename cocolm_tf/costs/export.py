"""The whole training step as one file, which a machine with JAX alone compiles and runs."""

import collections
import copy
import glob
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.costs.accelerators import ACCELERATORS
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.costs.step_benchmark import prepare_step, random_batches
from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.data.pipeline import cut
from cocolm_tf.data.shards import compression, parse, resolve_shards
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.ops.cudnn_attention import XLA_OPTIONS
from cocolm_tf.ops.fusion import compiling_for
from cocolm_tf.training.build import build_augmentation, build_pretrainer
from cocolm_tf.training.checkpoints import variable_paths
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.monitoring import METRICS_FILENAME
from cocolm_tf.training.preset import save_preset
from cocolm_tf.training.pretraining import matching_vocabulary

FORMAT = 1
_BATCHES = 4
# Elements of the largest variables whose initial values are kept: what is larger is a matrix drawn
# from a normal distribution, and is drawn anew.
_EXACT = 16_384
_BOOLEANS = re.compile(r'dense<"0x(?P<digits>[0-9A-F]+)"> : tensor<(?P<count>\d+)xi1>')


def export_step(
    config: PretrainingConfig,
    path: str,
    title: str = "",
    kind: str = "GPU",
    from_tokens: bool = False,
) -> dict[str, Any]:
    """Writes the training step of a configuration, compiled as a whole, for one device.

    The file is a ZIP archive of three members, which `scripts/run_step.py` reads:

    - `step.mlir`: StableHLO as text. Its results are the variables that the step writes, and
      its attribute `mhlo.input_output_alias` says which argument each of them updates;
    - `step.json`: what its arguments are, in order, and what the step does (see Returns);
    - `arrays.npz`: batches of random tokens, masked and cropped as in training, the initial values
      of small variables, and what the step reads beside these.

    Args:
        config: the run. `trainer.batch_size` sequences are one step.
        path: the file to write.
        title: what the program is called in reports.
        kind: of the device that it is for, one of `cocolm_tf.ops.fusion.DEVICE_KINDS`.
        from_tokens: whether the step takes sequences as they are, `token_ids` [B, S] int32, and
            masks and crops them itself, as `PretrainingData` does the batch of the same number.
            Then `run_step.py --train` can train by it.

    Returns:
        The description in `step.json`:
        `arguments`, a list of `name`, `shape`, `dtype` and `kind`: `feature` (of a batch),
        `variable` (with the `mean` and `deviation` of its initial values) or `constant`;
        `title`, `precision`, `batch_size`, `sequence_length`, `replicas`;
        `tokens` and model `flops` of a step; `peak_flops` of known devices in this precision;
        `xla_options`, what XLA must be told to run it;
        `losses` and `meters`, the name of each loss or of all that is measured, with those of the
        variables that it is made of: of a mean the total and the weight, of a sum the total;
        `weights`, by their paths in the model (see `variable_paths`) the names of the variables
        that are trained, and `iterations`, the name of the one that counts the steps;
        `config`, the run as a dict.

    Raises:
        UserError: if the sizes do not go together, or a step that is to train needs a preset.

    Example:
    ```python
    config = load_config("configs/pretrain/base.yaml", "trainer.batch_size=32")
    export_step(config, "base.step")
    ```
    """
    if from_tokens and config.data.masking != "token":
        raise UserError(
            f"data.masking={config.data.masking}: a step that trains elsewhere masks single tokens."
        )
    if from_tokens and config.auxiliary.preset:
        raise UserError(
            f"auxiliary.preset={config.auxiliary.preset}: a step that trains elsewhere begins with "
            "fresh weights only."
        )
    config = copy.deepcopy(config)
    config.runtime.jit_compile = True
    batches = random_batches(config)
    pretrainer, _ = prepare_step(config, batches)
    train_step = pretrainer.train_step
    if from_tokens:
        batches = batches.map(lambda batch: {"token_ids": batch["token_ids"]})
        train_step = _from_tokens(pretrainer, config)
    step = tf.function(train_step, jit_compile=True, autograph=False)
    groups = (pretrainer.variables, pretrainer.optimizer.variables, pretrainer.metrics_variables)
    variables = [(one.path, one.value) for group in groups for one in group]
    variables += [(name, getattr(pretrainer, name)) for name in ("skipped_at", "skipped_norms")]
    learned = pretrainer.trainable_variables[: len(pretrainer.averages)]
    variables += [
        (f"average/{one.path}", average)
        for one, average in zip(learned, pretrainer.averages, strict=True)
    ]
    variables = _with_unique_names(variables)
    names = {id(variable.handle): name for name, variable in variables}
    with compiling_for(kind):
        program, arguments, arrays = stablehlo(step, list(batches.take(_BATCHES)), variables)
    tokens = config.trainer.batch_size * config.data.sequence_length
    meters = {
        meter.name: [variable.path for variable in meter.variables] for meter in pretrainer.metrics
    }
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
        "losses": {name: paths for name, paths in meters.items() if name.endswith("loss")},
        "meters": meters,
        "iterations": pretrainer.optimizer.iterations.path,
        "weights": {
            path: names[id(variable.value.handle)]
            for path, variable in variable_paths(pretrainer).items()
            if variable.trainable
        },
        "arguments": arguments,
        "config": config.as_dict(),
    }
    write_program(path, program, description, arrays)
    return description


def write_program(
    path: str, program: bytes, description: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Writes a program and what running it needs, atomically."""
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
    text = step.experimental_get_compiler_ir(batches[0])(stage="stablehlo")
    program = _BOOLEANS.sub(_spelled_out, text).encode()
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
            argument = _argument(name, "variable", variable)
            argument["mean"] = float(np.mean(variable.numpy(), dtype=np.float64))
            argument["deviation"] = float(np.std(variable.numpy(), dtype=np.float64))
            if argument["deviation"] and np.size(variable) <= _EXACT:
                arrays[name] = variable.numpy()
        else:
            argument = _argument(f"constant/{number}", "constant", captured)
            arrays[argument["name"]] = captured.numpy()
        arguments.append(argument)
    return program, arguments, arrays


def export_tokens(train_data: str, sequence_length: int, path: str) -> tuple[int, int]:
    """Writes the sequences of shards as one array, which `run_step.py --train` reads."""
    paths, manifest = resolve_shards(train_data)
    special = SpecialTokens(mask=-1)
    records = tf.data.TFRecordDataset(paths, compression(paths[0])).batch(4096)
    parts = []
    for batch in records:
        pieces, filled = cut(parse(batch, manifest.sequence_length), sequence_length, special)
        parts.append(tf.boolean_mask(pieces, filled).numpy())
    token_ids = np.concatenate(parts)
    small = token_ids.max() <= np.iinfo(np.uint16).max
    np.save(path, token_ids.astype(np.uint16 if small else np.int32))
    return token_ids.shape


def import_weights(program: str, weights: str, vocabulary: str, model_dir: str) -> str:
    """Makes a preset of the weights that `run_step.py --train` trained."""
    with zipfile.ZipFile(program) as archive:
        description = json.loads(archive.read("step.json"))
    config = PretrainingConfig()
    config.override(description["config"])
    tokenizer = matching_vocabulary(vocabulary, config)
    trained = _read_weights(weights)
    pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
    for path, variable in variable_paths(pretrainer).items():
        if not variable.trainable:
            continue
        value = trained.pop(path, None)
        if value is None or value.shape != tuple(variable.shape):
            found = "nothing" if value is None else f"an array of the shape {value.shape}"
            raise UserError(
                f"{weights}-*.npz have {found} for {path}, not {tuple(variable.shape)}: all parts "
                f"must be there, and be of {program}."
            )
        variable.assign(value)
    if trained:
        raise UserError(f"{weights}-*.npz have {min(trained)}, which {program} has not.")
    files.make_dirs(model_dir)
    save_config(config, os.path.join(model_dir, "config.yaml"))
    files.copy(f"{weights}.jsonl", os.path.join(model_dir, METRICS_FILENAME))
    preset = os.path.join(model_dir, "preset")
    save_preset(pretrainer, tokenizer, preset)
    return preset


def _with_unique_names(variables: list[tuple[str, tf.Variable]]) -> list[tuple[str, tf.Variable]]:
    """Numbers repeated names: two models' layers may have the same paths."""
    met, apart = collections.Counter(), []
    for name, variable in variables:
        apart.append((f"{name}:{met[name]}" if met[name] else name, variable))
        met[name] += 1
    return apart


def _from_tokens(
    pretrainer: CocoLMPretrainer, config: PretrainingConfig
) -> Callable[[dict[str, tf.Tensor]], None]:
    """The step on whole sequences, which it masks and crops by the number of the step."""
    augmentation = build_augmentation(config, config.model.vocabulary_size - 1)

    def step(batch: dict[str, tf.Tensor]) -> None:
        number = tf.cast(pretrainer.optimizer.iterations, tf.int64)
        seed = tf.stack([tf.constant(config.runtime.seed, tf.int64), number])
        pretrainer.train_step(augmentation(batch["token_ids"], seed))

    return step


def _read_weights(prefix: str) -> dict[str, np.ndarray]:
    """Joins the arrays whose rows `run_step.py` distributed: `FIRST_ROW/PATH` is a part of one."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    paths = sorted(glob.glob(f"{glob.escape(prefix)}-*.npz"))
    if not paths:
        raise UserError(f"there is no {prefix}-*.npz.")
    for path in paths:
        with np.load(path) as arrays:
            for key, rows in arrays.items():
                first, _, name = key.partition("/")
                parts.setdefault(name, {})[int(first)] = rows
    return {
        name: np.concatenate([rows[first] for first in sorted(rows)])
        for name, rows in parts.items()
    }


def _spelled_out(constant: re.Match[str]) -> str:
    """A constant of booleans whose bits one version of MLIR packs and others do not read."""
    packed, count = bytes.fromhex(constant["digits"]), int(constant["count"])
    values = ("true" if packed[i // 8] >> i % 8 & 1 else "false" for i in range(count))
    return f"dense<[{', '.join(values)}]> : tensor<{count}xi1>"


def _argument(name: str, kind: str, value: tf.Tensor | tf.Variable) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "shape": value.shape.as_list(),
        "dtype": value.dtype.name,
    }

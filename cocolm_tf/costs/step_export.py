"""The training step as one file, which JAX compiles, for devices that are not there, and runs."""

import collections
import copy
import glob
import io
import json
import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.costs.accelerators import ACCELERATORS
from cocolm_tf.costs.compiled import Kernel, heaviest_groups, kernels_of, roofline
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

GPUS = ("h100", "h200", "a100")
TPUS = ("v4", "v5e", "v5p", "v6e")
TARGETS = (*GPUS, *TPUS)
# The environment of `make targets`, and the variable that names another.
ENVIRONMENT = ".venv-targets"
VARIABLE = "COCOLM_TARGETS_PYTHON"

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

    - `step.mlir`: StableHLO as text. Its results are the variables that the step writes; its
      attribute `mhlo.input_output_alias` says which argument each of them updates;
    - `step.json`: the description that is returned;
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
        The `arguments` of the program, in order: `name`, `shape`, `dtype` and `kind` (`feature`,
        `constant` or `variable`, with the `mean` and `deviation` of its initial values); its sizes,
        `tokens`, model `flops` and `config`; `peak_flops` of known devices, and the `xla_options`
        it needs. By the names of variables: the `losses` and all `meters` (of a mean the total and
        the weight), the trained `weights` by their paths in the model (see `variable_paths`), and
        `iterations`, which counts the steps.

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
    # Two models' layers may have the same paths.
    met, unique = collections.Counter(), []
    for name, variable in variables:
        unique.append((f"{name}:{met[name]}" if met[name] else name, variable))
        met[name] += 1
    variables = unique
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
    program = _BOOLEANS.sub(_unpacked_booleans, text).encode()
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
            value = variable.numpy()
            argument = _argument(name, "variable", variable)
            argument["mean"] = float(np.mean(value, dtype=np.float64))
            argument["deviation"] = float(np.std(value, dtype=np.float64))
            if argument["deviation"] and np.size(value) <= _EXACT:
                arrays[name] = value
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
    config = PretrainingConfig()
    config.override(read_description(program)["config"])
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


def _unpacked_booleans(constant: re.Match[str]) -> str:
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


# --- Compiled for devices that are not there, by JAX in an environment of its own ---


def compile_for(
    program: str,
    target: str,
    runner: str,
    python: str = "",
    optimized: str = "",
    replicas: int = 0,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Compiles an exported program for a device that is not there.

    TensorFlow's own compiler cannot: JAX's can, in a process of the environment that it lives in.

    Args:
        program: the file that `export_step` wrote.
        target: one of `TARGETS`.
        runner: the path of `scripts/run_step.py`, which the process runs.
        python: the interpreter of the environment; see `targets_python`.
        optimized: where to keep what XLA made of the program, for a GPU.
        replicas: Devices to compile for, 0 for as many as the program is for.
        options: of XLA, each `NAME=VALUE`.

    Returns:
        What JSON can hold, of one device: the `compile_seconds`, the bytes of the program, of its
        arguments, temporaries, outputs and code, and of `alias_bytes` (outputs in the place of
        arguments); `flops` of the products and `bytes_accessed`; the least time, by `roofline` and
        with `groups` of kernels for GPUs, by the sums alone for TPUs, and what it allows:
        `tokens_per_second_at_most`, of all replicas, and `share_of_peak_at_most`.

    Raises:
        UserError: if there is no such environment, or its compiler refuses the program.

    Example:
    ```python
    compile_for("base.step", "h100", "scripts/run_step.py")["temporary_bytes"] / 2**30
    ```
    """
    command = [targets_python(python), str(runner), str(program), f"--target={target}"]
    command += [f"--replicas={replicas}"] if replicas else []
    command += [f"--xla_option={option}" for option in options]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(optimized or Path(folder, "optimized.hlo.pb"))
        done = subprocess.run(
            [*command, f"--optimized={kept}"], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise UserError(
                f"{program} was not compiled for {target}: {command[0]} ended with status "
                f"{done.returncode}, and says why above."
            )
        result = json.loads(done.stdout.splitlines()[-1])
        if target in GPUS:
            return result | _of_kernels(program, target, kernels_of(kept.read_bytes()))
    device, description = ACCELERATORS[target], read_description(program)
    products = result["flops"] / device.peak_flops(description["precision"])
    memory = result["bytes_accessed"] / device.memory_bandwidth
    parts = {"products_seconds": products, "memory_seconds": memory}
    return result | parts | _at_most(description, target, max(products, memory))


def compare_with_measured(
    program: str, target: str, optimized: str, measured: dict[str, float]
) -> dict[str, Any]:
    """Compares the time of each group of kernels on a device with the least that it could take."""
    kernels = kernels_of(Path(optimized).read_bytes())
    if not any(kernel.instruction.name in measured for kernel in kernels):
        raise UserError(f"{optimized} has none of the kernels that were measured.")
    result = _of_kernels(program, target, kernels, measured)
    return {"target": target, "measured_seconds": sum(measured.values())} | result


def read_description(program: str) -> dict[str, Any]:
    """The description that `export_step` wrote of its program."""
    with zipfile.ZipFile(program) as archive:
        return json.loads(archive.read("step.json"))


def _of_kernels(
    program: str, target: str, kernels: list[Kernel], measured: dict[str, float] | None = None
) -> dict[str, Any]:
    description, device = read_description(program), ACCELERATORS[target]
    found = roofline(kernels, device, description["precision"])
    found["groups"] = heaviest_groups(kernels, device, description["precision"], measured)
    return found | _at_most(description, target, found["least_seconds"])


def _at_most(description: dict[str, Any], target: str, seconds: float) -> dict[str, Any]:
    flops = description["flops"] / description["replicas"] / seconds
    config = description["config"]
    parts = description["replicas"] * config["trainer"]["micro_batches"]
    return {
        "precision": description["precision"],
        "sequences": description["batch_size"] // parts,
        "rematerialize": config["model"]["rematerialize"] in (True, "block"),
        "model_flops": description["flops"] / parts,
        "least_seconds": seconds,
        "tokens_per_second_at_most": description["tokens"] / seconds,
        "share_of_peak_at_most": flops / ACCELERATORS[target].peak_flops(description["precision"]),
    }


def targets_python(given: str = "") -> str:
    """The interpreter of an environment with the compilers."""
    path = given or os.environ.get(VARIABLE) or f"{ENVIRONMENT}/bin/python"
    if not os.access(path, os.X_OK):
        raise UserError(
            f"{path} is no interpreter: the compilers live in an environment of their own, which "
            f"`make targets` makes in {ENVIRONMENT} (1.8 GB); --targets_python or {VARIABLE} names "
            "another's."
        )
    return path

#!/usr/bin/env python3
"""Runs a training step that was exported, or compiles it for a device that is not there.

    run_step.py base.step --steps=30
    run_step.py base.step --target=h100 --optimized=base.hlo.pb
    run_step.py small.step --train=tokens.npy --steps=10000 --weights=trained/small

A program is what `compile_step.py --program=FILE` wrote. This file needs JAX and nothing else, no
TensorFlow: copied with a program to a machine with a GPU, it compiles the program there and times
steps that follow one another, each from the variables that the last one wrote. With --train it
trains, by a program of compile_step.py --from_tokens: --weights=PREFIX gets the model's weights as
PREFIX-00.npz and so on, which import_weights.py makes a preset of, and the log as PREFIX.jsonl. The
last line is the result as JSON.
"""

import argparse
import io
import itertools
import json
import os
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What the compilers for devices that are not there must be told before JAX starts.
_DEVICELESS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_PLATFORMS": "cpu",
}
_TPU_TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# As XLA describes GPUs to itself (its target_config/specs).
_EVERY_GPU = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 "
    "shared_memory_per_block: 49152 registers_per_core_limit: 65536 "
    "registers_per_block_limit: 65536 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
    "block_dim_limit_z: 65535 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 "
    "thread_dim_limit_z: 64 "
)
_HOPPER = (
    "core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 "
    "cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES } "
)
_GPUS = {
    "h100": (
        "NVIDIA H100 80GB HBM3",
        _HOPPER + "memory_bandwidth: 3352320000000 device_memory_size: 84942979072",
    ),
    "h200": (
        "NVIDIA H200 141GB HBM3e",
        _HOPPER + "memory_bandwidth: 4800000000000 device_memory_size: 151397597184",
    ),
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        "core_count: 108 fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41 "
        "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 "
        "memory_bandwidth: 2039040000000 device_memory_size: 85100068864 "
        "cuda_compute_capability { major: 8 }",
    ),
}
TARGETS = (*_GPUS, *_TPU_TOPOLOGIES)
# The largest file of trained weights.
_PART_BYTES = 15_000_000


class UserError(Exception):
    """A user's mistake, in one line."""


class Program:
    """An exported step: StableHLO, a description of its arguments, and batches."""

    def __init__(self, path: str) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                self.stablehlo = archive.read("step.mlir")
                self.description = json.loads(archive.read("step.json"))
                arrays = archive.read("arrays.npz")
        except (OSError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
            raise UserError(f"{path} is no program that compile_step.py wrote: {error}.") from error
        if self.description["format"] != 1:
            raise UserError(f"{path} has format {self.description['format']}: this file reads 1.")
        self.arguments = self.description["arguments"]
        self.arrays = dict(np.load(io.BytesIO(arrays), allow_pickle=False))

    def batches(self) -> list[dict[str, Any]]:
        """The arrays of each batch, by name."""
        batches: dict[str, dict[str, Any]] = {}
        for key, value in self.arrays.items():
            batch, _, name = key.partition("/")
            if batch.startswith("batch"):
                batches.setdefault(batch, {})[name] = value
        return list(batches.values())

    def initial_values(self, seed: int) -> list[Any]:
        """The initial values of the arguments, those of the first batch included."""
        import ml_dtypes

        random, values = np.random.default_rng(seed), []
        for one in self.arguments:
            if one["kind"] == "feature":
                value = self.arrays[f"batch0/{one['name']}"]
            elif one["name"] in self.arrays:
                value = self.arrays[one["name"]]
            elif one["deviation"]:
                value = random.standard_normal(one["shape"], np.float32)
                value = value * np.float32(one["deviation"]) + np.float32(one["mean"])
            else:
                value = np.full(one["shape"], one["mean"])
            dtype = ml_dtypes.bfloat16 if one["dtype"] == "bfloat16" else one["dtype"]
            values.append(np.asarray(value, dtype))
        return values

    def module(self) -> Any:
        """The program in MLIR, within a context of JAX's, without what only TensorFlow has."""
        from jaxlib.mlir import ir

        module, copies = ir.Module.parse(self.stablehlo), []

        def find(operation: Any) -> Any:
            if operation.name == "mhlo.copy":
                copies.append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(find)
        for copy in copies:
            copy.results[0].replace_all_uses_with(copy.operands[0])
            copy.erase()
        return module


class Execution:
    """A program on the device at hand: compiled, with its variables."""

    def __init__(self, program: Program, arguments: argparse.Namespace) -> None:
        import jax
        import jaxlib._jax as internals
        from jax._src import compiler
        from jax._src.interpreters import mlir

        # Steps are counted in 64 bits, which JAX would cut in half.
        jax.config.update("jax_enable_x64", True)
        self.program, self.device = program, jax.local_devices()[0]
        self.index = {one["name"]: index for index, one in enumerate(program.arguments)}
        options = compiler.get_compile_options(
            num_replicas=1,
            num_partitions=1,
            env_options_overrides=_xla_options(program, arguments) or None,
        )
        with mlir.make_ir_context():
            module = program.module()
            # Which argument each result is the next value of.
            self._updates = {
                one["output_index"][0]: one["alias"]["parameter_number"].value
                for one in module.operation.attributes["mhlo.input_output_alias"]
            }
            started = time.perf_counter()
            self.compiled = self.device.client.compile_and_load(
                module, internals.DeviceList((self.device,)), options
            )
            self.compile_seconds = time.perf_counter() - started
        _log(f"compiled in {self.compile_seconds:.1f} s for {self.device.device_kind}")
        self.state = [self.put(value) for value in program.initial_values(arguments.seed)]

    def put(self, value: Any) -> Any:
        """An array on the device."""
        import jax

        return jax.device_put(value, self.device)

    def advance(self, batch: dict[str, Any]) -> None:
        """One step: variables that it writes give their memory to the next ones."""
        for name, value in batch.items():
            self.state[self.index[name]] = value
        for result, value in enumerate(self.compiled.execute(self.state)):
            if result in self._updates:
                self.state[self._updates[result]] = value

    def wait(self) -> None:
        """Returns when all steps are done."""
        self.state[max(self._updates.values())].block_until_ready()

    def read_metrics(self, which: str) -> dict[str, float]:
        """The step's own metrics, `losses` or `meters`, since they were last read."""
        metrics, read = {}, []
        for name, paths in self.program.description[which].items():
            if not all(path in self.index for path in paths):
                continue
            # The total and, of a mean, the weight.
            total, *weights = (float(self.state[self.index[path]]) for path in paths)
            metrics[name] = total / (weights[0] or 1.0) if weights else total
            read += [self.index[path] for path in paths]
        # Sums begin anew: over many steps they would lose their last digits.
        for index in read:
            self.state[index] = self.put(np.zeros_like(self.state[index]))
        return metrics


def run(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles a program for the device at hand and times its steps."""
    if program.description["replicas"] > 1:
        raise UserError(
            f"the program is for {program.description['replicas']} devices: it can be compiled for "
            "a --target, not run."
        )
    import jax

    execution = Execution(program, arguments)
    if arguments.optimized:
        _write_optimized(execution.compiled, arguments.optimized)
    batches = itertools.cycle(
        [
            {name: execution.put(value) for name, value in batch.items()}
            for batch in program.batches()
        ]
    )

    def advance() -> None:
        execution.advance(next(batches))

    result = time_steps(
        program.description,
        execution.device.device_kind,
        advance,
        execution.wait,
        lambda: execution.read_metrics("losses"),
        arguments,
    )
    if arguments.profile:
        _profile(arguments.profile, advance, execution.wait)
    memory, stats = execution.compiled.get_compiled_memory_stats(), execution.device.memory_stats()
    return result | {
        "versions": {"jax": jax.__version__},
        "compile_seconds": execution.compile_seconds,
        "peak_memory_bytes": (stats or {}).get("peak_bytes_in_use", process_peak_memory()),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def time_steps(
    description: dict[str, Any],
    device: str,
    advance: Callable[[], Any],
    wait: Callable[[], None],
    read_losses: Callable[[], dict[str, float]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Times steps, each by itself and then back to back; what the programs that do so report."""
    started = time.perf_counter()
    advance()
    first_losses = read_losses()
    first_seconds = time.perf_counter() - started
    for _ in range(arguments.warmup):
        advance()
    wait()
    seconds = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        advance()
        wait()
        seconds.append(time.perf_counter() - started)
    read_losses()
    started = time.perf_counter()
    for _ in range(arguments.steps):
        advance()
    wait()
    back_to_back = (time.perf_counter() - started) / arguments.steps
    names = ("min", "first_quartile", "median", "third_quartile", "max")
    quartiles = np.percentile(seconds, [0, 25, 50, 75, 100]).tolist()
    step_seconds = dict(zip(names, quartiles, strict=True))
    median, peak = step_seconds["median"], _peak_flops(description["peak_flops"], device)
    return {
        "program": description["title"],
        "device": device,
        "precision": description["precision"],
        "batch_size": description["batch_size"],
        "sequence_length": description["sequence_length"],
        "compile_seconds": first_seconds,
        "steps": arguments.steps,
        "step_seconds": step_seconds,
        "back_to_back_seconds": back_to_back,
        "tokens_per_second": description["tokens"] / median,
        "back_to_back_tokens_per_second": description["tokens"] / back_to_back,
        "flops_per_step": description["flops"],
        "share_of_peak": description["flops"] / median / peak if peak else None,
        "first_losses": first_losses,
        "last_losses": read_losses(),
    }


def train(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains by a program, and writes the weights and the log."""
    description = program.description
    features = [one for one in program.arguments if one["kind"] == "feature"]
    if [one["name"] for one in features] != ["token_ids"] or "weights" not in description:
        raise UserError(
            f"{arguments.program} cannot train: export it by compile_step.py --from_tokens."
        )
    batch_size, length = features[0]["shape"]
    try:
        tokens = np.load(arguments.train, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--train={arguments.train} is no array in a .npy file: {error}") from error
    if tokens.dtype.kind not in "iu" or tokens.shape[1:] != (length,) or len(tokens) < batch_size:
        raise UserError(
            f"--train={arguments.train} is {tokens.dtype} {list(tokens.shape)}: it must be "
            f"integers [N, {length}], with N at least {batch_size}."
        )
    began = time.perf_counter()
    execution = Execution(program, arguments)
    counter = execution.index[description["iterations"]]
    Path(arguments.weights).parent.mkdir(parents=True, exist_ok=True)
    started = lapped = time.perf_counter()
    time_left = arguments.seconds - (started - began)
    step = lap = position = 0
    means: dict[str, float] = {}
    with open(f"{arguments.weights}.jsonl", "w") as log:
        for rows in _shuffled(len(tokens), batch_size, arguments.seed):
            batch = tokens[rows].astype(features[0]["dtype"])
            execution.advance({"token_ids": execution.put(batch)})
            step, position = step + 1, position + 1
            if step % arguments.log_every and position < arguments.steps:
                continue
            means = execution.read_metrics("meters")  # waits for the step
            now = time.perf_counter()
            rate, lap, lapped = (step - lap) / (now - lapped), step, now
            line = {"step": step, "split": "train", "seconds": round(now - started, 1), **means}
            print(json.dumps(line | {"tokens_per_second": rate * description["tokens"]}), file=log)
            log.flush()
            _log(f"step {step}: loss {means['loss']:.4f}, {rate:.2f} steps/s")
            if arguments.seconds:
                share = (now - started) / time_left if time_left > 0 else 1.0
                # The program counts what learning rate and masks follow from.
                if (due := min(arguments.steps, int(arguments.steps * share))) > position:
                    position = due
                    dtype = execution.state[counter].dtype
                    execution.state[counter] = execution.put(np.asarray(due, dtype))
            if position >= arguments.steps:
                break
    return {
        "program": description["title"],
        "device": execution.device.device_kind,
        "compile_seconds": execution.compile_seconds,
        "steps": step,
        "skipped_steps": position - step,
        "seconds": now - started,
        "tokens_per_second": step * description["tokens"] / (now - started),
        "epochs": step / (len(tokens) // batch_size),
        "last": means,
        "files": _write_weights(execution, arguments.weights),
    }


def _shuffled(rows: int, batch_size: int, seed: int) -> Iterator[Any]:
    """The rows of endless batches, shuffled anew in every epoch."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        for start in range(0, rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def _write_weights(execution: Execution, prefix: str) -> list[str]:
    """Writes the trained variables to files of limited size, by their rows where need be."""
    parts: list[dict[str, Any]] = [{}]
    room = _PART_BYTES
    for path, name in execution.program.description["weights"].items():
        array = np.asarray(execution.state[execution.index[name]], np.float32)
        start = 0
        while start < len(array):
            # Every array has a header beside its bytes.
            rows = min(len(array) - start, (room - 1024) // array[:1].nbytes)
            if rows < 1:
                parts.append({})
                room = _PART_BYTES
                continue
            parts[-1][f"{start}/{path}"] = piece = array[start : start + rows]
            room -= piece.nbytes + 1024
            start += rows
    files = [f"{prefix}-{number:02d}.npz" for number in range(len(parts))]
    for file, arrays in zip(files, parts, strict=True):
        np.savez(file, **arrays)
    return files


def compile_for(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles a program for a device that is not there."""
    import jaxlib._jax as internals
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax.experimental import topologies

    target, replicas = arguments.target, arguments.replicas or program.description["replicas"]
    xla_options = _xla_options(program, arguments)
    if target in _GPUS:
        name, info = _GPUS[target]
        topology = topologies.get_topology_desc(
            target,
            platform="cuda",
            target_config=f"gpu_device_info {{ {_EVERY_GPU}{info} }} "
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 3 } '
            f'device_description_str: "{name}"',
            topology=f"1x1x{replicas}",
        )
        # There is nothing to try kernels on.
        xla_options.setdefault("xla_gpu_autotune_level", "0")
    else:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=_TPU_TOPOLOGIES[target]
        )
    devices = tuple(topology.devices[:replicas])
    options = compiler.get_compile_options(
        num_replicas=replicas, num_partitions=1, env_options_overrides=xla_options or None
    )
    with mlir.make_ir_context():
        module = program.module()
        bytecode = io.BytesIO()
        module.operation.write_bytecode(bytecode)
        program_bytes = bytecode.tell()
        _log(f"compiling for {devices[0].device_kind}: minutes, on a few cores")
        started = time.perf_counter()
        compiled = devices[0].client.compile(module, internals.DeviceList(devices), options)
        seconds = time.perf_counter() - started
    if arguments.optimized and target in _GPUS:
        _write_optimized(compiled, arguments.optimized)
    memory = compiled.get_compiled_memory_stats()
    # The compiler for GPUs does not say; its program does, which the one for TPUs keeps.
    costs = {} if target in _GPUS else compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return {
        "target": target,
        "device": devices[0].device_kind,
        "replicas": replicas,
        "compile_seconds": seconds,
        "program_bytes": program_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
    }


def _write_optimized(compiled: Any, path: str) -> None:
    Path(path).write_bytes(compiled.hlo_modules()[0].as_serialized_hlo_module_proto())


def _profile(path: str, advance: Any, wait: Any, steps: int = 3) -> None:
    """Writes the seconds of a step that each kernel takes, by name, as the device counts them."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                advance()
            wait()
        (written,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(written))
    kernels: dict[str, float] = {}
    for plane in data.planes:
        for line in plane.lines if plane.name.startswith("/device:") else ():
            # Others name what a stream's kernels belong to, and would count them again.
            for event in line.events if line.name.startswith("Stream") else ():
                # Within a CUDA graph, kernels have no name but their own.
                name = dict(event.stats).get("hlo_op", event.name)
                kernels[name] = kernels.get(name, 0.0) + event.duration_ns * 1e-9 / steps
    Path(path).write_text(json.dumps(kernels, indent=1))
    total = sum(kernels.values())
    _log(f"{path}: {len(kernels):,} kernels, {total * 1e3:.2f} ms of a step")
    for name, seconds in sorted(kernels.items(), key=lambda item: -item[1])[:20]:
        _log(f"  {seconds * 1e3:8.3f} ms  {name}")


def _peak_flops(peaks: dict[str, float], device: str) -> float | None:
    """The peak of the known device whose name a device's begins with."""
    # The longest such name: "TPU v5 lite" is no "TPU v5". A slice of a GPU is not the whole.
    known = [name for name in peaks if device.startswith(name) and " MIG " not in device]
    return peaks[max(known, key=len)] if known else None


def process_peak_memory() -> int:
    """The most bytes that this process had in use."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _xla_options(program: Program, arguments: argparse.Namespace) -> dict[str, str]:
    asked = dict(option.split("=", 1) for option in arguments.xla_option)
    return program.description.get("xla_options", {}) | asked


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _at_least(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"it must be at least {low}")
        return int(text)

    return integer


def step_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of the programs that time an exported step."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("program", help="what compile_step.py --program=FILE wrote")
    parser.add_argument("--steps", type=_at_least(1), default=20, help="steps to time, or to train")
    parser.add_argument(
        "--warmup", type=_at_least(0), default=3, help="steps before them, after the first"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the initial values")
    return parser


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = step_parser(__doc__)
    parser.add_argument(
        "--profile", metavar="FILE", help="write the seconds of each kernel there, as JSON"
    )
    parser.add_argument(
        "--optimized", metavar="FILE", help="write the program that XLA made of it there (GPU)"
    )
    parser.add_argument(
        "--xla_option", action="append", default=[], metavar="NAME=VALUE", help="repeatable"
    )
    parser.add_argument("--target", choices=TARGETS, help="compile for this device and do not run")
    parser.add_argument(
        "--replicas",
        type=_at_least(0),
        default=0,
        help="devices to compile for; as the program says if 0",
    )
    parser.add_argument(
        "--train", metavar="TOKENS.npy", help="train on these sequences: integers [N, S]"
    )
    parser.add_argument("--weights", metavar="PREFIX", help="where --train writes to")
    parser.add_argument(
        "--log_every", type=_at_least(1), default=100, help="steps between two lines"
    )
    parser.add_argument(
        "--seconds", type=float, default=0, help="end --train at the first line after them, if > 0"
    )
    parsed = parser.parse_args(arguments)
    if bool(parsed.train) != bool(parsed.weights):
        parser.error("--train and --weights go together")
    if parsed.train and parsed.target:
        parser.error("--train and --target exclude each other")
    if parsed.seconds < 0:
        parser.error("--seconds is at least 0")
    for option in parsed.xla_option:
        if "=" not in option:
            parser.error(f"--xla_option={option}: write NAME=VALUE")
    return parsed


def main() -> None:
    arguments = _parse()
    if arguments.target:
        os.environ.update(_DEVICELESS)
    try:
        program = Program(arguments.program)
        what = compile_for if arguments.target else train if arguments.train else run
        result = what(program, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

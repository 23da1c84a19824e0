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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What the compilers for devices that are not there must be told before JAX starts.
_ABSENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_PLATFORMS": "cpu",
}
_TPU_TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# As XLA describes GPUs to itself (its target_config/specs).
_HOPPER = {
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52_428_800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "cuda_compute_capability": "{ major: 9 feature_extension: ACCELERATED_FEATURES }",
}
_GPUS = {
    "h100": (
        "NVIDIA H100 80GB HBM3",
        _HOPPER | {"memory_bandwidth": 3_352_320_000_000, "device_memory_size": 84_942_979_072},
    ),
    "h200": (
        "NVIDIA H200 141GB HBM3e",
        _HOPPER | {"memory_bandwidth": 4_800_000_000_000, "device_memory_size": 151_397_597_184},
    ),
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        {
            "core_count": 108,
            "fpus_per_core": 64,
            "l2_cache_size": 41_943_040,
            "clock_rate_ghz": 1.41,
            "shared_memory_per_core": 167_936,
            "shared_memory_per_block_optin": 166_912,
            "memory_bandwidth": 2_039_040_000_000,
            "device_memory_size": 85_100_068_864,
            "cuda_compute_capability": "{ major: 8 }",
        },
    ),
}
_EVERY_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49_152,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "block_dim_limit_x": 2_147_483_647,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
}
TARGETS = (*_GPUS, *_TPU_TOPOLOGIES)
# The largest file of trained weights.
_PART_BYTES = 15_000_000


class UserError(Exception):
    """What a user is told in one line."""


class Program:
    """An exported step: StableHLO, what its arguments are, and batches."""

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
        import numpy as np

        self.arguments = self.description["arguments"]
        self.arrays = dict(np.load(io.BytesIO(arrays), allow_pickle=False))

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
        (main,) = (
            one for one in module.body.operations if one.attributes["sym_name"].value == "main"
        )
        if len(main.type.inputs) != len(self.arguments):
            raise UserError(
                f"the program takes {len(main.type.inputs)} arguments, but {len(self.arguments)} "
                "are described."
            )
        return module

    def updates(self, module: Any) -> dict[int, int]:
        """Which argument each result is the next value of."""
        attributes = module.operation.attributes
        return {
            one["output_index"][0]: one["alias"]["parameter_number"].value
            for one in attributes["mhlo.input_output_alias"]
        }

    def initial_values(self, seed: int) -> list[Any]:
        """What the arguments are at first, those of the first batch included."""
        import ml_dtypes
        import numpy as np

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

    def batches(self) -> list[dict[int, Any]]:
        """The arrays of each batch by the argument that they are."""
        features = {
            one["name"]: index
            for index, one in enumerate(self.arguments)
            if one["kind"] == "feature"
        }
        found: dict[str, dict[int, Any]] = {}
        for key, value in self.arrays.items():
            batch, _, name = key.partition("/")
            if name in features and batch.startswith("batch"):
                found.setdefault(batch, {})[features[name]] = value
        return list(found.values())


class Execution:
    """A program on the device at hand: compiled, with its variables."""

    def __init__(self, program: Program, arguments: argparse.Namespace) -> None:
        import jax
        import jaxlib._jax as internals
        from jax._src import compiler
        from jax._src.interpreters import mlir

        # Steps are counted in 64 bits, which JAX would cut in half.
        jax.config.update("jax_enable_x64", True)
        self.device = jax.local_devices()[0]
        options = compiler.get_compile_options(
            num_replicas=1,
            num_partitions=1,
            env_options_overrides=_xla_options(program, arguments) or None,
        )
        with mlir.make_ir_context():
            module = program.module()
            self._updates = program.updates(module)
            started = time.perf_counter()
            self.compiled = self.device.client.compile_and_load(
                module, internals.DeviceList((self.device,)), options
            )
            self.compile_seconds = time.perf_counter() - started
        _say(f"compiled in {self.compile_seconds:.1f} s for {self.device.device_kind}")
        self.state = [self.put(value) for value in program.initial_values(arguments.seed)]

    def put(self, value: Any) -> Any:
        """An array on the device."""
        import jax

        return jax.device_put(value, self.device)

    def advance(self, batch: dict[int, Any]) -> None:
        """One step: variables that it writes give their memory to the next ones."""
        for index, value in batch.items():
            self.state[index] = value
        for result, value in enumerate(self.compiled.execute(self.state)):
            if result in self._updates:
                self.state[self._updates[result]] = value

    def wait(self) -> None:
        """Returns when all steps are done."""
        self.state[max(self._updates.values())].block_until_ready()


def run(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles a program for the device at hand and times its steps."""
    if program.description["replicas"] > 1:
        raise UserError(
            f"the program is for {program.description['replicas']} devices: it can be compiled for "
            "a --target, not run."
        )
    import jax

    execution = Execution(program, arguments)
    device, step, wait = execution.device, execution.compiled, execution.wait
    if arguments.optimized:
        Path(arguments.optimized).write_bytes(
            step.hlo_modules()[0].as_serialized_hlo_module_proto()
        )
    batches = itertools.cycle(
        [
            {index: execution.put(value) for index, value in batch.items()}
            for batch in program.batches()
        ]
    )
    losses = _Meters(program, "losses")

    def advance() -> None:
        execution.advance(next(batches))

    advance()
    first_losses = losses.since_last(execution.state)
    for _ in range(arguments.warmup):
        advance()
    wait()
    seconds = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        advance()
        wait()
        seconds.append(time.perf_counter() - started)
    losses.since_last(execution.state)
    started = time.perf_counter()
    for _ in range(arguments.steps):
        advance()
    wait()
    in_turn = (time.perf_counter() - started) / arguments.steps
    last_losses = losses.since_last(execution.state)
    if arguments.profile:
        _profile(arguments.profile, advance, wait)

    memory, told = step.get_compiled_memory_stats(), program.description
    median = _quantile(seconds, 0.5)
    peak = _peak_flops(told["peak_flops"], device.device_kind)
    return {
        "program": told["title"],
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
        "precision": told["precision"],
        "batch_size": told["batch_size"],
        "sequence_length": told["sequence_length"],
        "compile_seconds": execution.compile_seconds,
        "steps": arguments.steps,
        "step_seconds": {
            "min": min(seconds),
            "first_quartile": _quantile(seconds, 0.25),
            "median": median,
            "third_quartile": _quantile(seconds, 0.75),
            "max": max(seconds),
        },
        "back_to_back_seconds": in_turn,
        "tokens_per_second": told["tokens"] / median,
        "back_to_back_tokens_per_second": told["tokens"] / in_turn,
        "flops_per_step": told["flops"],
        "share_of_peak": told["flops"] / median / peak if peak else None,
        "peak_memory_bytes": _peak_memory(device),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "first_losses": first_losses,
        "last_losses": last_losses,
    }


def train(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains by a program, and writes the weights and the log."""
    import numpy as np

    told = program.description
    features = [one for one in program.arguments if one["kind"] == "feature"]
    if [one["name"] for one in features] != ["token_ids"] or "weights" not in told:
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
    execution, meters = Execution(program, arguments), _Meters(program, "meters")
    names = [one["name"] for one in program.arguments]
    feature, counter = names.index("token_ids"), names.index(told["iterations"])
    Path(arguments.weights).parent.mkdir(parents=True, exist_ok=True)
    started = lapped = time.perf_counter()
    time_left = arguments.seconds - (started - began)
    step = lap = position = 0
    means: dict[str, float] = {}
    with open(f"{arguments.weights}.jsonl", "w") as log:
        for rows in _shuffled(len(tokens), batch_size, arguments.seed):
            execution.advance({feature: execution.put(tokens[rows].astype(features[0]["dtype"]))})
            step, position = step + 1, position + 1
            if step % arguments.log_every and position < arguments.steps:
                continue
            means = meters.since_last(execution.state)  # waits for the step
            meters.reset(execution)
            now = time.perf_counter()
            rate, lap, lapped = (step - lap) / (now - lapped), step, now
            line = {"step": step, "split": "train", "seconds": round(now - started, 1), **means}
            print(json.dumps(line | {"tokens_per_second": rate * told["tokens"]}), file=log)
            log.flush()
            _say(f"step {step}: loss {means['loss']:.4f}, {rate:.2f} steps/s")
            if arguments.seconds:
                share = (now - started) / time_left if time_left > 0 else 1.0
                # The program counts what learning rate and masks follow from.
                if (due := min(arguments.steps, int(arguments.steps * share))) > position:
                    position = due
                    execution.state[counter] = execution.put(
                        np.asarray(due, execution.state[counter].dtype)
                    )
            if position >= arguments.steps:
                break
    return {
        "program": told["title"],
        "device": execution.device.device_kind,
        "compile_seconds": execution.compile_seconds,
        "steps": step,
        "skipped_steps": position - step,
        "seconds": now - started,
        "tokens_per_second": step * told["tokens"] / (now - started),
        "epochs": step / (len(tokens) // batch_size),
        "last": means,
        "files": _write_weights(program, execution.state, arguments.weights),
    }


def _shuffled(rows: int, batch_size: int, seed: int) -> Iterator[Any]:
    """The rows of endless batches, shuffled anew in every epoch."""
    import numpy as np

    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        for start in range(0, rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def _write_weights(program: Program, state: list[Any], prefix: str) -> list[str]:
    """Writes the trained variables to files of limited size, by their rows where need be."""
    import numpy as np

    index = {one["name"]: number for number, one in enumerate(program.arguments)}
    parts: list[dict[str, Any]] = [{}]
    room = _PART_BYTES
    for path, name in program.description["weights"].items():
        array = np.asarray(state[index[name]], np.float32)
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


class _Meters:
    """What the step's own meters measured since they were last asked."""

    def __init__(self, program: Program, which: str) -> None:
        index = {one["name"]: number for number, one in enumerate(program.arguments)}
        self._meters = {
            name: [index[path] for path in paths]
            for name, paths in program.description[which].items()
            if all(path in index for path in paths)
        }
        self._before = dict.fromkeys(self.indices, 0.0)

    @property
    def indices(self) -> list[int]:
        """The arguments that they are kept in."""
        return [index for indices in self._meters.values() for index in indices]

    def since_last(self, state: list[Any]) -> dict[str, float]:
        means = {}
        for name, indices in self._meters.items():
            # The total and, of a mean, the weight.
            value, *weights = (float(state[index]) - self._before[index] for index in indices)
            means[name] = value / (weights[0] or 1.0) if weights else value
        self._before = {index: float(state[index]) for index in self.indices}
        return means

    def reset(self, execution: Execution) -> None:
        """Lets them sum anew, as sums over many steps lose their last digits."""
        for index in self.indices:
            execution.state[index] = execution.put(0 * execution.state[index])
        self._before = dict.fromkeys(self.indices, 0.0)


def compile_for(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles a program for a device that is not there."""
    import jaxlib._jax as internals
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax.experimental import topologies

    target, replicas = arguments.target, arguments.replicas or program.description["replicas"]
    xla_options = _xla_options(program, arguments)
    if target in _GPUS:
        topology = topologies.get_topology_desc(
            target,
            platform="cuda",
            target_config=_target_config(target),
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
        _say(f"compiling for {devices[0].device_kind}: minutes, on a few cores")
        started = time.perf_counter()
        compiled = devices[0].client.compile(module, internals.DeviceList(devices), options)
        seconds = time.perf_counter() - started
    if arguments.optimized and target in _GPUS:
        Path(arguments.optimized).write_bytes(
            compiled.hlo_modules()[0].as_serialized_hlo_module_proto()
        )
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


def _target_config(target: str) -> str:
    name, facts = _GPUS[target]
    info = " ".join(
        f"{key} {value}" if str(value).startswith("{") else f"{key}: {value}"
        for key, value in (_EVERY_GPU | facts).items()
    )
    return (
        f'gpu_device_info {{ {info} }} platform_name: "CUDA" '
        f'dnn_version_info {{ major: 9 minor: 3 }} device_description_str: "{name}"'
    )


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
    _say(f"{path}: {len(kernels):,} kernels, {total * 1e3:.2f} ms of a step")
    for name, seconds in sorted(kernels.items(), key=lambda item: -item[1])[:20]:
        _say(f"  {seconds * 1e3:8.3f} ms  {name}")


def _peak_flops(peaks: dict[str, float], device: str) -> float | None:
    """That of a device, where its name begins as that of a known one: as the longest, if several.

    "TPU v5 lite" is no "TPU v5", and a slice of a GPU is not the whole.
    """
    known = [name for name in peaks if device.startswith(name) and " MIG " not in device]
    return peaks[max(known, key=len)] if known else None


def _peak_memory(device: Any) -> int:
    """The most bytes that the device had in use, or, of a CPU, the process."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _xla_options(program: Program, arguments: argparse.Namespace) -> dict[str, str]:
    asked = dict(option.split("=", 1) for option in arguments.xla_option)
    return program.description.get("xla_options", {}) | asked


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="what compile_step.py --program=FILE wrote")
    parser.add_argument("--steps", type=int, default=20, help="steps to time, or to train")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them, after the first")
    parser.add_argument("--seed", type=int, default=0, help="of the variables' initial values")
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
        "--replicas", type=int, default=0, help="devices to compile for; as the program says if 0"
    )
    parser.add_argument(
        "--train", metavar="TOKENS.npy", help="train on these sequences: integers [N, S]"
    )
    parser.add_argument("--weights", metavar="PREFIX", help="where --train writes to")
    parser.add_argument("--log_every", type=int, default=100, help="steps between two lines")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0,
        help="end --train at the first line after them, if not 0",
    )
    parsed = parser.parse_args(arguments)
    if bool(parsed.train) != bool(parsed.weights):
        parser.error("--train and --weights go together")
    if parsed.train and parsed.target:
        parser.error("--train and --target exclude each other")
    if parsed.log_every < 1 or parsed.seconds < 0:
        parser.error("--log_every is at least 1, --seconds is at least 0")
    if parsed.steps < 1 or parsed.warmup < 0 or parsed.replicas < 0:
        parser.error("--steps is at least 1, --warmup and --replicas are at least 0")
    for option in parsed.xla_option:
        if "=" not in option:
            parser.error(f"--xla_option={option}: write NAME=VALUE")
    return parsed


def main() -> None:
    arguments = _parse()
    if arguments.target:
        os.environ.update(_ABSENT)
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

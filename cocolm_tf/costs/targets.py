"""Compiles an exported step for a device that is not there, by JAX in an environment of its own."""

import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocolm_tf.costs.accelerators import ACCELERATORS
from cocolm_tf.costs.compiled import Kernel, heaviest_groups, kernels_of, roofline
from cocolm_tf.errors import UserError
from cocolm_tf.units import duration, gib, si

GPUS = ("h100", "h200", "a100")
TPUS = ("v4", "v5e", "v5p", "v6e")
TARGETS = (*GPUS, *TPUS)
# The environment of `make targets`, and the variable that names another.
ENVIRONMENT = ".venv-targets"
VARIABLE = "COCOLM_TARGETS_PYTHON"


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
        What JSON can hold, of one device, bytes and seconds:
        `target`, `device`, `replicas`, `compile_seconds`; `program_bytes`, of the StableHLO;
        `argument_bytes`, `temporary_bytes`, `output_bytes`, `alias_bytes` (outputs that take the
        place of arguments) and `code_bytes`; `flops` of the products and `bytes_accessed`;
        of GPUs, what `roofline` returns, of TPUs `least_seconds` by the sums alone;
        `precision`, `rematerialize`, the `sequences` that a device computes on at a time, and their
        `model_flops`; `tokens_per_second_at_most`, of all replicas, and `share_of_peak_at_most`,
        which the least time allows; `groups` of kernels, as in `heaviest_groups`, for GPUs.

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


def device_kind(target: str | None) -> str:
    """The kind of device, of `fusion.DEVICE_KINDS`, that a step for a target is exported for."""
    return "TPU" if target in TPUS else "GPU"


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


def format_report(result: dict[str, Any], rows: int = 0) -> str:
    """Formats the costs of a program on a device."""
    replicas = f", {result['replicas']} of them" if result.get("replicas", 1) > 1 else ""
    lines = [("device", ACCELERATORS[result["target"]].title + replicas)]
    if "compile_seconds" in result:
        lines += [
            ("compiled in", duration(result["compile_seconds"])),
            ("program", si(result["program_bytes"], "B") + " of StableHLO"),
            ("memory", gib(result["argument_bytes"] + result["temporary_bytes"])),
            ("  arguments", gib(result["argument_bytes"])),
            ("  temporaries", gib(result["temporary_bytes"])),
        ]
    lines += [
        ("products", si(result["flops"], "FLOP")),
        ("read and written", gib(result["bytes_accessed"])),
    ]
    if "kernels" in result:
        lines.append(("kernels", f"{result['kernels']:,}"))
    if result.get("collectives"):
        lines.append(("  collectives", f"{result['collectives']:,}"))
    if "measured_seconds" in result:
        lines.append(("a step's kernels took", duration(result["measured_seconds"])))
    lines.append(("a step takes at least", duration(result["least_seconds"])))
    for part in ("products", "memory", "launches"):
        if f"{part}_seconds" in result:
            lines.append((f"  {part} alone", duration(result[f"{part}_seconds"])))
    lines += [
        ("tokens/s at most", f"{result['tokens_per_second_at_most']:,.0f}"),
        ("share of peak at most", f"{result['share_of_peak_at_most']:.1%}"),
    ]
    text = [f"{name:24}{value}" for name, value in lines]
    if rows and "groups" in result:
        took = f"{'took':>12}" if "measured_seconds" in result else ""
        text += ["", f"{took}{'at least':>12}{'kernels':>9}{'memory':>12}  what, and one's result"]
        text += [_group_row(group) for group in result["groups"][:rows]]
    return "\n".join(text)


def _group_row(group: dict[str, Any]) -> str:
    times = [group[key] for key in ("measured_seconds", "least_seconds") if key in group]
    milliseconds = "".join(f"{seconds * 1e3:9.3f} ms" for seconds in times)
    shape = group["shape"] if len(group["shape"]) < 60 else group["shape"][:57] + "..."
    numbers = f"{group['kernels']:9,}{gib(group['bytes_accessed']):>12}"
    return f"{milliseconds}{numbers}  {group['name']} {shape}"

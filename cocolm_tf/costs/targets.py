"""The step on a device that is not there, by the compilers of an environment of their own."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocolm_tf.costs.compiled import heaviest_groups, kernels_of, roofline
from cocolm_tf.errors import UserError
from cocolm_tf.training.accelerators import ACCELERATORS
from cocolm_tf.units import duration, si

GPUS = ("h100", "h200", "a100")
TPUS = ("v4", "v5e", "v5p", "v6e")
TARGETS = (*GPUS, *TPUS)
# Where `make targets` puts the environment, and how another is named.
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
        replicas: int. Devices to compile for, 0 for as many as the program is for.
        options: of XLA, each `NAME=VALUE`.

    Returns:
        What JSON can hold, of one device, bytes and seconds:
        `target`, `device`, `replicas`, `compile_seconds`; `program_bytes`, of the StableHLO;
        `argument_bytes`, `temporary_bytes`, `output_bytes`, `alias_bytes` (outputs that take the
        place of arguments) and `code_bytes`; `flops` of the products and `bytes_accessed`;
        of GPUs, what `roofline` returns, of TPUs `least_seconds` by the sums alone;
        `tokens_per_second_at_most`, of all replicas, and `share_of_peak_at_most`, which the least
        time allows; `groups` of kernels, as in `heaviest_groups`, for GPUs.

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
        told = result.pop("described")
        kernels = kernels_of(kept.read_bytes()) if target in GPUS else None
    device, precision = ACCELERATORS[target], told["precision"]
    if kernels is None:
        products = result["flops"] / device.peak_flops(precision)
        memory = result["bytes_accessed"] / device.memory_bandwidth
        result |= {
            "least_seconds": max(products, memory),
            "products_seconds": products,
            "memory_seconds": memory,
        }
    else:
        result |= roofline(kernels, device, precision)
        result["groups"] = heaviest_groups(kernels, device, precision)
    flops = told["flops"] / result["replicas"] / result["least_seconds"]
    return result | {
        "precision": precision,
        "tokens_per_second_at_most": told["tokens"] / result["least_seconds"],
        "share_of_peak_at_most": flops / device.peak_flops(precision),
    }


def targets_python(given: str = "") -> str:
    """Finds the interpreter of an environment with the compilers.

    Args:
        given: its path, if it is known. Otherwise it is what the environment variable
            `COCOLM_TARGETS_PYTHON` says, or that of `.venv-targets`, which `make targets` makes.

    Returns:
        The path.

    Raises:
        UserError: if there is none. It says how to make one.

    Example:
    ```python
    targets_python()  # ".venv-targets/bin/python"
    ```
    """
    path = given or os.environ.get(VARIABLE) or f"{ENVIRONMENT}/bin/python"
    if not os.access(path, os.X_OK):
        raise UserError(
            f"{path} is no interpreter: the compilers live in an environment of their own, which "
            f"`make targets` makes in {ENVIRONMENT} (1.2 GB); --targets_python or {VARIABLE} names "
            "another's."
        )
    return path


def format_report(result: dict[str, Any], rows: int = 0) -> str:
    """Lays out what a program is on a device.

    Args:
        result: what `compile_for` returns.
        rows: int. Groups of kernels to list.

    Returns:
        Several lines.

    Example:
    ```python
    print(format_report(compile_for("base.step", "h100", "scripts/run_step.py"), rows=20))
    ```
    """
    replicas = f", {result['replicas']} of them" if result["replicas"] > 1 else ""
    lines = [
        ("device", ACCELERATORS[result["target"]].title + replicas),
        ("compiled in", duration(result["compile_seconds"])),
        ("program", si(result["program_bytes"], "B") + " of StableHLO"),
        ("memory", _gib(result["argument_bytes"] + result["temporary_bytes"])),
        ("  arguments", _gib(result["argument_bytes"])),
        ("  temporaries", _gib(result["temporary_bytes"])),
        ("products", si(result["flops"], "FLOP")),
        ("read and written", _gib(result["bytes_accessed"])),
    ]
    if "kernels" in result:
        lines.append(("kernels", f"{result['kernels']:,}"))
    if result.get("collectives"):
        lines.append(("  collectives", f"{result['collectives']:,}"))
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
        text += ["", f"{'at least':>12}{'kernels':>9}{'memory':>12}  what, and one's result"]
        text += [_group_row(group) for group in result["groups"][:rows]]
    return "\n".join(text)


def _group_row(group: dict[str, Any]) -> str:
    numbers = f"{group['kernels']:9,}{_gib(group['bytes_accessed']):>12}"
    shape = group["shape"] if len(group["shape"]) < 60 else group["shape"][:57] + "..."
    return f"{group['least_seconds'] * 1e3:9.3f} ms{numbers}  {group['name']} {shape}"


def _gib(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB"

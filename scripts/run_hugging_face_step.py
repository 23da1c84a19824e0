#!/usr/bin/env python3
"""Runs Hugging Face's ELECTRA in PyTorch, on the sizes and batches of an exported program.

    run_hugging_face_step.py electra.step --steps=30 --compile=default

What `run_step.py` is for our step, this is for the peer's: the same batches, sizes, optimizer and
clipping, read from what `compile_step.py --program=FILE` wrote of a configuration whose objective
is ELECTRA's (`objective.lm_weight=0`, `objective.scl_weight=0`), the same measurements, and the
same JSON in the last line. It needs PyTorch and transformers, no TensorFlow and, of ours, nothing
but this folder. benchmarks/hugging_face.py says how the step differs from ours.
"""

import argparse
import json
import sys
from typing import Any

import torch
from benchmarks import hugging_face
from run_step import Program, UserError, process_peak_memory, step_parser, time_steps


def run(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds the models and times their steps."""
    description = program.description
    step = hugging_face.electra_step(
        description["config"],
        program.batches(),
        description["precision"],
        arguments.attention,
        arguments.compile,
        not arguments.no_mask,
        arguments.seed,
    )
    is_gpu, last = torch.cuda.is_available(), []

    def advance() -> None:
        last[:] = step()

    result = time_steps(
        description,
        hugging_face.device_name(),
        advance,
        torch.cuda.synchronize if is_gpu else lambda: None,
        lambda: {name: loss.item() for name, loss in zip(hugging_face.LOSSES, last, strict=True)},
        arguments,
    )
    return result | {
        "program": "Hugging Face ELECTRA: " + description["title"],
        "versions": hugging_face.versions(),
        "attention": arguments.attention,
        "compile": arguments.compile,
        "mask": not arguments.no_mask,
        "peak_memory_bytes": (
            torch.cuda.max_memory_allocated() if is_gpu else process_peak_memory()
        ),
    }


def main() -> None:
    parser = step_parser(__doc__)
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument(
        "--compile",
        choices=("none", "default", "reduce-overhead", "max-autotune-no-cudagraphs"),
        default="none",
        help="torch.compile's mode",
    )
    parser.add_argument(
        "--no_mask",
        action="store_true",
        help="give no padding mask, so that attention may take kernels that know none: all "
        "sequences are full",
    )
    arguments = parser.parse_args()
    try:
        program = Program(arguments.program)
        objective = program.description["config"]["objective"]
        if objective["lm_weight"] or objective["scl_weight"]:
            raise UserError(
                f"{arguments.program} does more than ELECTRA: export it with objective.lm_weight=0 "
                "and objective.scl_weight=0."
            )
    except UserError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(run(program, arguments)))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Fine-tunes Hugging Face's ELECTRA in PyTorch on batches that were exported for it.

    run_hugging_face_finetuning.py sst2.npz --rounds=5

The batches, sizes and optimizer are those of `benchmark_finetuning.py --export=FILE`; the loop is
that of Hugging Face's Trainer without its logging: forward, backward, AdamW. It needs PyTorch and
transformers, no TensorFlow and, of ours, nothing but this folder, and prints the same measurements
as JSON. The model has segment embeddings and no relative positions, and its weights are random.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers
from benchmarks import hugging_face

_INPUTS = {
    "token_ids": "input_ids",
    "padding_mask": "attention_mask",
    "label": "labels",
    "start": "start_positions",
    "end": "end_positions",
}


def run(arrays: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds the model and times its steps."""
    sizes, device = json.loads(str(arrays["sizes"])), hugging_face.device()
    torch.manual_seed(0)
    config = hugging_face.electra_config(sizes, arguments.attention)
    kind = "SequenceClassification" if sizes["classes"] else "QuestionAnswering"
    model = getattr(transformers, f"ElectraFor{kind}")(config).to(device).train()
    optimizer = hugging_face.adamw(model, sizes["optimizer"])
    batches = []
    for number in range(sum(name.endswith("/token_ids") for name in arrays)):
        batch = {
            theirs: torch.from_numpy(np.asarray(arrays[f"batch{number}/{ours}"])).to(device).long()
            for ours, theirs in _INPUTS.items()
            if f"batch{number}/{ours}" in arrays
        }
        if sizes["classes"] == 1:  # a regression
            batch["labels"] = torch.from_numpy(arrays[f"batch{number}/label"]).to(device).float()
        batches.append(batch)

    def steps() -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), time.process_time()
        for batch in batches:
            with hugging_face.autocast(sizes["precision"]):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - started, time.process_time() - cpu_started

    first, _ = steps()
    seconds, cpu_seconds = np.median([steps() for _ in range(arguments.rounds)], axis=0).tolist()
    rows = sum(len(batch["input_ids"]) for batch in batches)
    return {
        "program": f"Hugging Face ELECTRA: {sizes['name']}",
        "device": hugging_face.device_name(),
        "versions": hugging_face.versions(),
        "precision": sizes["precision"],
        "rounds": arguments.rounds,
        "rows": rows,
        "tokens": sum(batch["input_ids"].numel() for batch in batches),
        "first_seconds": first,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "examples_per_second": rows / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batches", help="what benchmark_finetuning.py --export=FILE wrote")
    parser.add_argument("--rounds", type=int, default=5, help="how often all batches are timed")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    try:
        with np.load(arguments.batches, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {arguments.batches} holds no exported batches: {error}")
    print(json.dumps(run(arrays, arguments)))


if __name__ == "__main__":
    main()

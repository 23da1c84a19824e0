#!/usr/bin/env python3
"""Fine-tunes Hugging Face's ELECTRA in PyTorch on batches that were exported for it.

    run_hugging_face_finetuning.py sst2.npz --rounds=5

The batches, sizes and optimizer are those of `benchmark_finetuning.py --export=FILE`; the loop is
that of Hugging Face's Trainer without its logging: forward, backward, AdamW. It needs PyTorch and
transformers, no TensorFlow and nothing of ours, and prints the same measurements as JSON. The model
has segment embeddings and no relative positions, and its weights are random.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers


def build_model(sizes: dict[str, Any], attention: str) -> torch.nn.Module:
    """An ELECTRA of the sizes that a classifier or an answerer of ours has."""
    config = transformers.ElectraConfig(
        vocab_size=sizes["vocabulary_size"],
        embedding_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["num_layers"],
        hidden_size=sizes["hidden_dim"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["intermediate_dim"],
        hidden_dropout_prob=sizes["dropout"],
        attention_probs_dropout_prob=sizes["dropout"],
        max_position_embeddings=sizes["max_sequence_length"],
        initializer_range=sizes["initializer_range"],
        pad_token_id=1,
        num_labels=sizes["classes"] or 2,
        attn_implementation=attention,
    )
    if sizes["classes"]:
        return transformers.ElectraForSequenceClassification(config)
    return transformers.ElectraForQuestionAnswering(config)


def build_optimizer(settings: dict[str, Any], model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW, which decays matrices."""
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim > 1) == decays],
            "weight_decay": settings["weight_decay"] * decays,
        }
        for decays in (True, False)
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings["learning_rate"],
        betas=(settings["beta_1"], settings["beta_2"]),
        eps=settings["epsilon"],
        fused=True,
    )


def run(arrays: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds the model and times its steps."""
    sizes = json.loads(str(arrays["sizes"]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model(sizes, arguments.attention).to(device).train()
    optimizer = build_optimizer(sizes["optimizer"], model)
    names = {
        "token_ids": "input_ids",
        "padding_mask": "attention_mask",
        "label": "labels",
        "start": "start_positions",
        "end": "end_positions",
    }
    batches = []
    for number in range(sum(name.endswith("/token_ids") for name in arrays)):
        own = {name: arrays.get(f"batch{number}/{name}") for name in names}
        batch = {
            names[name]: torch.from_numpy(np.asarray(value)).to(device)
            for name, value in own.items()
            if value is not None
        }
        is_number = sizes["classes"] == 1
        batches.append(
            {
                name: value.float() if is_number and name == "labels" else value.long()
                for name, value in batch.items()
            }
        )
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=sizes["precision"] == "mixed_bfloat16"
    )

    def steps() -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), time.process_time()
        for batch in batches:
            with autocast:
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - started, time.process_time() - cpu_started

    first, _ = steps()
    timed = [steps() for _ in range(arguments.rounds)]
    seconds, cpu_seconds = (float(np.median(part)) for part in zip(*timed, strict=True))
    rows = sum(len(batch["input_ids"]) for batch in batches)
    return {
        "program": f"Hugging Face ELECTRA: {sizes['name']}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
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
        print(f"error: {arguments.batches} holds no exported batches: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(run(arrays, arguments)))


if __name__ == "__main__":
    main()

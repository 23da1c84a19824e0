#!/usr/bin/env python3
"""Runs Hugging Face's ELECTRA in PyTorch, on the sizes and batches of an exported program.

    run_hugging_face_step.py electra.step --steps=30 --compile=default

What `run_step.py` is for our step, this is for the peer's: the same batches, sizes, optimizer and
clipping, read from what `compile_step.py --program=FILE` wrote of a configuration whose objective
is ELECTRA's (`objective.lm_weight=0`, `objective.scl_weight=0`), the same measurements, and the
same JSON in the last line. It needs PyTorch and transformers, no TensorFlow and nothing of ours.

The step is kind to the peer: the generator's head sees the masked positions alone, which
`ElectraForMaskedLM` would run on all, the discriminator's loss is written without the boolean
indexing that breaks its graph, and nothing but the losses is measured. All embeddings are shared by
its two models; it has segment embeddings and one more dense layer before its logits, and no
relative positions; a step with infinite gradients is not left out. bfloat16 is autocast's.
"""

import argparse
import io
import json
import resource
import sys
import time
import zipfile
from typing import Any

import numpy as np
import torch
import transformers

_RTD_WEIGHT = 50.0


class Electra(torch.nn.Module):
    """`ElectraForMaskedLM` and `ElectraForPreTraining`, trained jointly: ELECTRA's objective."""

    def __init__(self, config: dict[str, Any], attention: str) -> None:
        super().__init__()
        main, auxiliary = config["model"], config["auxiliary"]
        self.mask_token_id = main["vocabulary_size"] - 1

        def sized(
            num_layers: int, width: int, heads: int, intermediate: int, dropout: float
        ) -> transformers.ElectraConfig:
            return transformers.ElectraConfig(
                vocab_size=main["vocabulary_size"],
                embedding_size=main["hidden_dim"],
                num_hidden_layers=num_layers,
                hidden_size=width,
                num_attention_heads=heads,
                intermediate_size=intermediate,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                max_position_embeddings=main["max_sequence_length"],
                initializer_range=main["initializer_range"],
                pad_token_id=1,
                attn_implementation=attention,
            )

        sizes = ("hidden_dim", "num_heads", "intermediate_dim")
        self.discriminator = transformers.ElectraForPreTraining(
            sized(main["num_layers"], *(main[size] for size in sizes), main["dropout"])
        )
        self.generator = transformers.ElectraForMaskedLM(
            sized(
                auxiliary["num_layers"],
                *(auxiliary[size] or main[size] for size in sizes),
                0.0 if auxiliary["sampling"] == "zero_dropout" else main["dropout"],
            )
        )
        embeddings = self.discriminator.electra.embeddings
        self.generator.electra.embeddings = embeddings
        self.generator.generator_lm_head.weight = embeddings.word_embeddings.weight

    def forward(
        self,
        token_ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The objective and its two losses."""
        is_masked, labels = weights > 0, token_ids.gather(1, positions)
        masked = token_ids.scatter(1, positions, torch.where(is_masked, self.mask_token_id, labels))
        hidden = self.generator.electra(masked, mask)[0]
        rows = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        hidden = self.generator.generator_predictions(hidden.gather(1, rows))
        logits = self.generator.generator_lm_head(hidden).float()
        errors = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none"
        )
        masked_lm_loss = (errors * weights.flatten()).sum() / weights.sum()
        with torch.no_grad():
            # The quotient of probabilities and exponential noise is largest where a sample is.
            noise = torch.empty_like(logits).exponential_()
            sampled = (logits.softmax(-1) / noise).argmax(-1)
            corrupted = token_ids.scatter(1, positions, torch.where(is_masked, sampled, labels))
            is_replaced = (corrupted != token_ids).float()
        logits = self.discriminator(corrupted, mask).logits.float()
        errors = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, is_replaced, reduction="none"
        )
        rtd_loss = errors.mean() if mask is None else (errors * mask).sum() / mask.sum()
        return masked_lm_loss + _RTD_WEIGHT * rtd_loss, masked_lm_loss, rtd_loss


def run(description: dict[str, Any], arrays: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds the models and times their steps."""
    config, device = description["config"], torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda")
        torch.backends.cuda.matmul.allow_tf32 = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    torch.manual_seed(arguments.seed)
    model = Electra(config, arguments.attention).to(device).train()
    optimizer = _build_optimizer(config["optimizer"], model)
    parameters = list(model.parameters())
    losses = model if arguments.compile == "none" else torch.compile(model, mode=arguments.compile)
    batches = [
        tuple(
            torch.from_numpy(arrays[f"batch{number}/{key}"].astype(dtype)).to(device)
            for key, dtype in (
                ("token_ids", np.int64),
                ("padding_mask", np.int64),
                ("masked_positions", np.int64),
                ("masked_weights", np.float32),
            )
        )
        for number in range(sum(key.endswith("/token_ids") for key in arrays))
    ]
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=description["precision"] == "mixed_bfloat16"
    )
    count = 0

    def advance() -> tuple[torch.Tensor, ...]:
        nonlocal count
        token_ids, mask, positions, weights = batches[count % len(batches)]
        count += 1
        with autocast:
            found = losses(token_ids, None if arguments.no_mask else mask, positions, weights)
        found[0].backward()
        if config["optimizer"]["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(parameters, config["optimizer"]["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    started = time.perf_counter()
    first = [loss.item() for loss in advance()]
    first_seconds = time.perf_counter() - started
    print(f"first step after {first_seconds:.1f} s on {name}", file=sys.stderr, flush=True)
    for _ in range(arguments.warmup):
        advance()
    wait()
    seconds = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        advance()
        wait()
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(arguments.steps):
        last = advance()
    wait()
    in_turn = (time.perf_counter() - started) / arguments.steps

    quartiles = np.percentile(seconds, [0, 25, 50, 75, 100])
    names = ("min", "first_quartile", "median", "third_quartile", "max")
    step_seconds = {key: float(value) for key, value in zip(names, quartiles, strict=True)}
    median = step_seconds["median"]
    peaks = description["peak_flops"]
    known = [kind for kind in peaks if name.startswith(kind) and " MIG " not in name]
    peak = peaks[max(known, key=len)] if known else None
    loss_names = ("loss", "mlm_loss", "copy_loss")
    return {
        "program": "Hugging Face ELECTRA: " + description["title"],
        "device": name,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "attention": arguments.attention,
        "compile": arguments.compile,
        "mask": not arguments.no_mask,
        "precision": description["precision"],
        "batch_size": description["batch_size"],
        "sequence_length": description["sequence_length"],
        "compile_seconds": first_seconds,
        "steps": arguments.steps,
        "step_seconds": step_seconds,
        "back_to_back_seconds": in_turn,
        "tokens_per_second": description["tokens"] / median,
        "back_to_back_tokens_per_second": description["tokens"] / in_turn,
        # Of the work, not of what each does for it: the same for both.
        "flops_per_step": description["flops"],
        "share_of_peak": description["flops"] / median / peak if peak else None,
        "peak_memory_bytes": _peak_memory(device),
        "first_losses": dict(zip(loss_names, first, strict=True)),
        "last_losses": {key: loss.item() for key, loss in zip(loss_names, last, strict=True)},
    }


def _build_optimizer(config: dict[str, Any], model: torch.nn.Module) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ],
        # The first step of the warm-up, as in the exported program.
        lr=config["learning_rate"] / max(config["warmup_steps"], 1),
        betas=(config["beta_1"], config["beta_2"]),
        eps=config["epsilon"],
        fused=True,
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read(path: str) -> tuple[dict[str, Any], Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read("step.json"))
            arrays = np.load(io.BytesIO(archive.read("arrays.npz")), allow_pickle=False)
            return description, dict(arrays)
    except (OSError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        _fail(f"{path} is no program that compile_step.py wrote: {error}.")


def _fail(message: str) -> Any:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="what compile_step.py --program=FILE wrote")
    parser.add_argument("--steps", type=int, default=20, help="steps to time")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them, after the first")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of dropout")
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
    if arguments.steps < 1 or arguments.warmup < 0:
        parser.error("--steps is at least 1, --warmup is at least 0")
    description, arrays = _read(arguments.program)
    objective = description["config"]["objective"]
    if objective["lm_weight"] or objective["scl_weight"]:
        _fail(
            f"{arguments.program} does more than ELECTRA: export it with objective.lm_weight=0 and "
            "objective.scl_weight=0."
        )
    print(json.dumps(run(description, arrays, arguments)))


if __name__ == "__main__":
    main()

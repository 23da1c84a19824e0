"""Hugging Face's ELECTRA in PyTorch: models, optimizer and pretraining step.

It imports no TensorFlow and nothing of ours: sizes and settings are dicts.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

LOSSES = ("loss", "mlm_loss", "copy_loss")
_RTD_WEIGHT = 50.0


def device() -> torch.device:
    """The GPU, whose products are then in TF32 as TensorFlow's are, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    return torch.device("cuda")


def device_name() -> str:
    """The name of `device()`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """The versions of what the models are made of."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def electra_config(
    model: Mapping[str, Any], attention: str, **others: Any
) -> transformers.ElectraConfig:
    """The configuration of an encoder of the sizes of ours, `others` of them changed."""
    sizes = {**model, **others}
    return transformers.ElectraConfig(
        vocab_size=sizes["vocabulary_size"],
        embedding_size=model["hidden_dim"],
        num_hidden_layers=sizes["num_layers"],
        hidden_size=sizes["hidden_dim"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["intermediate_dim"],
        hidden_dropout_prob=sizes["dropout"],
        attention_probs_dropout_prob=sizes["dropout"],
        max_position_embeddings=sizes["max_sequence_length"],
        initializer_range=sizes["initializer_range"],
        pad_token_id=1,
        num_labels=sizes.get("classes") or 2,
        attn_implementation=attention,
    )


def adamw(model: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW, which decays matrices, at the learning rate of the first step."""
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim > 1) == decays],
            "weight_decay": settings["weight_decay"] * decays,
        }
        for decays in (True, False)
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings["learning_rate"] / max(settings.get("warmup_steps", 0), 1),
        betas=(settings["beta_1"], settings["beta_2"]),
        eps=settings["epsilon"],
        fused=True,
    )


def autocast(precision: str) -> torch.autocast:
    """bfloat16 by PyTorch's own choice of operations, or float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "mixed_bfloat16")


def electra_step(
    config: Mapping[str, Any],
    batches: Sequence[Mapping[str, np.ndarray]],
    precision: str,
    attention: str = "sdpa",
    compile_mode: str = "none",
    use_mask: bool = True,
    seed: int = 0,
) -> Callable[[], list[torch.Tensor]]:
    """Builds ELECTRA and its training step, which returns `LOSSES`."""
    # The library has no joint step of its own. This one is kind to the peer: the generator's head
    # sees the masked positions alone, which `ElectraForMaskedLM` would run on all, the
    # discriminator's loss is written without the boolean indexing that breaks its graph, and
    # nothing but the losses is measured.
    # What differs from ours, all by its design: all embeddings and their LayerNorm are shared by
    # its two models, and there are segment embeddings and no relative positions; the discriminator
    # has one more dense layer before its logits; a step with infinite gradients is not left out.
    torch.manual_seed(seed)
    model = Electra(config, attention).to(device()).train()
    optimizer = adamw(model, config["optimizer"])
    losses = model if compile_mode == "none" else torch.compile(model, mode=compile_mode)
    clip_norm, parameters = config["optimizer"]["clip_norm"], list(model.parameters())
    inputs = itertools.cycle([_inputs(batch, use_mask) for batch in batches])

    def step() -> list[torch.Tensor]:
        with autocast(precision):
            found = losses(*next(inputs))
        found[0].backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found

    return step


def _inputs(batch: Mapping[str, np.ndarray], use_mask: bool) -> list[torch.Tensor | None]:
    names = ("token_ids", "padding_mask", "masked_positions")
    found = [torch.from_numpy(batch[name].astype(np.int64)).to(device()) for name in names]
    if not use_mask:
        found[1] = None
    return [*found, torch.from_numpy(batch["masked_weights"].astype(np.float32)).to(device())]


class Electra(torch.nn.Module):
    """`ElectraForMaskedLM` and `ElectraForPreTraining`, trained jointly: ELECTRA's objective."""

    def __init__(self, config: Mapping[str, Any], attention: str) -> None:
        super().__init__()
        main, auxiliary = config["model"], config["auxiliary"]
        self.mask_token_id = main["vocabulary_size"] - 1
        sizes = {
            name: auxiliary[name] or main[name]
            for name in ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
        }
        if auxiliary["sampling"] == "zero_dropout":
            sizes["dropout"] = 0.0
        self.discriminator = transformers.ElectraForPreTraining(electra_config(main, attention))
        self.generator = transformers.ElectraForMaskedLM(electra_config(main, attention, **sizes))
        embeddings = self.discriminator.electra.embeddings
        self.generator.electra.embeddings = embeddings
        self.generator.generator_lm_head.weight = embeddings.word_embeddings.weight

    def forward(
        self,
        token_ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        weights: torch.Tensor,
    ) -> list[torch.Tensor]:
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
        return [masked_lm_loss + _RTD_WEIGHT * rtd_loss, masked_lm_loss, rtd_loss]

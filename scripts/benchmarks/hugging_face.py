"""Hugging Face's ELECTRA as a contender."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
import transformers

from cocolm_tf.training.config import PretrainingConfig

_RTD_WEIGHT = 50.0
_NOT_MASKED = -100


def electra_step(
    config: PretrainingConfig,
    batches: list[dict[str, np.ndarray]],
    attention: str = "sdpa",
    compiled: bool = False,
) -> Callable[[], float]:
    """Builds Hugging Face's ELECTRA and a training step."""
    # The models are `ElectraForMaskedLM` and `ElectraForPreTraining`, with shared embeddings; the
    # optimizer is PyTorch's fused AdamW, with clipping; bfloat16 is autocast's. The step trains
    # both jointly, as ELECTRA does; the library has none of its own. It is kind to the model: the
    # masked language model's head is run on the masked positions alone, which `ElectraForMaskedLM`
    # would run on all, and nothing but the loss is measured.
    # What differs from ours, all by its design: all embeddings and their LayerNorm are shared by
    # its two models, and there are segment embeddings; the discriminator has one more dense layer
    # before its logits; a step with infinite gradients is not left out.
    torch.manual_seed(config.runtime.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _Electra(config, attention).to(device).train()
    optimizer = _build_optimizer(config, model)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, config.optimizer.warmup_steps, config.trainer.train_steps
    )
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=config.runtime.precision == "mixed_bfloat16"
    )
    losses = torch.compile(model) if compiled else model
    parameters = list(model.parameters())
    inputs = itertools.cycle([_to_inputs(batch, device) for batch in batches])

    def step() -> float:
        with autocast:
            loss = losses(**next(inputs))
        loss.backward()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


class _Electra(torch.nn.Module):
    def __init__(self, config: PretrainingConfig, attention: str) -> None:
        super().__init__()
        main, auxiliary = config.model, config.auxiliary
        self.mask_token_id = main.vocabulary_size - 1
        self.discriminator = transformers.ElectraForPreTraining(
            _electra_config(
                config,
                attention,
                num_hidden_layers=main.num_layers,
                hidden_size=main.hidden_dim,
                num_attention_heads=main.num_heads,
                intermediate_size=main.intermediate_dim,
            )
        )
        self.generator = transformers.ElectraForMaskedLM(
            _electra_config(
                config,
                attention,
                num_hidden_layers=auxiliary.num_layers,
                hidden_size=auxiliary.hidden_dim or main.hidden_dim,
                num_attention_heads=auxiliary.num_heads or main.num_heads,
                intermediate_size=auxiliary.intermediate_dim or main.intermediate_dim,
            )
        )
        embeddings = self.discriminator.electra.embeddings
        self.generator.electra.embeddings = embeddings
        self.generator.generator_lm_head.weight = embeddings.word_embeddings.weight

    def forward(
        self,
        token_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        is_masked = labels != _NOT_MASKED
        original = token_ids.gather(1, positions)
        masked = token_ids.scatter(
            1, positions, torch.where(is_masked, self.mask_token_id, original)
        )
        hidden = self.generator.electra(masked, attention_mask)[0]
        rows = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        hidden = self.generator.generator_predictions(hidden.gather(1, rows))
        logits = self.generator.generator_lm_head(hidden).float()
        masked_lm_loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=_NOT_MASKED
        )
        with torch.no_grad():
            # The quotient of probabilities and exponential noise is largest where a sample is.
            noise = torch.empty_like(logits).exponential_()
            sampled = (logits.softmax(-1) / noise).argmax(-1)
            corrupted = token_ids.scatter(1, positions, torch.where(is_masked, sampled, original))
            is_replaced = (corrupted != token_ids).long()
        rtd_loss = self.discriminator(corrupted, attention_mask, labels=is_replaced).loss
        return masked_lm_loss + _RTD_WEIGHT * rtd_loss


def _electra_config(
    config: PretrainingConfig, attention: str, **sizes: int
) -> transformers.ElectraConfig:
    model = config.model
    return transformers.ElectraConfig(
        vocab_size=model.vocabulary_size,
        embedding_size=model.hidden_dim,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.dropout,
        max_position_embeddings=model.max_sequence_length,
        initializer_range=model.initializer_range,
        pad_token_id=1,
        attn_implementation=attention,
        **sizes,
    )


def _build_optimizer(config: PretrainingConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    ours = config.optimizer
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": ours.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=ours.learning_rate,
        betas=(ours.beta_1, ours.beta_2),
        eps=ours.epsilon,
        fused=True,
    )


def _to_inputs(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    token_ids, positions = batch["token_ids"], batch["masked_positions"]
    labels = np.take_along_axis(token_ids, positions, axis=1)
    inputs = {
        "token_ids": token_ids,
        "attention_mask": batch["padding_mask"],
        "positions": positions,
        "labels": np.where(batch["masked_weights"] > 0, labels, _NOT_MASKED),
    }
    return {
        name: torch.from_numpy(value.astype(np.int64)).to(device) for name, value in inputs.items()
    }

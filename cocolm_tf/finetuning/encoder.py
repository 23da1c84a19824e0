"""The pretrained encoder that a run starts from."""

import random

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.tasks.task import Task
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.preset import check_finite_weights


def load_encoder(
    preset: str,
    *,
    seed: int,
    dropout: float,
    precision: str,
    from_scratch: bool = False,
    lora_rank: int = 0,
    rematerialize: str = "none",
) -> CocoLMBackbone:
    """Loads a preset's encoder, and seeds Keras's random numbers for the head and for dropout."""
    # `from_scratch` takes the preset's architecture with random weights. With a `lora_rank` above
    # 0, matrices of this rank are learned beside the encoder's, which stay as they are.
    # Keras draws the seeds of initializers and of dropout from Python's generator.
    random.seed(seed)
    backbone = CocoLMBackbone.from_preset(
        preset,
        load_weights=not from_scratch,
        dropout=dropout,
        dtype=precision,
        rematerialize=rematerialize,
    )
    if not from_scratch:
        check_finite_weights(backbone, preset)
    if lora_rank:
        backbone.enable_lora(lora_rank)
    return backbone


def encoder_of(task: Task, config: FinetuningConfig) -> CocoLMBackbone:
    """Loads the encoder of a task's preset, by its configuration."""
    return load_encoder(
        task.preset,
        seed=task.seed,
        dropout=config.model.dropout,
        precision=config.runtime.precision,
        from_scratch=task.from_scratch,
        lora_rank=config.model.lora_rank,
        rematerialize=config.model.rematerialize,
    )


def row_length(wanted: int, backbone: CocoLMBackbone, usual: int | None = None) -> int:
    """The tokens of a row: `wanted`; where that is 0, `usual`, or all the encoder's positions."""
    positions = backbone.max_sequence_length
    if wanted > positions:
        raise UserError(f"sequence_length={wanted} is more than the model's {positions} positions.")
    return wanted or min(usual or positions, positions)

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
    """Loads an encoder, and has what is drawn at random from now on follow from a seed.

    Args:
        preset: The folder.
        seed: int. Of the head that comes next, of dropout, and of the weights from scratch.
        dropout: float. Its rate.
        precision: Keras's name of it, as `mixed_bfloat16`.
        from_scratch: bool. Whether the weights are random, and the architecture alone the preset's.
        rematerialize: As of `CocoLMBackbone`.
        lora_rank: int. Learn matrices of this rank beside the encoder's; 0 learns all.

    Returns:
        The encoder.

    Example:
    ```python
    load_encoder("runs/first/preset", seed=0, dropout=0.1, precision="float32")
    ```
    """
    # Keras draws the seeds of initializers and of dropout from here.
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
    """Loads the encoder that a run starts from, see `load_encoder`."""
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
    """Says how long rows are.

    Args:
        wanted: int. What a configuration says; 0 where it leaves that open.
        backbone: The encoder.
        usual: int. What is taken where it is open; None for all positions of the encoder.

    Returns:
        Tokens.

    Raises:
        UserError: If the encoder has fewer positions than are wanted.

    Example:
    ```python
    row_length(0, backbone)  # 512
    ```
    """
    positions = backbone.max_sequence_length
    if wanted > positions:
        raise UserError(f"sequence_length={wanted} is more than the model's {positions} positions.")
    return wanted or min(usual or positions, positions)

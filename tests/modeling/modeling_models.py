"""Models and batches small enough to compute by hand."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer

SIZES = {
    "vocabulary_size": 60,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_sequence_length": 16,
    "relative_position_bins": 8,
    "relative_position_max_distance": 12,
}
MASK, PAD = 59, 1


def make_backbone(num_layers: int = 2, **changes: Any) -> CocoLMBackbone:
    return CocoLMBackbone(**({"num_layers": num_layers, "dropout": 0.0} | SIZES | changes))


def make_auxiliary(main: CocoLMBackbone | None, **changes: Any) -> MaskedLanguageModel:
    return MaskedLanguageModel(make_backbone(num_layers=1, embeddings_of=main, **changes))


def make_pretrainer(
    dropout: float = 0.0,
    auxiliary: MaskedLanguageModel | str | None = "shared",
    auxiliary_dropout: float = 0.0,
    dtype: str | None = None,
    num_layers: int = 1,
    **options: Any,
) -> CocoLMPretrainer:
    """A pretrainer with weights that make a difference; "shared" is COCO-LM's own auxiliary."""
    main = make_backbone(num_layers, dropout=dropout, dtype=dtype)
    if auxiliary == "shared":
        auxiliary = make_auxiliary(main, dropout=auxiliary_dropout, dtype=dtype)
    pretrainer = CocoLMPretrainer(main, auxiliary, MASK, **options)
    randomize(pretrainer)
    return pretrainer


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Gives all weights values that matter, biases and scales included, whatever they were."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        center = 1.0 if variable.path.endswith("gamma") else 0.0
        variable.assign(center + rng.normal(0, 0.25, variable.shape))


def make_inputs(seed: int = 0, sequences: int = 4, length: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(3, MASK, (sequences, length)).astype(np.int32)
    token_ids[:, 0] = 0
    real = rng.integers(length // 2, length + 1, sequences)
    padding_mask = np.arange(length) < real[:, np.newaxis]
    return {"token_ids": np.where(padding_mask, token_ids, PAD), "padding_mask": padding_mask}


def make_batch(seed: int = 0, sequences: int = 4, length: int = 12) -> dict[str, np.ndarray]:
    """A pretraining batch whose sequences hold 0 to 3 masked tokens of their 3 slots."""
    rng = np.random.default_rng(seed + 1000)
    inputs = make_inputs(seed, sequences, length)
    positions = [np.sort(rng.choice(np.arange(1, length // 2), 3, False)) for _ in range(sequences)]
    weights = np.arange(3) < np.resize([3, 0, 1, 2], sequences)[:, np.newaxis]
    crop = np.concatenate([inputs["token_ids"][:, :1], inputs["token_ids"][:, 2:-1]], axis=1)
    return inputs | {
        "masked_positions": np.stack(positions).astype(np.int32),
        "masked_weights": weights.astype(np.float32),
        "crop_token_ids": crop,
        "crop_padding_mask": crop != PAD,
    }


def tensors(batch: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.convert_to_tensor(value) for name, value in batch.items()}


def weights_of(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.trainable_variables]

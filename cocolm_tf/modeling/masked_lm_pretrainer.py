"""Masked language modeling pretraining: BERT's and RoBERTa's (paper, section 3.1)."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from cocolm_tf.losses import weighted_mean
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.corruption import replace_tokens
from cocolm_tf.modeling.masked_language_model import (
    MaskedLanguageModel,
    gather_positions,
    score_labels,
)
from cocolm_tf.modeling.measures import Measures, masked_lm_measures
from cocolm_tf.modeling.training_step import Batch, TrainingStep


class MaskedLMPretrainer(TrainingStep):
    """Masked language modeling, trained by `fit()`: the paper's RoBERTa baseline.

    The main model with a masked language modeling head, without auxiliary model and contrasting. A
    batch is that of `CocoLMPretrainer`; its crop is ignored.

    Args:
        model: The encoder with its head.
        mask_token_id: The token that hides another. It does so at every masked position.
        seed: Decides dropout.
        logit_chunk_rows: How many positions' logits exist at a time; see `CocoLMPretrainer`.

    Example:
    ```python
    pretrainer = MaskedLMPretrainer(MaskedLanguageModel(backbone), mask_token_id=999)
    pretrainer.compile(keras.optimizers.AdamW(1e-3), clip_norm=2.0)
    pretrainer.fit(dataset, epochs=1, steps_per_epoch=100)
    ```
    """

    loss_weights = {"mlm_loss": 1.0}

    # The parts of `CocoLMPretrainer` that this one lacks.
    auxiliary = copy_head = lm_head = projection = None

    def __init__(
        self,
        model: MaskedLanguageModel,
        mask_token_id: int,
        seed: int = 0,
        logit_chunk_rows: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, dtype=model.backbone.dtype_policy, **kwargs)
        self.model = model
        self.mask_token_id = mask_token_id
        self.logit_chunk_rows = logit_chunk_rows
        self.built = True

    @property
    def backbone(self) -> CocoLMBackbone:
        """The main model."""
        return self.model.backbone

    def compute(self, batch: Batch, training: bool) -> tuple[dict[str, tf.Tensor], Measures]:
        """The loss of section 3.1, and the accuracy."""
        original, positions = batch["token_ids"], batch["masked_positions"]
        masked = replace_tokens(original, positions, self.mask_token_id, batch["masked_weights"])
        inputs = {"token_ids": masked, "padding_mask": batch["padding_mask"]}
        labels = gather_positions(original, positions)
        weights = tf.reshape(batch["masked_weights"], [-1])
        errors, predictions = self.model.map_logits(
            score_labels, inputs, positions, [labels, weights], self.logit_chunk_rows, training
        )
        losses = {"mlm_loss": weighted_mean(errors, weights)}
        return losses, masked_lm_measures(predictions, labels, weights)

    def denominators(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The masked positions."""
        return {"mlm_loss": tf.reduce_sum(batch["masked_weights"])}

    def seed_generators(self) -> Iterator[keras.random.SeedGenerator]:
        """That of dropout."""
        yield self.backbone.seed_generator

    def meter_names(self) -> list[str]:
        """The loss and the accuracy."""
        return ["mlm_loss", "mlm_accuracy"]

"""Masked language modeling: the model, and its pretraining (paper, section 3.1)."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from cocolm_tf.losses import label_cross_entropy, weighted_mean
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.corruption import gather_positions, replace_tokens, sample_tokens
from cocolm_tf.modeling.heads import MaskedLMHead, build_head
from cocolm_tf.modeling.measures import Measures, share, top_tokens
from cocolm_tf.modeling.training_step import Batch, TrainingStep
from cocolm_tf.ops.row_chunks import RowFunction


class MaskedLanguageModel(keras.Model):
    """Predicts the tokens that `[MASK]` hides (paper, section 3.1).

    COCO-LM's auxiliary model (ELECTRA's generator), and the whole model of BERT and RoBERTa. Logits
    over the vocabulary are computed at the wanted positions alone.

    Args:
        backbone: The encoder.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] and `padding_mask` [B, S].
        positions: [B, M] int32, where to predict.
        training: Whether dropout acts.

    Returns:
        Logits [B * M, vocabulary_size].

    Example:
    ```python
    model = MaskedLanguageModel(backbone)
    inputs = {"token_ids": tf.ones([1, 8], tf.int32), "padding_mask": tf.ones([1, 8])}
    model(inputs, positions=tf.constant([[2, 5]]))
    ```
    """

    def __init__(self, backbone: CocoLMBackbone, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = build_head(
            MaskedLMHead,
            backbone,
            backbone.token_embedding,
            backbone.layer_norm_epsilon,
            backbone.initializer_range,
            name="masked_lm_head",
        )
        self.built = True

    def call(
        self, inputs: dict[str, tf.Tensor], positions: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        return self.head(self._rows(inputs, positions, training))

    def map_logits(
        self,
        function: RowFunction,
        inputs: dict[str, tf.Tensor],
        positions: tf.Tensor,
        rows: Sequence[tf.Tensor] = (),
        chunk_rows: int = 0,
        training: bool = False,
    ) -> tuple[tf.Tensor, ...]:
        """`TiedProjection.map_logits` at `positions` [B, M]; `rows` and results are [B * M]."""
        x = self.head.transform(self._rows(inputs, positions, training))
        return self.head.projection.map_logits(function, x, rows, chunk_rows)

    def predict_tokens(
        self,
        inputs: dict[str, tf.Tensor],
        positions: tf.Tensor,
        scored: Sequence[tf.Tensor] = (),
        sample: tuple[tf.Tensor, tf.Tensor | float] | None = None,
        chunk_rows: int = 0,
        training: bool = False,
    ) -> tuple[tf.Tensor, ...]:
        """Cross entropy and top-1 token, a sample, or all three, of each position: [B * M]."""
        # `scored` are the labels and their weights, [B * M] each; `sample` is the seed and the
        # temperature of the samples.

        def of_rows(
            logits: tf.Tensor, numbers: tf.Tensor, *scored: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            found = score_labels(logits, *scored) if scored else ()
            if sample is None:
                return found
            seed, temperature = sample
            return *found, sample_tokens(logits, seed, numbers[0], temperature)

        rows = [tf.range(tf.size(positions)), *scored]
        return self.map_logits(of_rows, inputs, positions, rows, chunk_rows, training)

    def _rows(
        self, inputs: dict[str, tf.Tensor], positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        states = self.backbone.states_at(inputs, positions, training)
        return tf.reshape(states, [-1, self.backbone.hidden_dim])


def score_labels(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy [N] float32 of labels, and the top-1 token [N] int32, for `map_logits`."""
    # `weights` [N] are 0 where the label does not matter.
    return label_cross_entropy(logits, labels, weights), top_tokens(logits)


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
        errors, predictions = self.model.predict_tokens(
            inputs,
            positions,
            [labels, weights],
            chunk_rows=self.logit_chunk_rows,
            training=training,
        )
        losses = {"mlm_loss": weighted_mean(errors, weights)}
        return losses, {"mlm_accuracy": share(tf.equal(predictions, labels), weights)}

    def denominators(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The masked positions."""
        return {"mlm_loss": tf.reduce_sum(batch["masked_weights"])}

    def seed_generators(self) -> Iterator[keras.random.SeedGenerator]:
        """That of dropout."""
        yield self.backbone.seed_generator

    def meter_names(self) -> list[str]:
        """The loss and the accuracy."""
        return ["mlm_loss", "mlm_accuracy"]

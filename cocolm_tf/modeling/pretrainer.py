"""COCO-LM pretraining: correct and contrast corrupted text (paper, section 3.3)."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from cocolm_tf.losses import (
    contrastive_cosines,
    copy_loss,
    copy_or_label_cross_entropy,
    sequence_contrastive_loss,
    weighted_mean,
)
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.corruption import (
    SamplingTemperature,
    check_sampling,
    gather_positions,
    random_tokens,
    replace_tokens,
)
from cocolm_tf.modeling.heads import CopyHead, TiedProjection, Transform, build_head
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, score_labels
from cocolm_tf.modeling.measures import (
    Measures,
    corrective_lm_measures,
    detection_measures,
    share,
    top_corrected_tokens,
)
from cocolm_tf.modeling.training_step import Batch, Losses, TrainingStep
from cocolm_tf.ops.fusion import pad_to_tiles


class CocoLMPretrainer(TrainingStep):
    """COCO-LM's two Transformers and its objective; `fit()` trains them.

    The auxiliary model (ELECTRA's generator) fills masked positions with tokens that it samples,
    and learns by masked language modeling. The main model (the discriminator) reads the result,
    learns to tell which tokens were replaced and what they were (corrective language modeling), and
    to identify the two views of one text among all others (sequence contrastive learning). All are
    trained jointly. A task of weight 0 is not built and costs nothing.

    Args:
        backbone: The main model.
        auxiliary: The auxiliary model; where its `trainable` is False by now, it samples but does
            not learn. None takes the batch's `replacements` [B, M] int32, or where it has none
            replaces masked tokens at random.
        mask_token_id: The token that hides another from the auxiliary model.
        sampling: Which forward pass of the auxiliary model is sampled from. `"eval"`: a second one
            without dropout (the paper's). `"train"`: the one that learns. `"zero_dropout"`: the
            one that learns, of an auxiliary model without dropout (METRO's; one pass serves both).
        sampling_temperature: What its logits are divided by before sampling; None for 1.
        copy_weight: Weight of the copy loss, lambda_copy in the paper.
        lm_weight: Weight of the LM loss.
        scl_weight: Weight of the contrastive loss.
        all_token_lm: Whether the LM loss is over all tokens, as ELECTRA's All-Token MLM, instead of
            the masked positions.
        use_copy: Whether the LM loss has the copy mechanism.
        stop_gradient: Whether the LM loss has no gradient into the copy probability.
        weighted_lm: Whether the LM loss at each position is multiplied by the probability, without
            a gradient into it, that the copy head gives its token of being a replacement.
        copy_head_zeros: Whether w_copy starts at zero, where each token is as likely to be
            replaced as not.
        copy_head_bias: Whether the copy head has a bias.
        temperature: Of the contrastive loss.
        projection: Whether the sequence vectors pass a dense layer, GELU and LayerNorm before they
            are compared. The paper does not mention it, the released models have it.
        scl_over_micro_batches: Whether, of a batch that is cut into micro-batches, all sequences
            are contrasted, at the price of one more forward pass, instead of those of one
            micro-batch.
        seed: Decides dropout and sampling.
        logit_chunk_rows: How many positions' logits over the vocabulary exist at a time, computed a
            second time for the gradient; 0 for all of them, computed once. It changes memory and
            time alone.

    A batch is a dict of `token_ids` [B, S] int32, `padding_mask` [B, S] bool,
    `masked_positions` [B, M] int32, `masked_weights` [B, M] float32 (0 for unused positions), and
    the second view: `crop_token_ids` [B, C] int32, `crop_padding_mask` [B, C] bool.

    Example:
    ```python
    sizes = dict(vocabulary_size=1000, num_heads=2, hidden_dim=32, intermediate_dim=64)
    main = CocoLMBackbone(num_layers=2, **sizes)
    auxiliary = MaskedLanguageModel(CocoLMBackbone(num_layers=1, embeddings_of=main, **sizes))
    pretrainer = CocoLMPretrainer(main, auxiliary, mask_token_id=999)
    pretrainer.compile(keras.optimizers.AdamW(1e-3), clip_norm=2.0)
    pretrainer.fit(dataset, epochs=1, steps_per_epoch=100)
    ```
    """

    def __init__(
        self,
        backbone: CocoLMBackbone,
        auxiliary: MaskedLanguageModel | None,
        mask_token_id: int,
        sampling: str = "eval",
        sampling_temperature: SamplingTemperature | None = None,
        copy_weight: float = 50.0,
        lm_weight: float = 1.0,
        scl_weight: float = 1.0,
        all_token_lm: bool = False,
        use_copy: bool = True,
        stop_gradient: bool = True,
        weighted_lm: bool = False,
        copy_head_zeros: bool = False,
        copy_head_bias: bool = False,
        temperature: float = 1.0,
        projection: bool = True,
        scl_over_micro_batches: bool = False,
        seed: int = 0,
        logit_chunk_rows: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, dtype=backbone.dtype_policy, **kwargs)
        check_sampling(sampling, auxiliary.backbone.dropout if auxiliary else 0.0)
        if lm_weight and backbone.embedding_dim != backbone.hidden_dim:
            raise ValueError("The LM head has no layer between hidden states and word embeddings.")
        frozen = auxiliary and not auxiliary.trainable
        if frozen and auxiliary.backbone.token_embedding is backbone.token_embedding:
            raise ValueError("A frozen auxiliary model needs word and position tables of its own.")
        self.backbone = backbone
        self.auxiliary = auxiliary
        self.sampling_seeds = keras.random.SeedGenerator(seed)
        self.copy_head = self.lm_head = self.projection = None
        if copy_weight or (lm_weight and use_copy):
            stddev = 0.0 if copy_head_zeros else backbone.initializer_range
            self.copy_head = build_head(
                CopyHead, backbone, stddev, copy_head_bias, name="copy_head"
            )
        elif weighted_lm:
            raise ValueError("weighted_lm=True weighs by the copy head, which nothing trains.")
        if lm_weight:
            self.lm_head = build_head(
                TiedProjection, backbone, backbone.token_embedding, name="lm_head"
            )
        if scl_weight and projection:
            self.projection = build_head(
                Transform,
                backbone,
                backbone.hidden_dim,
                backbone.layer_norm_epsilon,
                backbone.initializer_range,
                name="projection",
            )
        self.built = True

        self.mask_token_id = mask_token_id
        self.sampling = sampling
        self.sampling_temperature = sampling_temperature
        self.all_token_lm = all_token_lm
        self.use_copy = use_copy
        self.stop_gradient = stop_gradient
        self.weighted_lm = weighted_lm
        self.temperature = temperature
        self.logit_chunk_rows = logit_chunk_rows
        # Equation 4.
        weights = {
            "mlm_loss": 1.0 if auxiliary and auxiliary.trainable else 0.0,
            "copy_loss": copy_weight,
            "lm_loss": lm_weight,
            "scl_loss": scl_weight,
        }
        self.loss_weights = {name: weight for name, weight in weights.items() if weight}
        if scl_weight:
            self.contrasts = (2, backbone.hidden_dim)
            self.contrasts_whole_batch = scl_over_micro_batches

    # --- The objective: section 3.3 ---

    def compute(
        self,
        batch: Batch,
        training: bool,
        contrast: Callable[..., tuple[Losses, Measures]] | None = None,
    ) -> tuple[Losses, Measures]:
        """The losses of section 3.3, and the metrics of figures 7 and 8."""
        corrupted, losses, measures = self._corrupt(batch, training)
        inputs = {"token_ids": corrupted, "padding_mask": batch["padding_mask"]}
        hidden = self.backbone(inputs, training=training)
        tasks = [self._correct(hidden, corrupted, batch)]
        if "scl_loss" in self.loss_weights:
            views = self._views(hidden, batch, training)
            tasks.append((contrast or self.contrast)(*views))
        for task_losses, task_measures in tasks:
            losses |= task_losses
            measures |= task_measures
        return losses, measures

    def _corrupt(self, batch: Batch, training: bool) -> tuple[tf.Tensor, Losses, Measures]:
        """Eq. 1: trains the auxiliary model on masked tokens, and puts its samples there."""
        original, positions = batch["token_ids"], batch["masked_positions"]
        used, weights = batch["masked_weights"], tf.reshape(batch["masked_weights"], [-1])
        labels = gather_positions(original, positions)
        losses, measures = {}, {}
        if self.auxiliary is None and "replacements" in batch:
            sampled = tf.reshape(batch["replacements"], [-1])
        elif self.auxiliary is None:
            size, vocabulary_size = tf.shape(labels), self.backbone.vocabulary_size
            sampled = random_tokens(size, vocabulary_size, self.sampling_seeds.next())
        else:
            masked = replace_tokens(original, positions, self.mask_token_id, used)
            inputs = {"token_ids": masked, "padding_mask": batch["padding_mask"]}
            errors, predictions, sampled = self._score_and_sample(
                inputs, positions, [labels, weights], training
            )
            losses["mlm_loss"] = weighted_mean(errors, weights)
            measures["mlm_accuracy"] = share(tf.equal(predictions, labels), weights)
        return replace_tokens(original, positions, sampled, used), losses, measures

    def _score_and_sample(
        self,
        inputs: dict[str, tf.Tensor],
        positions: tf.Tensor,
        scored: list[tf.Tensor],
        training: bool,
    ) -> tuple[tf.Tensor, ...]:
        """The auxiliary model's cross entropy, top-1 token and sample at each masked position."""
        sample = self.sampling_seeds.next(), self.temperature_now(self.sampling_temperature)
        learns = training and self.auxiliary.trainable
        predict = functools.partial(
            self.auxiliary.predict_tokens, inputs, positions, chunk_rows=self.logit_chunk_rows
        )
        if learns and self.sampling == "eval" and self.auxiliary.backbone.dropout:
            # A second pass, without dropout.
            return *predict(scored, training=True), *predict(sample=sample)
        return predict(scored, sample=sample, training=learns)

    def _correct(
        self, hidden: tf.Tensor, corrupted: tf.Tensor, batch: Batch
    ) -> tuple[Losses, Measures]:
        """Eq. 2: the main model detects the replaced tokens and restores them (CLM)."""
        original, is_real = batch["token_ids"], batch["padding_mask"]
        is_original = tf.equal(corrupted, original)
        losses, measures = {}, {}
        if self.copy_head:
            copy_logits = self.copy_head(hidden)
            losses["copy_loss"] = copy_loss(copy_logits, is_original, is_real)
            measures |= detection_measures("copy", copy_logits, is_original, is_real)
            measures["replacement_rate"] = measures.pop("copy_replacement_rate")
        if self.lm_head:
            weights = tf.reshape(self._lm_weights(batch), [-1])
            hidden, corrupted, original = (
                self._lm_rows(x, batch) for x in (hidden, corrupted, original)
            )
            score, rows = score_labels, [original, weights]
            if self.copy_head:
                copy_logits = self._lm_rows(copy_logits, batch)
            if self.use_copy:
                score = self._score_copy_or_label
                rows += [corrupted, copy_logits]
            errors, predictions = self.lm_head.map_logits(
                score, hidden, rows, self.logit_chunk_rows
            )
            if self.weighted_lm:
                errors *= tf.stop_gradient(tf.sigmoid(-tf.cast(copy_logits, tf.float32)))
            losses["lm_loss"] = weighted_mean(errors, weights)
            measures |= corrective_lm_measures(predictions, corrupted, original, weights)
        return losses, measures

    def _score_copy_or_label(
        self,
        logits: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        input_ids: tf.Tensor,
        copy_logits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`score_labels`, where a token may also be copied."""
        errors = copy_or_label_cross_entropy(
            logits, copy_logits, input_ids, labels, weights, self.stop_gradient
        )
        return errors, top_corrected_tokens(logits, copy_logits, input_ids)

    def _views(
        self, hidden: tf.Tensor, batch: Batch, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The projected vectors of the corrupted texts, and of crops of the original ones."""
        inputs = {"token_ids": batch["crop_token_ids"], "padding_mask": batch["crop_padding_mask"]}
        inputs = {name: pad_to_tiles(value) for name, value in inputs.items()}
        start = tf.zeros([tf.shape(batch["crop_token_ids"])[0], 1], tf.int32)
        crop = self.backbone.states_at(inputs, start, training)
        first, second = hidden[:, 0], crop[:, 0]
        if self.projection:
            first, second = self.projection(first), self.projection(second)
        return first, second

    def contrast(self, first: tf.Tensor, second: tf.Tensor) -> tuple[Losses, Measures]:
        """Eq. 3: contrasts the corrupted texts and crops of the original ones (SCL)."""
        positive, negative = contrastive_cosines(first, second)
        pairs = tf.cast(tf.shape(first)[0], tf.float32)
        return (
            {"scl_loss": sequence_contrastive_loss(first, second, self.temperature)},
            {"positive_cosine": (positive, pairs), "negative_cosine": (negative, pairs)},
        )

    def _lm_rows(self, x: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Gathers the positions of the main model's language modeling: [N] or [N, H]."""
        if self.all_token_lm:
            return tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
        return gather_positions(x, batch["masked_positions"])

    def _lm_weights(self, batch: Batch) -> tf.Tensor:
        if self.all_token_lm:
            return tf.cast(batch["padding_mask"], tf.float32)
        return batch["masked_weights"]

    # --- What the training step asks for ---

    def denominators(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The numbers of masked positions, real tokens and sequences, which losses average over."""
        return {
            "mlm_loss": tf.reduce_sum(batch["masked_weights"]),
            "copy_loss": tf.reduce_sum(tf.cast(batch["padding_mask"], tf.float32)),
            "lm_loss": tf.reduce_sum(self._lm_weights(batch)),
            "scl_loss": tf.cast(tf.shape(batch["token_ids"])[0], tf.float32),
        }

    def seed_generators(self) -> Iterator[keras.random.SeedGenerator]:
        """The seed generators of both models' dropout, and that of the samples."""
        yield self.sampling_seeds
        yield self.backbone.seed_generator
        if self.auxiliary is not None:
            yield self.auxiliary.backbone.seed_generator

    def meter_names(self) -> list[str]:
        """The names of the losses and metrics of the tasks at hand."""
        names = []
        if self.auxiliary is not None:
            names += ["mlm_loss", "mlm_accuracy"]
        if self.copy_head:
            names += ["copy_loss", "copy_accuracy_replaced", "copy_accuracy_original"]
            names += ["replacement_rate"]
        if self.lm_head:
            names += ["lm_loss", "lm_accuracy_replaced", "lm_accuracy_original"]
        if "scl_loss" in self.loss_weights:
            names += ["scl_loss", "positive_cosine", "negative_cosine"]
        return names

"""Model Garden's ELECTRA as a contender."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.modeling import optimization, tf_utils
from official.nlp.configs import electra, encoders
from official.nlp.data.pretrain_dataloader import BertPretrainDataConfig
from official.nlp.modeling import models
from official.nlp.tasks.electra_task import ElectraPretrainConfig, ElectraPretrainTask

from cocolm_tf.training.config import PretrainingConfig


def electra_step(
    config: PretrainingConfig, batches: list[dict[str, np.ndarray]], jit_compile: bool = False
) -> Callable[[], float]:
    """Builds Model Garden's ELECTRA and its training step."""
    # The model is its `ElectraPretrainer`, the step its `ElectraPretrainTask`'s, metrics included,
    # the optimizer its AdamW with clipping; precision is tf_keras's global policy.
    # What differs from ours, all by its design: only word embeddings are shared by its two models,
    # and there are segment embeddings; the discriminator has one more dense layer before its
    # logits; GELU is the approximate one; LayerNorm of the embeddings is always in float32;
    # clipping is the optimizer's, and a step with infinite gradients is not left out.
    tf_keras.mixed_precision.set_global_policy(config.runtime.precision)
    task = ElectraPretrainTask(
        ElectraPretrainConfig(
            model=electra.ElectraPretrainerConfig(discriminator_loss_weight=50.0),
            train_data=BertPretrainDataConfig(use_next_sentence_label=False),
        )
    )
    model = _build_model(config, num_token_predictions=batches[0]["masked_positions"].shape[1])
    optimizer = _build_optimizer(config)
    metrics = task.build_metrics()

    @tf.function(jit_compile=jit_compile)
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return task.train_step(batch, model, optimizer, metrics)[task.loss]

    inputs = [_to_inputs(batch, config.model.vocabulary_size - 1) for batch in batches]
    stacked = {name: np.stack([each[name] for each in inputs]) for name in inputs[0]}
    iterator = iter(tf.data.Dataset.from_tensor_slices(stacked).cache().repeat().prefetch(1))
    return lambda: float(step(next(iterator)))


class _Pretrainer(models.ElectraPretrainer):
    """Casts to float32 both logits that fail in bfloat16: noise and labels are float32."""

    def call(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = super().call(inputs)
        return outputs | {"disc_logits": tf.cast(outputs["disc_logits"], tf.float32)}

    def _get_fake_data(
        self, inputs: dict[str, tf.Tensor], mlm_logits: tf.Tensor, duplicate: bool = True
    ) -> dict[str, Any]:
        return super()._get_fake_data(inputs, tf.cast(mlm_logits, tf.float32), duplicate)


def _build_model(config: PretrainingConfig, num_token_predictions: int) -> _Pretrainer:
    """What the task's own `build_model` does, with the class above."""
    main, auxiliary = config.model, config.auxiliary
    discriminator = encoders.build_encoder(
        _encoder_config(
            config,
            num_layers=main.num_layers,
            hidden_size=main.hidden_dim,
            num_attention_heads=main.num_heads,
            intermediate_size=main.intermediate_dim,
        )
    )
    generator_config = _encoder_config(
        config,
        num_layers=auxiliary.num_layers,
        hidden_size=auxiliary.hidden_dim or main.hidden_dim,
        num_attention_heads=auxiliary.num_heads or main.num_heads,
        intermediate_size=auxiliary.intermediate_dim or main.intermediate_dim,
    )
    generator = encoders.build_encoder(
        generator_config, embedding_layer=discriminator.get_embedding_layer()
    )
    return _Pretrainer(
        generator_network=generator,
        discriminator_network=discriminator,
        vocab_size=main.vocabulary_size,
        num_classes=2,
        num_token_predictions=num_token_predictions,
        mlm_activation=tf_utils.get_activation(generator_config.get().hidden_activation),
        mlm_initializer=tf_keras.initializers.TruncatedNormal(stddev=main.initializer_range),
    )


def _encoder_config(config: PretrainingConfig, **sizes: int) -> encoders.EncoderConfig:
    model = config.model
    return encoders.EncoderConfig(
        type="bert",
        bert=encoders.BertEncoderConfig(
            vocab_size=model.vocabulary_size,
            embedding_size=model.hidden_dim,
            dropout_rate=model.dropout,
            attention_dropout_rate=model.dropout,
            max_position_embeddings=model.max_sequence_length,
            initializer_range=model.initializer_range,
            **sizes,
        ),
    )


def _build_optimizer(config: PretrainingConfig) -> tf_keras.optimizers.Optimizer:
    ours = config.optimizer
    return ElectraPretrainTask.create_optimizer(
        optimization.OptimizationConfig(
            {
                "optimizer": {
                    "type": "adamw",
                    "adamw": {
                        "beta_1": ours.beta_1,
                        "beta_2": ours.beta_2,
                        "epsilon": ours.epsilon,
                        "weight_decay_rate": ours.weight_decay,
                        "exclude_from_weight_decay": ["LayerNorm", "layer_norm", "bias"],
                        "gradient_clip_norm": ours.clip_norm,
                    },
                },
                "learning_rate": {
                    "type": "polynomial",
                    "polynomial": {
                        "initial_learning_rate": ours.learning_rate,
                        "end_learning_rate": ours.end_learning_rate,
                        "decay_steps": config.trainer.train_steps,
                    },
                },
                "warmup": {
                    "type": "polynomial",
                    "polynomial": {"warmup_steps": ours.warmup_steps, "power": 1},
                },
            }
        )
    )


def _to_inputs(batch: dict[str, np.ndarray], mask_token_id: int) -> dict[str, np.ndarray]:
    """A batch as Model Garden's data loader would give it."""
    token_ids, positions = batch["token_ids"], batch["masked_positions"]
    is_used = batch["masked_weights"] > 0
    labels = np.take_along_axis(token_ids, positions, axis=1)
    masked = token_ids.copy()
    np.put_along_axis(masked, positions, np.where(is_used, mask_token_id, labels), axis=1)
    return {
        "input_word_ids": masked,
        "input_mask": batch["padding_mask"].astype(np.int32),
        "input_type_ids": np.zeros_like(token_ids),
        # What is not used points to the first token, which is never replaced.
        "masked_lm_positions": np.where(is_used, positions, 0),
        "masked_lm_ids": np.where(is_used, labels, 0),
        "masked_lm_weights": batch["masked_weights"],
    }

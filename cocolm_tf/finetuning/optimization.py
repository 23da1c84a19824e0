"""The optimizer of fine-tuning, which may train lower layers at lower rates."""

import math

import keras

from cocolm_tf.finetuning.config import OptimizerConfig
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.optimization import AdamW, WarmupDecay


def build_optimizer(
    config: OptimizerConfig, total_steps: int, model: keras.Model, backbone: CocoLMBackbone
) -> AdamW:
    """Builds the optimizer of an encoder with a head, for a run of so many steps."""
    warmup_steps = math.ceil(config.warmup_fraction * total_steps)
    optimizer = AdamW(
        WarmupDecay(config.learning_rate, warmup_steps, total_steps),
        weight_decay=config.weight_decay,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
        global_clipnorm=config.clip_norm or None,
    )
    trainable = model.trainable_variables
    optimizer.exclude_from_weight_decay(var_list=[v for v in trainable if len(v.shape) < 2])
    if config.layer_decay < 1:
        depths = layer_depths(backbone)
        top = backbone.num_layers + 1
        for variable in trainable:
            below = top - depths.get(id(variable), top)
            optimizer.scale_learning_rate([variable], config.layer_decay**below)
    return optimizer


def layer_depths(backbone: CocoLMBackbone) -> dict[int, int]:
    """The depth of each of an encoder's variables, by its `id`: 1 is the lowest layer's."""
    # 0 is that of the embeddings and of the relative positions, which all layers share.
    depths = {id(variable): 0 for variable in backbone.variables}
    for number, block in enumerate(backbone.blocks, start=1):
        depths |= {id(variable): number for variable in block.variables}
    return depths

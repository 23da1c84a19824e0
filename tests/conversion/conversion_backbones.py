"""Backbones whose every weight is its own, for comparing them with what they are converted to."""

import random

import numpy as np

from cocolm_tf.modeling.backbone import CocoLMBackbone


def make_backbone(bins: int, positions: int) -> CocoLMBackbone:
    """A backbone with so many bins of relative positions and so many positions."""
    random.seed(0)
    backbone = CocoLMBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=40,
        max_sequence_length=positions,
        relative_position_bins=bins,
        relative_position_max_distance=12,
    )
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    return backbone

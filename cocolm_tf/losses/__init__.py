"""The losses: pure functions of tensors that XLA can compile.

They compute in float32 whatever the precision of their inputs, and return float32: scalars, or
what each row adds to them.
"""

from cocolm_tf.losses.contrastive import (
    contrastive_cosines,
    cosine_regression_loss,
    in_batch_negatives_loss,
    sequence_contrastive_loss,
)
from cocolm_tf.losses.language_modeling import (
    copy_loss,
    copy_or_label_cross_entropy,
    corrective_lm_loss,
    label_cross_entropy,
    masked_lm_loss,
    weighted_mean,
)

__all__ = [
    "contrastive_cosines",
    "copy_loss",
    "copy_or_label_cross_entropy",
    "corrective_lm_loss",
    "cosine_regression_loss",
    "in_batch_negatives_loss",
    "label_cross_entropy",
    "masked_lm_loss",
    "sequence_contrastive_loss",
    "weighted_mean",
]

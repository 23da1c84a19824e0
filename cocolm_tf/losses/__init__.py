"""The losses: pure functions of tensors that XLA can compile.

They compute in float32 whatever the precision of their inputs, and return float32: scalars, or
what each row adds to them.
"""

from cocolm_tf.losses.corrective_lm import (
    copy_loss,
    copy_or_label_cross_entropy,
    corrective_lm_loss,
)
from cocolm_tf.losses.embedding import cosine_regression_loss, in_batch_negatives_loss
from cocolm_tf.losses.masked_lm import label_cross_entropy, masked_lm_loss
from cocolm_tf.losses.sequence_contrastive import contrastive_cosines, sequence_contrastive_loss
from cocolm_tf.losses.weighted import weighted_mean

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

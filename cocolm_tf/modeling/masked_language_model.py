"""A masked language model: an encoder that predicts the tokens at chosen positions."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from cocolm_tf.losses import label_cross_entropy
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.heads import MaskedLMHead
from cocolm_tf.modeling.measures import top_tokens
from cocolm_tf.modeling.row_chunks import RowFunction


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
        self.head = MaskedLMHead(
            backbone.token_embedding,
            backbone.layer_norm_epsilon,
            backbone.initializer_range,
            dtype=backbone.dtype_policy,
            name="masked_lm_head",
        )
        self.head.build((None, backbone.hidden_dim))
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

    def _rows(
        self, inputs: dict[str, tf.Tensor], positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        states = self.backbone.states_at(inputs, positions, training)
        return tf.reshape(states, [-1, self.backbone.hidden_dim])


def gather_positions(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Gathers `x` [B, S] or [B, S, H] at `positions` [B, M]: [B * M] or [B * M, H]."""
    taken = tf.gather(x, positions, batch_dims=1)
    return tf.reshape(taken, tf.concat([[-1], tf.shape(x)[2:]], 0))


def score_labels(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy [N] float32 of labels, and the top-1 token [N] int32, for `map_logits`."""
    # `weights` [N] are 0 where the label does not matter.
    return label_cross_entropy(logits, labels, weights), top_tokens(logits)

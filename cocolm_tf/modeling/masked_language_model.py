"""A masked language model: an encoder that predicts the tokens at chosen positions."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from cocolm_tf.losses import label_cross_entropy
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.heads import MaskedLMHead
from cocolm_tf.modeling.measures import best_guesses
from cocolm_tf.modeling.row_chunks import RowFunction


class MaskedLanguageModel(keras.Model):
    """Predicts the tokens that `[MASK]` hides (paper, section 3.1).

    COCO-LM's auxiliary model, and BERT's and RoBERTa's whole one. Only the positions asked for
    meet the vocabulary matrix.

    Args:
        backbone: `CocoLMBackbone`.

    Call arguments:
        inputs: dict of `token_ids` [B, S] and `padding_mask` [B, S].
        positions: [B, M] int32. Where to predict.
        training: bool. Whether dropout acts.

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
        """Predicts."""
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
        """Reads something from the logits at each position: see `TiedProjection.map_logits`.

        Args:
            function: as there.
            inputs: as for a call.
            positions: [B, M] int32.
            rows: tensors [B * M, ...].
            chunk_rows: int, as there.
            training: bool. Whether dropout acts.

        Returns:
            Tensors [B * M].

        Example:
        ```python
        guess = lambda logits: (tf.argmax(logits, axis=-1),)
        model.map_logits(guess, inputs, tf.constant([[2, 5]]), chunk_rows=1)
        ```
        """
        x = self.head.transform(self._rows(inputs, positions, training))
        return self.head.projection.map_logits(function, x, rows, chunk_rows)

    def _rows(
        self, inputs: dict[str, tf.Tensor], positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        states = self.backbone.states_at(inputs, positions, training)
        return tf.reshape(states, [-1, self.backbone.hidden_dim])


def gather_positions(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Takes what stands at the given positions of each sequence.

    Args:
        x: [B, S] or [B, S, H].
        positions: [B, M] int32.

    Returns:
        [B * M] or [B * M, H]: the rows of all sequences, one after the other.

    Example:
    ```python
    gather_positions(tf.constant([[5, 6, 7]]), tf.constant([[2, 0]]))  # [7, 5]
    ```
    """
    taken = tf.gather(x, positions, batch_dims=1)
    return tf.reshape(taken, tf.concat([[-1], tf.shape(x)[2:]], 0))


def judge_labels(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """How well each row's logits predict its label, for `map_logits`.

    Args:
        logits: [N, V].
        labels: [N] int32.
        weights: [N], 0 where the label does not matter.

    Returns:
        The cross entropy [N] float32, and the best guess [N] int32.

    Example:
    ```python
    judge_labels(tf.zeros([2, 8]), tf.constant([3, 5]), tf.ones([2]))  # log(8) twice, and 0, 0
    ```
    """
    return label_cross_entropy(logits, labels, weights), best_guesses(logits)

"""An encoder for batches of texts of very different lengths."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.serving.loops import concatenated
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID

BUCKETS = (32, 64, 128, 256)
MAX_TOKENS_AT_ONCE = 4096

# Widths are rounded up to it: libraries keep what they prepared for a shape, and like even ones.
_WIDTH_STEP = 8
_ROWS = tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)


class Encoder:
    """Hidden states of texts, where short texts do not pay for long ones.

    A batch is cut into groups of texts of similar length, each padded to the longest of its own,
    and groups into parts that bound the memory of any batch. Padding changes no text's states.

    Args:
        backbone: `CocoLMBackbone`.
        buckets: the lengths in tokens, ascending, at which a new group begins.
        max_tokens_at_once: int. The most tokens, padding included, that are encoded at once; a
            text that is longer is still encoded whole.

    Example:
    ```python
    encoder = Encoder(backbone)
    encoder.first_states(tf.ragged.constant([[0, 5, 2], [0, 5, 6, 7, 2]]))  # [2, hidden_dim]
    ```
    """

    def __init__(
        self,
        backbone: CocoLMBackbone,
        buckets: Sequence[int] = BUCKETS,
        max_tokens_at_once: int = MAX_TOKENS_AT_ONCE,
    ) -> None:
        self.backbone = backbone
        limit = backbone.max_sequence_length
        self._widths = tf.constant([*(b for b in buckets if b < limit), limit], tf.int64)
        self._rows_at_once = tf.maximum(max_tokens_at_once // self._widths, 1)

    # A function, so that a SavedModel holds the encoder once for all the signatures that call it.
    @tf.function(input_signature=[_ROWS], autograph=False)
    def states(self, ids: tf.RaggedTensor) -> tf.RaggedTensor:
        """All hidden states.

        Args:
            ids: [B, (N)] int32, special tokens included, no row longer than the model.

        Returns:
            [B, (N), hidden_dim] float32.
        """

        def encode(token_ids: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
            inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
            return tf.boolean_mask(self.backbone(inputs, training=False), padding_mask)

        order, states = self._encoded(ids, encode)
        lengths = tf.gather(ids.row_lengths(), order)
        return tf.gather(tf.RaggedTensor.from_row_lengths(states, lengths), tf.argsort(order))

    @tf.function(input_signature=[_ROWS], autograph=False)
    def first_states(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """The hidden states of the first tokens, which stand for the whole texts.

        Args:
            ids: as for `states`.

        Returns:
            [B, hidden_dim] float32.
        """

        def encode(token_ids: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
            inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
            first = tf.zeros([tf.shape(token_ids)[0], 1], tf.int32)
            return self.backbone.states_at(inputs, first)[:, 0]

        order, states = self._encoded(ids, encode)
        return tf.gather(states, tf.argsort(order))

    def _encoded(
        self, ids: tf.RaggedTensor, encode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What `encode` gives for the rows from short to long, and that order of the rows."""
        order = tf.argsort(ids.row_lengths(), stable=True)
        ids = tf.gather(ids, order)
        starts, ends = self._parts(ids.row_lengths())

        def encode_part(number: tf.Tensor) -> tuple[tf.Tensor]:
            part = ids[starts[number] : ends[number]]
            longest = part.bounding_shape()[1]
            width = tf.minimum(-(-longest // _WIDTH_STEP) * _WIDTH_STEP, self._widths[-1])
            token_ids = part.to_tensor(PAD_TOKEN_ID, shape=tf.stack([-1, width]))
            states = encode(token_ids, tf.sequence_mask(part.row_lengths(), width))
            return (tf.cast(states, tf.float32),)

        spec = tf.TensorSpec([None, self.backbone.hidden_dim], tf.float32)
        (states,) = concatenated(encode_part, tf.size(starts), (spec,))
        return order, states

    def _parts(self, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Which rows, of ascending lengths, are encoded together: [P] first, and one after last."""
        group = tf.searchsorted(self._widths[:-1], lengths, out_type=tf.int64)
        row = tf.range(tf.size(lengths, tf.int64))
        place = row - tf.searchsorted(group, group, out_type=tf.int64)
        is_start = tf.equal(place % tf.gather(self._rows_at_once, group), 0)
        starts = tf.boolean_mask(row, is_start)
        return starts, tf.concat([starts, [tf.size(lengths, tf.int64)]], 0)[1:]

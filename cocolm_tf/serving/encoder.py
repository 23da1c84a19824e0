"""An encoder for batches of texts of very different lengths.

A batch is cut into groups of texts of similar length, since attention is computed on all of them as
if they were as long as the longest; and groups into parts that bound the memory that a batch of any
size takes.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from cocolm_tf.serving.inference import InferenceEncoder
from cocolm_tf.tokenization.segment_packing import overlapping_windows, pack_ragged

BUCKETS = (32, 64, 128, 256)
MAX_TOKENS_AT_ONCE = 4096

_ROWS = tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)


class Encoder:
    """Hidden states of texts, where short texts do not cost what long ones do."""

    # `buckets` are the ascending lengths, in tokens, at which a new group begins. At most
    # `max_tokens_at_once` tokens, attention's padding included, are encoded together; a text that
    # is longer is still encoded whole.

    def __init__(
        self,
        model: InferenceEncoder,
        buckets: Sequence[int] = BUCKETS,
        max_tokens_at_once: int = MAX_TOKENS_AT_ONCE,
    ) -> None:
        self.model = model
        limit = model.max_sequence_length
        self._widths = tf.constant([*(b for b in buckets if b < limit), limit], tf.int64)
        self._rows_at_once = tf.maximum(max_tokens_at_once // self._widths, 1)

    # A function, so that a SavedModel holds the encoder once for all the signatures that call it.
    @tf.function(input_signature=[_ROWS], autograph=False)
    def states(self, ids: tf.RaggedTensor) -> tf.RaggedTensor:
        """All hidden states [B, (N), H] float32 of ids [B, (N)], special tokens included."""
        order, states = self._encoded(ids, first_only=False)
        lengths = tf.gather(ids.row_lengths(), order)
        return tf.gather(tf.RaggedTensor.from_row_lengths(states, lengths), tf.argsort(order))

    @tf.function(input_signature=[_ROWS], autograph=False)
    def first_states(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """The hidden states of the first tokens, which stand for the texts: [B, H] float32."""
        order, states = self._encoded(ids, first_only=True)
        return tf.gather(states, tf.argsort(order))

    def states_in_windows(self, ids: tf.RaggedTensor, limit: int, overlap: int) -> tf.Tensor:
        """The hidden states of texts of any length, read in overlapping windows: [T, H] float32."""
        # `ids` [B, (N)] are without special tokens; `limit` is the longest row with them; `overlap`
        # is how many tokens two windows of a text share. T tokens are of all texts, one after the
        # other.
        windows = overlapping_windows(ids.row_lengths(), limit - 2, overlap)
        read = tf.ragged.map_flat_values(tf.gather, ids.flat_values, windows.tokens)
        states = self.states(pack_ragged(read, sequence_length=limit))
        first = states.row_starts() + 1 + windows.first_wanted
        wanted = tf.ragged.range(first, first + windows.num_wanted).flat_values
        return tf.gather(states.flat_values, wanted)

    def _encoded(self, ids: tf.RaggedTensor, first_only: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The states of the rows from short to long, and that order of the rows."""
        order = tf.argsort(ids.row_lengths(), stable=True)
        ids = tf.gather(ids, order)
        starts, ends = self._parts(ids.row_lengths())

        def encode_part(number: tf.Tensor) -> tuple[tf.Tensor]:
            return (self.model(ids[starts[number] : ends[number]], first_only),)

        spec = tf.TensorSpec([None, self.model.hidden_dim], tf.float32)
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


def concatenated(
    function: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    count: tf.Tensor,
    outputs: tuple[tf.TensorSpec, ...],
) -> tuple[tf.Tensor, ...]:
    """Concatenates the results of a function of 0, 1, ... `count` - 1 along their first axis."""
    # The graph holds the function once, however often it runs, and one run's memory is free for the
    # next. `outputs` are the specs of its results, with first axis None.
    collected = tuple(
        tf.TensorArray(spec.dtype, size=count, element_shape=spec.shape, infer_shape=False)
        for spec in outputs
    )

    def step(
        number: tf.Tensor, collected: tuple[tf.TensorArray, ...]
    ) -> tuple[tf.Tensor, tuple[tf.TensorArray, ...]]:
        results = function(number)
        written = zip(collected, results, strict=True)
        return number + 1, tuple(array.write(number, result) for array, result in written)

    _, collected = tf.while_loop(
        lambda number, _: number < count,
        step,
        (tf.constant(0), collected),
        parallel_iterations=1,
    )
    return tuple(array.concat() for array in collected)

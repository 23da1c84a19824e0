"""The encoder as a server runs it, for batches of texts of very different lengths.

`InferenceEncoder` is `CocoLMBackbone`'s mathematics without dropout, gradients and Keras, laid out
for a few texts of any length. Nearly everything is computed token by token, on the real tokens of
all texts one after the other and no padding. The matrices of one product are stored as one. And
each step is written in the way that TensorFlow, when it loads a SavedModel, makes the fastest
operations of: short texts spend a third of their time outside of products.

`Encoder` cuts a batch into groups of texts of similar length, since attention is computed on all of
them as if they were as long as the longest; and groups into parts that bound the memory that a
batch of any size takes.
"""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.transformer import TransformerBlock
from cocolm_tf.tokenization.segment_packing import overlapping_windows, pack_ragged

BUCKETS = (32, 64, 128, 256)

# The attention logit of padding.
_EXCLUDED = -1e9
_ROWS = tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)


class InferenceEncoder(tf.Module):
    """A `CocoLMBackbone` for serving, whose weights are copied."""

    # Matrices are stored and multiplied in `precision`; the other weights, the softmax, LayerNorm
    # and the result are float32. With `int8`, matrices are stored in 8 bits, with a scale for each
    # of their outputs and of the tokens, and converted back when used: a quarter of the memory.

    def __init__(
        self, backbone: CocoLMBackbone, precision: str = "float32", int8: bool = False
    ) -> None:
        super().__init__(name="encoder")
        if backbone.embedding_dim != backbone.hidden_dim:
            raise ValueError("embedding_dim must be hidden_dim, as in every main model.")
        self.dtype = tf.as_dtype(precision)
        self.hidden_dim = backbone.hidden_dim
        self.max_sequence_length = backbone.max_sequence_length
        self._num_heads = backbone.num_heads
        self._tokens = _Matrix(backbone.token_embedding.embeddings, self.dtype, int8, axis=1)
        self._positions = tf.Variable(backbone.position_embedding.position_embeddings)
        self._embeddings_norm = _Norm(backbone.get_layer("embeddings_norm"))
        bias = backbone.get_layer("attention_bias")
        # By the signed distance of two tokens, [2 * max_sequence_length - 1, heads].
        self._relative = tf.Variable(tf.gather(bias.table, bias.buckets)) if bias.bins else None
        self._blocks = [
            _Block(block, self._num_heads, self.dtype, int8) for block in backbone.blocks
        ]

    def __call__(self, ids: tf.RaggedTensor, first_only: bool = False) -> tf.Tensor:
        """Encodes ids [B, (N)]: states [T, H] of all T tokens, or [B, H] of the first ones."""
        # No row is longer than the model; special tokens are included.
        layout = _Layout(ids, self._num_heads)
        positions = tf.gather(self._positions, layout.positions)
        x = self._embeddings_norm(self._tokens.rows(ids.flat_values), positions)
        bias = self._attention_bias(layout)
        for block in self._blocks[:-1]:
            x = block(x, bias, layout)
        return self._blocks[-1](x, bias, layout, first_only)

    def token_logits(self, states: tf.Tensor) -> tf.Tensor:
        """States [N, H] times word embeddings, [N, V], which a tied LM head begins with."""
        return tf.cast(self._tokens.product(states, transpose=True), tf.float32)

    def _attention_bias(self, layout: "_Layout") -> tf.Tensor:
        """What is added to the attention logits: [B, 1 or heads, 1 or S, S] float32."""
        bias = tf.where(layout.is_real, 0.0, _EXCLUDED)[:, tf.newaxis, tf.newaxis, :]
        if self._relative is None:
            return bias
        position = tf.range(layout.width)
        distance = position[tf.newaxis, :] - position[:, tf.newaxis]
        relative = tf.gather(self._relative, distance + (self.max_sequence_length - 1))
        return bias + tf.transpose(relative, [2, 0, 1])[tf.newaxis]


class _Layout:
    """The places of T tokens, stored one after the other, in padded batches by attention head."""

    # `width` is S, `positions` [T] are places in rows, `is_real` is [B, S], `first` [B] are the
    # tokens that begin rows.

    def __init__(self, ids: tf.RaggedTensor, num_heads: int) -> None:
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        batch, self.width = tf.size(lengths), tf.reduce_max(lengths)
        self.positions = tf.ragged.range(lengths).flat_values
        self.is_real = tf.sequence_mask(lengths, self.width)
        self.first = ids.row_starts()
        self._num_heads = num_heads
        self._shape = [batch, num_heads, self.width]
        self._size = batch * num_heads * self.width
        rows = tf.cast(ids.value_rowids(), tf.int32)
        heads = rows[:, tf.newaxis] * num_heads + tf.range(num_heads)
        # Of each token's heads in [B, heads, S], and in two of these.
        self._places = heads * self.width + self.positions[:, tf.newaxis]
        self._places_of_two = tf.concat([self._places, self._places + self._size], axis=1)

    def by_head(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, H] to [B, heads, S, H / heads], zeros at padding."""
        return self._scattered(rows, self._places, [])

    def two_by_head(self, rows: tf.Tensor) -> list[tf.Tensor]:
        """[T, 2H] to two of [B, heads, S, H / heads], zeros at padding."""
        return tf.unstack(self._scattered(rows, self._places_of_two, [2]))

    def together(self, by_head: tf.Tensor) -> tf.Tensor:
        """[B, heads, S, H / heads] to [T, H]."""
        head_dim = by_head.shape[3]
        rows = tf.gather(tf.reshape(by_head, [-1, head_dim]), self._places)
        return tf.reshape(rows, [-1, self._num_heads * head_dim])

    def _scattered(self, rows: tf.Tensor, places: tf.Tensor, parts: list[int]) -> tf.Tensor:
        # Padding and the transposition of tokens and heads, in one operation for both.
        head_dim = rows.shape[1] // places.shape[1]
        values = tf.reshape(rows, [-1, head_dim])
        size = tf.stack([math.prod(parts) * self._size, head_dim])
        dense = tf.scatter_nd(tf.reshape(places, [-1, 1]), values, size)
        return tf.reshape(dense, tf.stack([*parts, *self._shape, head_dim]))


class _Block(tf.Module):
    """A `TransformerBlock`."""

    def __init__(
        self, block: TransformerBlock, num_heads: int, dtype: tf.DType, int8: bool
    ) -> None:
        super().__init__()
        self._num_heads = num_heads
        self._query = _Dense([block.query], dtype, int8)
        self._key_value = _Dense([block.key, block.value], dtype, int8)
        self._attention_output = _Dense([block.attention_output], dtype, int8)
        self._attention_norm = _Norm(block.attention_norm)
        self._intermediate = _Dense([block.intermediate], dtype, int8)
        self._output = _Dense([block.output_dense], dtype, int8)
        self._output_norm = _Norm(block.output_norm)

    def __call__(
        self, x: tf.Tensor, bias: tf.Tensor, layout: _Layout, first_only: bool = False
    ) -> tf.Tensor:
        key, value = layout.two_by_head(self._key_value(x))
        if first_only:
            x = tf.gather(x, layout.first)
            query = tf.reshape(self._query(x), [-1, self._num_heads, 1, key.shape[3]])
            attended = self._attend(query, key, value, bias[:, :, :1])
            attended = tf.reshape(attended, [-1, x.shape[1]])
        else:
            query = layout.by_head(self._query(x))
            attended = layout.together(self._attend(query, key, value, bias))
        x = self._attention_norm(x, self._attention_output(attended))
        hidden = tf.nn.gelu(self._intermediate(x))
        return self._output_norm(x, self._output(hidden))

    @staticmethod
    def _attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """[B, heads, Q, D] and twice [B, heads, S, D] to [B, heads, Q, D]."""
        logits = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
        probabilities = tf.nn.softmax(logits * (1 / math.sqrt(key.shape[3])) + bias)
        return tf.matmul(tf.cast(probabilities, value.dtype), value)


class _Dense(tf.Module):
    """Dense layers of one input, side by side."""

    def __init__(self, layers: Sequence[keras.layers.Dense], dtype: tf.DType, int8: bool) -> None:
        super().__init__()
        kernel = tf.concat([tf.convert_to_tensor(layer.kernel) for layer in layers], axis=1)
        bias = tf.concat([tf.convert_to_tensor(layer.bias) for layer in layers], axis=0)
        self._kernel = _Matrix(kernel, dtype, int8, axis=0)
        self._bias = tf.Variable(tf.cast(bias, dtype))

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(self._kernel.product(rows), self._bias)


class _Matrix(tf.Module):
    """A matrix of 32, 16 or 8 bits a value; `axis` is along which values share their scale."""

    def __init__(self, matrix: tf.Tensor, dtype: tf.DType, int8: bool, axis: int) -> None:
        super().__init__()
        self._dtype = dtype
        self._axis = axis
        self._scale = None
        matrix = tf.cast(tf.convert_to_tensor(matrix), tf.float32)
        if int8:
            matrix, scale = keras.quantizers.abs_max_quantize(matrix, axis=axis, to_numpy=True)
            # Keras divides by the scale.
            self._scale = tf.Variable(tf.cast(1 / tf.squeeze(scale, axis), dtype))
        self._values = tf.Variable(matrix if int8 else tf.cast(matrix, dtype))

    def product(self, rows: tf.Tensor, transpose: bool = False) -> tf.Tensor:
        """[N, in] to [N, out]; `transpose` where the matrix is [out, in]."""
        values = tf.cast(self._values, self._dtype)
        product = tf.matmul(tf.cast(rows, self._dtype), values, transpose_b=transpose)
        return product if self._scale is None else product * self._scale

    def rows(self, numbers: tf.Tensor) -> tf.Tensor:
        """The rows with the given numbers, float32."""
        rows = tf.cast(tf.gather(self._values, numbers), tf.float32)
        if self._scale is None:
            return rows
        return rows * tf.cast(tf.gather(self._scale, numbers), tf.float32)[:, tf.newaxis]


class _Norm(tf.Module):
    """LayerNorm of a sum, in float32."""

    def __init__(self, layer: keras.layers.LayerNormalization) -> None:
        super().__init__()
        self._gamma = tf.Variable(tf.cast(layer.gamma, tf.float32))
        self._beta = tf.Variable(tf.cast(layer.beta, tf.float32))
        self._epsilon = layer.epsilon

    def __call__(self, x: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
        x += tf.cast(update, tf.float32)
        # With constants and axis 1, TensorFlow would make oneDNN's one operation of it on CPUs,
        # which takes five times as long as all of these for a short text.
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self._beta, self._gamma, self._epsilon)


class Encoder:
    """Hidden states of texts, where short texts do not cost what long ones do."""

    # `buckets` are the ascending lengths, in tokens, at which a new group begins. At most
    # `max_tokens_at_once` tokens, attention's padding included, are encoded together; a text that
    # is longer is still encoded whole.

    def __init__(
        self,
        model: InferenceEncoder,
        buckets: Sequence[int] = BUCKETS,
        max_tokens_at_once: int = 4096,
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
        states = tf.RaggedTensor.from_row_lengths(states, lengths, validate=False)
        return tf.gather(states, tf.argsort(order))

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

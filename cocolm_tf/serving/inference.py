"""The encoder's forward pass as a server runs it: no dropout, no gradients, no Keras.

The same mathematics as `CocoLMBackbone`, laid out for batches of a few texts of any length. Nearly
everything is computed token by token, on the real tokens of all texts one after the other and no
padding. The matrices of one product are stored as one. And each step is written in the way that
TensorFlow, when it loads a SavedModel, fuses into the fewest operations: short texts spend most of
their time between operations.
"""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.transformer import TransformerBlock

PRECISIONS = ("float32", "bfloat16")

# The attention logit of padding.
_EXCLUDED = -1e9


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
        self.vocabulary_size = backbone.vocabulary_size
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
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self._beta, self._gamma, self._epsilon)

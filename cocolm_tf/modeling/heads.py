"""The layers that turn hidden states into predictions."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.ops.elementwise import add_bias, exact_gelu
from cocolm_tf.ops.row_chunks import RowFunction, map_row_chunks


def build_head(
    head: type[keras.layers.Layer], backbone: CocoLMBackbone, *args: Any, name: str
) -> keras.layers.Layer:
    """A head with its weights, of the width and the precision of a backbone."""
    layer = head(*args, dtype=backbone.dtype_policy, name=name)
    layer.build((None, backbone.hidden_dim))
    return layer


class TiedProjection(keras.layers.Layer):
    """Vocabulary logits by the transposed word embeddings and a bias: [N, E] to [N, V]."""

    def __init__(self, token_embedding: keras.layers.ReversibleEmbedding, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.token_embedding = token_embedding

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        self.bias = self.add_weight(
            name="bias", shape=(self.token_embedding.input_dim,), initializer="zeros"
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return _logits(x, *self._weights(x.dtype))

    def map_logits(
        self,
        function: RowFunction,
        x: tf.Tensor,
        rows: Sequence[tf.Tensor] = (),
        chunk_rows: int = 0,
    ) -> tuple[tf.Tensor, ...]:
        """Computes [N] values of rows of logits, `chunk_rows` of which exist at a time."""
        # `function` takes logits [n, V] and the same n rows of each tensor of `rows`, and returns
        # tensors [n]. With `chunk_rows` logits are computed a second time for the gradient; with 0
        # once, all at once.
        weights, count = self._weights(x.dtype), x.shape[0]
        if not chunk_rows or (count is not None and count <= chunk_rows):
            return function(_logits(x, *weights), *rows)

        def of_chunk(x: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *rest, matrix, bias = others
            return function(_logits(x, matrix, bias), *rest)

        return map_row_chunks(of_chunk, [x, *rows], weights, chunk_rows)

    def _weights(self, dtype: tf.DType) -> list[tf.Tensor]:
        # Not `token_embedding(x, reverse=True)`: an embedding does not autocast, so the largest
        # product of the model would be float32 in mixed precision.
        variables = self.token_embedding.embeddings, self.bias
        return [tf.cast(tf.convert_to_tensor(variable), dtype) for variable in variables]


def _logits(x: tf.Tensor, matrix: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    return add_bias(tf.matmul(x, matrix, transpose_b=True), bias)


class Transform(keras.layers.Layer):
    """Dense layer, GELU and LayerNorm before a prediction or a comparison: [..., units]."""

    def __init__(
        self,
        units: int,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        initializer = keras.initializers.RandomNormal(stddev=initializer_range)
        self.dense = keras.layers.Dense(
            units, kernel_initializer=initializer, dtype=self.dtype_policy, name="dense"
        )
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="norm"
        )

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        self.dense.build(x_shape)
        self.norm.build((*x_shape[:-1], self.dense.units))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = (tf.convert_to_tensor(v) for v in (self.dense.kernel, self.dense.bias))
        return self.norm(exact_gelu(tf.matmul(x, kernel), bias))


class MaskedLMHead(keras.layers.Layer):
    """BERT's masked language modeling head: states [N, H] to vocabulary logits [N, V]."""

    def __init__(
        self,
        token_embedding: keras.layers.ReversibleEmbedding,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.transform = Transform(
            token_embedding.output_dim,
            layer_norm_epsilon,
            initializer_range,
            dtype=self.dtype_policy,
        )
        self.projection = TiedProjection(token_embedding, dtype=self.dtype_policy)

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        self.transform.build(x_shape)
        self.projection.build((None, self.transform.dense.units))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.projection(self.transform(x))


class CopyHead(keras.layers.Layer):
    """Logits that tokens are original, w_copy^T h (section 3.3): [B, S, H] to [B, S]."""

    def __init__(
        self, initializer_range: float = 0.02, use_bias: bool = False, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.initializer_range = initializer_range
        self.use_bias = use_bias
        self.bias = None

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        initializer = keras.initializers.RandomNormal(stddev=self.initializer_range)
        self.kernel = self.add_weight(name="kernel", shape=(x_shape[-1],), initializer=initializer)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(1,), initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        logits = tf.linalg.matvec(x, tf.convert_to_tensor(self.kernel))
        return logits if self.bias is None else logits + tf.convert_to_tensor(self.bias)

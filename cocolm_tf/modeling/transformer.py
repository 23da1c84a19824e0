"""The Transformer encoder block of BERT, with a bias added to its attention logits."""

import functools

import keras
import tensorflow as tf

from cocolm_tf.modeling.dropout import Dropout, dropout
from cocolm_tf.modeling.gelu import exact_gelu


class TransformerBlock(keras.layers.Layer):
    """Self-attention and a feed-forward network, LayerNorm after each residual sum.

    Args:
        num_heads: int. Attention heads; divides the width of the input.
        intermediate_dim: int. Width of the feed-forward network's hidden layer.
        dropout: float. Rate on the attention probabilities and on both sublayers' outputs.
        seed_generator: `keras.random.SeedGenerator` that dropout draws from.
        layer_norm_epsilon: float.
        initializer_range: float. Standard deviation that the matrices start with.
        rematerialize: bool. Recompute the block in the backward pass instead of keeping its
            activations: less memory, about a third more time.

    Call arguments:
        x: [B, S, H].
        attention_bias: [B, heads or 1, S or 1, S], added to the logits.
        training: bool. Whether dropout acts.

    Returns:
        [B, S, H].

    Example:
    ```python
    block = TransformerBlock(2, 16, dropout=0.1, seed_generator=keras.random.SeedGenerator(0))
    block(tf.ones([3, 5, 8]), tf.zeros([3, 1, 1, 5]))
    ```
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float,
        seed_generator: keras.random.SeedGenerator,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        rematerialize: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.rematerialize = rematerialize
        self.dropout = Dropout(dropout, seed_generator, dtype=self.dtype_policy, name="dropout")

    def build(self, x_shape: tuple[int | None, ...], attention_bias_shape: object = None) -> None:
        """Creates the sublayers."""
        width = x_shape[-1]
        if width % self.num_heads:
            raise ValueError(f"hidden_dim {width} is not a multiple of {self.num_heads} heads.")
        self.dropout.build(x_shape)
        self.query = self._dense("query", width, width)
        self.key = self._dense("key", width, width)
        self.value = self._dense("value", width, width)
        self.attention_output = self._dense("attention_output", width, width)
        self.attention_norm = self._norm("attention_norm", width)
        self.intermediate = self._dense("intermediate", width, self.intermediate_dim)
        self.output_dense = self._dense("output_dense", self.intermediate_dim, width)
        self.output_norm = self._norm("output_norm", width)

    def call(self, x: tf.Tensor, attention_bias: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Transforms `x`."""
        # Drawn before the transformation, so that a second run of it drops the same elements.
        seeds = [self.dropout.draw(training) for _ in range(3)]
        transform = functools.partial(self._transform, seeds=seeds)
        if self.rematerialize and training:
            transform = keras.remat(transform)
        return transform(x, attention_bias)

    def _transform(
        self, x: tf.Tensor, attention_bias: tf.Tensor, seeds: list[tf.Tensor | None]
    ) -> tf.Tensor:
        probability_seed, attention_seed, output_seed = seeds
        attended = self._attend(x, attention_bias, probability_seed)
        attended = dropout(self.attention_output(attended), self.dropout.rate, attention_seed)
        x = self.attention_norm(x + attended)
        transformed = self.output_dense(exact_gelu(self.intermediate(x)))
        transformed = dropout(transformed, self.dropout.rate, output_seed)
        return self.output_norm(x + transformed)

    def _attend(self, x: tf.Tensor, attention_bias: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        head_dim = x.shape[-1] // self.num_heads
        query = self._split_heads(self.query(x) * head_dim**-0.5)
        key, value = self._split_heads(self.key(x)), self._split_heads(self.value(x))
        logits = tf.matmul(query, key, transpose_b=True) + attention_bias
        # Sums of exponentials need more than a half-precision mantissa.
        probabilities = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), x.dtype)
        probabilities = dropout(probabilities, self.dropout.rate, seed)
        merged = tf.transpose(tf.matmul(probabilities, value), [0, 2, 1, 3])
        return tf.reshape(merged, tf.shape(x))

    def _split_heads(self, x: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(x)
        head_dim = x.shape[-1] // self.num_heads
        x = tf.reshape(x, [shape[0], shape[1], self.num_heads, head_dim])
        return tf.transpose(x, [0, 2, 1, 3])

    def _dense(self, name: str, inputs: int, units: int) -> keras.layers.Dense:
        initializer = keras.initializers.RandomNormal(stddev=self.initializer_range)
        layer = keras.layers.Dense(
            units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )
        layer.build((None, None, inputs))
        return layer

    def _norm(self, name: str, width: int) -> keras.layers.LayerNormalization:
        layer = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name
        )
        layer.build((None, None, width))
        return layer

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], attention_bias_shape: object = None
    ) -> tuple[int | None, ...]:
        """The shape of `x`, for the functional graph."""
        return x_shape

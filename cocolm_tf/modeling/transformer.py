"""The Transformer encoder block of BERT, with biases added to its attention logits."""

import functools

import keras
import tensorflow as tf

from cocolm_tf.modeling.attention import attention
from cocolm_tf.modeling.bias import add_bias
from cocolm_tf.modeling.dropout import Dropout
from cocolm_tf.modeling.gelu import exact_gelu
from cocolm_tf.modeling.residual_norm import ResidualNorm

REMATERIALIZE = ("none", "attention", "block")
RESIDUAL_INITS = ("none", "layer", "total")
# What an auxiliary model may share of the main model's embeddings; see `CocoLMBackbone`.
SHARED_EMBEDDINGS = ("token", "token_position", "token_position_norm")


def residual_scale(init: str, layer: int, num_layers: int) -> float:
    """The factor on initial matrices of a layer, from 1, that write to the residual sum."""
    if init not in RESIDUAL_INITS:
        raise ValueError(f"residual_init is one of {', '.join(RESIDUAL_INITS)}, not {init!r}.")
    sums = {"none": 1, "layer": 2 * layer, "total": 2 * num_layers}
    return sums[init] ** -0.5


def rematerialize_mode(value: str | bool) -> str:
    """One of `REMATERIALIZE`, also from the booleans of earlier configurations and presets."""
    if isinstance(value, bool):
        return "block" if value else "none"
    if value not in REMATERIALIZE:
        raise ValueError(f"rematerialize is one of {', '.join(REMATERIALIZE)}, not {value!r}.")
    return value


class TransformerBlock(keras.layers.Layer):
    """Self-attention and a feed-forward network, with LayerNorm after each residual sum."""

    # Called with `x` [B, S, H] and the results of `AttentionBias`: `padding` [B, 1, 1, S] and
    # `relative` [1, heads, S, S] or [1, 1, 1, 1]. With `positions` [B, M] the result is [B, M, H],
    # computed there alone; the rest of the sequence is then only attended to. For `rematerialize`
    # and `attention` see `CocoLMBackbone`; `residual_scale` multiplies the initial range of the two
    # matrices whose products are added to the input.

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float,
        seed_generator: keras.random.SeedGenerator,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        rematerialize: str | bool = "none",
        attention: str = "xla",
        residual_scale: float = 1.0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.attention = attention
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.residual_scale = residual_scale
        self.rematerialize = rematerialize_mode(rematerialize)
        self.dropout = Dropout(dropout, seed_generator, dtype=self.dtype_policy, name="dropout")

    def build(self, x_shape: tuple[int | None, ...], *_: object) -> None:
        width = x_shape[-1]
        if width % self.num_heads:
            raise ValueError(f"hidden_dim {width} is not a multiple of {self.num_heads} heads.")
        self.dropout.build(x_shape)
        self.query = self._dense("query", width, width)
        self.key = self._dense("key", width, width)
        self.value = self._dense("value", width, width)
        scale = self.residual_scale
        self.attention_output = self._dense("attention_output", width, width, scale)
        self.attention_norm = self._norm("attention_norm", width)
        self.intermediate = self._dense("intermediate", width, self.intermediate_dim)
        self.output_dense = self._dense("output_dense", self.intermediate_dim, width, scale)
        self.output_norm = self._norm("output_norm", width)

    def call(
        self,
        x: tf.Tensor,
        padding: tf.Tensor,
        relative: tf.Tensor,
        positions: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        # Drawn before the transformation, so that a second run of it drops the same elements.
        seeds = [self.dropout.draw(training) for _ in range(3)]
        transform = functools.partial(self._transform, positions=positions, seeds=seeds)
        if self.rematerialize == "block" and training:
            transform = keras.remat(transform)
        return transform(x, padding, relative)

    def _transform(
        self,
        x: tf.Tensor,
        padding: tf.Tensor,
        relative: tf.Tensor,
        positions: tf.Tensor | None,
        seeds: list[tf.Tensor | None],
    ) -> tf.Tensor:
        probability_seed, attention_seed, output_seed = seeds
        queried, everything = x, _as_rows(x)
        if positions is not None:
            queried = tf.gather(x, positions, batch_dims=1)
            if relative.shape[2] != 1:
                relative = tf.gather(relative[0], positions, axis=1)  # [heads, B, M, S]
                relative = tf.transpose(relative, [1, 0, 2, 3])
        # Each bias is added by what reads the product: as a part of it, that costs nothing.
        rows = everything if queried is x else _as_rows(queried)
        attended = self._attend(rows, everything, padding, relative, probability_seed)
        update, bias = _product(attended, self.attention_output)
        rows = self.attention_norm(rows, update, bias, seed=attention_seed)
        hidden = exact_gelu(*_product(rows, self.intermediate))
        update, bias = _product(hidden, self.output_dense)
        rows = self.output_norm(rows, update, bias, seed=output_seed)
        return tf.reshape(rows, tf.shape(queried))

    def _attend(
        self,
        queried: tf.Tensor,
        x: tf.Tensor,
        padding: tf.Tensor,
        relative: tf.Tensor,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        batch = tf.shape(padding)[0]
        if queried is x:
            query, key, value = self._heads(batch, x, self.query, self.key, self.value)
        else:
            (query,) = self._heads(batch, queried, self.query)
            key, value = self._heads(batch, x, self.key, self.value)
        rate, kernel = self.dropout.rate, self.attention
        recompute = self.rematerialize == "attention"
        attended = attention(
            query, key, value, padding, relative, rate, seed, kernel, self.path, recompute
        )
        return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), tf.shape(queried))

    def _heads(
        self, batch: tf.Tensor, rows: tf.Tensor, *layers: keras.layers.Dense
    ) -> list[tf.Tensor]:
        """Applies layers to rows [B * S, H]: [B, heads, S, H / heads] of each."""
        if self.attention == "cudnn" and len(layers) > 1:
            # Separate products, whose results cuDNN reads as they are; joint ones would be copied.
            return [part for layer in layers for part in self._heads(batch, rows, layer)]
        x = add_bias(*_product(rows, *layers))
        head_dim = rows.shape[-1] // self.num_heads
        x = tf.reshape(x, [batch, -1, len(layers), self.num_heads, head_dim])
        return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))

    def _dense(self, name: str, inputs: int, units: int, scale: float = 1.0) -> keras.layers.Dense:
        initializer = keras.initializers.RandomNormal(stddev=scale * self.initializer_range)
        layer = keras.layers.Dense(
            units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )
        layer.build((None, inputs))
        return layer

    def _norm(self, name: str, width: int) -> ResidualNorm:
        layer = ResidualNorm(
            self.dropout.rate,
            epsilon=self.layer_norm_epsilon,
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((None, width))
        return layer

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], *_: object
    ) -> tuple[int | None, ...]:
        """The shape of `x`, for the functional graph."""
        return x_shape


def _product(rows: tf.Tensor, *layers: keras.layers.Dense) -> tuple[tf.Tensor, tf.Tensor]:
    """One product for all layers, side by side; and their biases, not yet added."""
    # The second run of a rematerialized block is outside of Keras's casting.
    kernels, biases = (
        [tf.cast(tf.convert_to_tensor(getattr(layer, name)), rows.dtype) for layer in layers]
        for name in ("kernel", "bias")
    )
    if len(layers) == 1:
        return tf.matmul(rows, kernels[0]), biases[0]
    return tf.matmul(rows, tf.concat(kernels, axis=1)), tf.concat(biases, axis=0)


def _as_rows(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [-1, x.shape[-1]])

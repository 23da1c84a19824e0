"""The layers of the encoder: attention biases, the Transformer block, dropout, LayerNorm.

The block is BERT's, with biases added to its attention logits. Its mathematics is in
`cocolm_tf.ops`.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf.ops.attention import attention
from cocolm_tf.ops.elementwise import add_bias, dropout, exact_gelu, residual_norm
from cocolm_tf.ops.fusion import Gradient, barrier, shape_of

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


class Dropout(keras.layers.Layer):
    """Dropout by seeds from a `keras.random.SeedGenerator`, which layers may share."""

    # The seed follows from the state of `seed_generator` alone: a training step that sets this
    # state makes every mask a function of what it set.

    def __init__(
        self, rate: float, seed_generator: keras.random.SeedGenerator, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"A dropout rate lies in [0, 1), not {rate}.")
        self.rate = rate
        self.seed_generator = seed_generator

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return dropout(x, self.rate, self.draw(training))

    def draw(self, training: bool) -> tf.Tensor | None:
        """The next seed, [2], or None where nothing will be dropped."""
        # Drawing apart from applying lets a rematerialized block drop the same elements twice.
        return self.seed_generator.next() if training and self.rate else None


class ResidualNorm(keras.layers.LayerNormalization):
    """`residual_norm` with Keras's weights: LayerNorm of `x + dropout(update + bias)`."""

    def __init__(self, rate: float = 0.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def build(self, x_shape: tuple[int | None, ...], *_: object, **__: object) -> None:
        super().build(x_shape)

    def call(
        self,
        x: tf.Tensor,
        update: tf.Tensor,
        bias: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        gamma, beta = (tf.convert_to_tensor(v) for v in (self.gamma, self.beta))
        return residual_norm(x, update, bias, gamma, beta, self.epsilon, self.rate, seed)

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], *_: object, **__: object
    ) -> tuple[int | None, ...]:
        """The shape of `x`, for the functional graph."""
        return x_shape


# --- Relative positions ---


class AttentionBias(keras.layers.Layer):
    """What is added to attention logits: the relative position bias, and the padding mask."""

    # One table of `bins` x `num_heads` (0 bins for none) serves every layer of an encoder (paper,
    # section 4), so this is computed once a pass and handed to each block. From distance
    # `max_distance` on all pairs share a row. `neighbor_bias` is the initial bias of each head for
    # one neighbor; the heads' neighbors are at the distances -1, +1, -2, +2 and so on.
    # Called with `padding_mask` [B, S], it returns in the compute dtype the padding mask [B, 1, 1,
    # S], very negative at padding, and the bias [1, num_heads, S, S], or [1, 1, 1, 1] of zeros
    # without table.

    def __init__(
        self,
        num_heads: int,
        bins: int,
        max_distance: int,
        max_positions: int,
        neighbor_bias: float = 0.0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.bins = bins
        self.max_positions = max_positions
        self.neighbor_bias = neighbor_bias
        self.buckets = (
            relative_position_buckets(bins, max_distance, max_positions) if bins else None
        )

    def build(self, padding_mask_shape: tuple[int | None, ...]) -> None:
        if self.bins:
            self.table = self.add_weight(
                name="table",
                shape=(self.bins, self.num_heads),
                initializer=self._initial_table,
            )

    def _initial_table(self, shape: tuple[int, int], dtype: str) -> tf.Tensor:
        table = keras.initializers.RandomNormal(stddev=0.02)(shape, dtype)
        neighbors = np.zeros(shape)
        for head in range(self.num_heads):
            distance = (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
            if abs(distance) < self.max_positions:
                neighbors[self.buckets[self.max_positions - 1 + distance], head] = 1
        return table + self.neighbor_bias * tf.cast(neighbors, dtype)

    def call(self, padding_mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # float16 has no -1e9; either value leaves padding no weight after the softmax.
        excluded = -3e4 if self.compute_dtype == "float16" else -1e9
        is_padding = tf.cast(tf.equal(tf.cast(padding_mask, tf.int32), 0), self.compute_dtype)
        padding = (is_padding * excluded)[:, tf.newaxis, tf.newaxis, :]
        if not self.bins:
            return padding, tf.zeros([1, 1, 1, 1], self.compute_dtype)
        length = padding_mask.shape[1] or tf.shape(padding_mask)[1]
        by_distance = tf.gather(tf.convert_to_tensor(self.table), self.buckets)
        furthest = self.max_positions - length
        by_distance = by_distance[furthest : furthest + 2 * length - 1]
        relative = _diagonals(tf.transpose(by_distance), length)[tf.newaxis]
        return padding, _with_one_gradient(relative)

    def compute_output_shape(
        self, padding_mask_shape: tuple[int | None, ...]
    ) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """The shapes of the results, for the functional graph."""
        batch, length = padding_mask_shape
        relative = (1, self.num_heads, length, length) if self.bins else (1, 1, 1, 1)
        return (batch, 1, 1, length), relative


def relative_position_buckets(bins: int, max_distance: int, max_positions: int) -> np.ndarray:
    """Maps distances key - query to table rows: int32 [2 * max_positions - 1], from 0 on."""
    # Entry `max_positions - 1 + distance`. Half of the bins serve each direction. Near distances
    # have a bin each, far ones share bins whose width grows with the logarithm of the distance, up
    # to `max_distance`. This is the layout of the released COCO-LM models, which rounds up and
    # orders by signed distance where T5 rounds down and puts the directions side by side.
    half, exact = bins // 2, bins // 4
    if bins < 4 or bins % 4:
        raise ValueError(f"relative_position_bins must be a multiple of 4, not {bins}.")
    if max_distance - 1 <= exact:
        raise ValueError(
            f"relative_position_max_distance must exceed {exact + 1} for {bins} bins, "
            f"not {max_distance}."
        )
    distance = np.arange(1 - max_positions, max_positions)
    magnitude = np.abs(distance)
    # float32, as the released models compute it: rounding decides at the edges of the bins.
    ratio = np.log(np.maximum(magnitude, exact).astype(np.float32) / np.float32(exact))
    ratio /= np.float32(np.log((max_distance - 1) / exact))
    far = exact + np.ceil(ratio * np.float32(half - 1 - exact)).astype(np.int32)
    bucket = np.where(magnitude < exact, magnitude, np.minimum(half - 1, far))
    signed = np.sign(distance) * bucket
    return (signed - signed.min()).astype(np.int32)


@tf.custom_gradient
def _with_one_gradient(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Returns `x`, whose gradients from all uses are added before they are summed by distance."""
    return tf.identity(x), lambda upstream: barrier(upstream)[0]


def _diagonals(values: tf.Tensor, length: tf.Tensor | int) -> tf.Tensor:
    """Spreads [heads, 2 * length - 1], one value a diagonal, to [heads, length, length]."""
    # By a reshape: rows that are one longer than what they are cut into shift by one each. A lookup
    # of every pair would be slow on accelerators, and its gradient slower.
    rows = tf.tile(tf.pad(values, [[0, 0], [0, 1]]), [1, length])
    rows = tf.reshape(rows[:, : length * (2 * length - 1)], [-1, length, 2 * length - 1])
    return rows[:, :, length - 1 :]


# --- The block ---


def indices_of(positions: tf.Tensor) -> tf.Tensor:
    """The indices [B, M, 2] in a batch [B, S, ...] of each sequence's positions [B, M]."""
    # For `tf.gather_nd`, which with its gradient takes six operations; `tf.gather` takes 54.
    positions = tf.cast(positions, tf.int32)
    rows = tf.expand_dims(tf.range(shape_of(positions)[0]), 1)
    return tf.stack([tf.broadcast_to(rows, shape_of(positions)), positions], axis=-1)


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
            queried = tf.gather_nd(x, indices_of(positions))
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
        attended = attention(
            query,
            key,
            value,
            padding,
            relative,
            self.dropout.rate,
            seed,
            kernel=self.attention,
            name=self.path,
            recompute=self.rematerialize == "attention",
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

"""Relative position bias: what a pair of tokens adds to its attention logit by distance."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf.fusion import barrier
from cocolm_tf.modeling.relative_position_buckets import relative_position_buckets


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


@tf.custom_gradient
def _with_one_gradient(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns `x`, whose gradients from all uses are added before they are summed by distance."""
    return tf.identity(x), lambda upstream: barrier(upstream)[0]


def _diagonals(values: tf.Tensor, length: tf.Tensor | int) -> tf.Tensor:
    """Spreads [heads, 2 * length - 1], one value a diagonal, to [heads, length, length]."""
    # By a reshape: rows that are one longer than what they are cut into shift by one each. A lookup
    # of every pair would be slow on accelerators, and its gradient slower.
    rows = tf.tile(tf.pad(values, [[0, 0], [0, 1]]), [1, length])
    rows = tf.reshape(rows[:, : length * (2 * length - 1)], [-1, length, 2 * length - 1])
    return rows[:, :, length - 1 :]

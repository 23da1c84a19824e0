"""Relative position bias: what a pair of tokens adds to its attention logit by distance."""

import keras
import numpy as np
import tensorflow as tf


def relative_position_buckets(bins: int, max_distance: int, max_positions: int) -> np.ndarray:
    """Maps every signed distance key - query to a row of the bias table.

    Half of the bins serve each direction. Near distances have a bin each, far ones share bins
    whose width grows with the logarithm of the distance, up to `max_distance`. This is the layout
    of the released COCO-LM models, which rounds up and orders by signed distance where T5 rounds
    down and puts the directions side by side.

    Args:
        bins: int. Rows of the table, both directions together.
        max_distance: int. The distance from which on all pairs share a bin.
        max_positions: int. The longest sequence.

    Returns:
        int32 array [2 * max_positions - 1]; entry `max_positions - 1 + distance`. The smallest
        bucket that occurs is 0.

    Raises:
        ValueError: if `bins` is not a multiple of 4 or `max_distance` is too small for it.

    Example:
    ```python
    relative_position_buckets(bins=32, max_distance=128, max_positions=512)[511 - 2 : 511 + 3]
    ```
    """
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


class AttentionBias(keras.layers.Layer):
    """What is added to the attention logits: relative positions, and the exclusion of padding.

    One table of `bins` x `num_heads` serves every layer of an encoder (paper, section 4), so this
    is computed once a pass and handed to each block.

    Args:
        num_heads: int.
        bins: int. Rows of the table; 0 for no relative positions.
        max_distance: int. The distance from which on all pairs share a row.
        max_positions: int. The longest sequence.
        neighbor_bias: float. Where each head starts out looking: what its bias for one neighbor
            begins at. The heads' neighbors are at the distances -1, +1, -2, +2 and so on.

    Call arguments:
        padding_mask: [B, S], non-zero at real tokens.

    Returns:
        A pair in the compute dtype: what excludes padding, [B, 1, 1, S]; and the bias by relative
        position, [1, num_heads, S, S], or [1, 1, 1, 1] of zeros without it.

    Example:
    ```python
    AttentionBias(num_heads=4, bins=32, max_distance=128, max_positions=64)(tf.ones([2, 10]))
    ```
    """

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
        """Creates the table, where there is one."""
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
        """Looks both up."""
        # float16 has no -1e9; either value leaves padding no weight after the softmax.
        excluded = -3e4 if self.compute_dtype == "float16" else -1e9
        is_padding = tf.cast(tf.equal(tf.cast(padding_mask, tf.int32), 0), self.compute_dtype)
        padding = (is_padding * excluded)[:, tf.newaxis, tf.newaxis, :]
        if not self.bins:
            return padding, tf.zeros([1, 1, 1, 1], self.compute_dtype)
        length = tf.shape(padding_mask)[1]
        by_distance = tf.gather(tf.convert_to_tensor(self.table), self.buckets)
        position = tf.range(length)
        distance = position[tf.newaxis, :] - position[:, tf.newaxis]
        relative = tf.gather(by_distance, distance + (self.max_positions - 1))
        return padding, tf.transpose(relative, [2, 0, 1])[tf.newaxis]

    def compute_output_shape(
        self, padding_mask_shape: tuple[int | None, ...]
    ) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """The shapes of the results, for the functional graph."""
        batch, length = padding_mask_shape
        relative = (1, self.num_heads, length, length) if self.bins else (1, 1, 1, 1)
        return (batch, 1, 1, length), relative

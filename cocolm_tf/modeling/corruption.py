"""Corruption of the main model's input: sampling replacements, and writing them in."""

import dataclasses

import tensorflow as tf

from cocolm_tf.modeling.transformer import indices_of
from cocolm_tf.ops.elementwise import random_bits
from cocolm_tf.ops.fusion import fused, shape_of

# The forward passes to sample from; see `CocoLMPretrainer`.
SAMPLING_MODES = ("eval", "train", "zero_dropout")


def check_sampling(sampling: str, dropout: float) -> None:
    """Refuses a forward pass to sample from that an auxiliary model of this dropout has not."""
    if sampling not in SAMPLING_MODES:
        raise ValueError(f"sampling is one of {', '.join(SAMPLING_MODES)}, not {sampling!r}.")
    if sampling == "zero_dropout" and dropout:
        raise ValueError("sampling='zero_dropout' needs an auxiliary model without dropout.")


def gather_positions(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Gathers `x` [B, S] or [B, S, H] at `positions` [B, M]: [B * M] or [B * M, H]."""
    return tf.gather_nd(x, tf.reshape(indices_of(positions), [-1, 2]))


def replace_tokens(
    token_ids: tf.Tensor,
    positions: tf.Tensor,
    replacements: tf.Tensor | int,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Writes `replacements` at `positions` [B, M]: `token_ids` [B, S] but for those."""
    # Replacements are [B * M] int32, or a scalar for every position. Positions of weight 0 are left
    # alone; the others are distinct within a sequence.
    indices = tf.reshape(indices_of(positions), [-1, 2])
    if weights is None:
        replacements = tf.broadcast_to(replacements, shape_of(indices)[:1])
    else:
        kept = tf.gather_nd(token_ids, indices)
        replacements = tf.where(tf.reshape(weights, [-1]) > 0, replacements, kept)
    return tf.tensor_scatter_nd_update(token_ids, indices, replacements)


def sample_tokens(
    logits: tf.Tensor,
    seed: tf.Tensor,
    first_row: tf.Tensor | int = 0,
    temperature: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """Samples a token for each row of logits [N, V], from their softmax (Eq. 1): [N] int32."""
    # By the Gumbel maximum, which needs no normalization and no second copy of the probabilities.
    # No gradient flows through the draw. It is a function of the integer `seed` [2] and of the
    # row's number, which counts from `first_row` where the rows are some of many.
    perturbed = _add_gumbel_noise(
        tf.stop_gradient(logits),
        tf.cast(seed, tf.int32),
        tf.cast(first_row, tf.int32),
        tf.cast(temperature, tf.float32),
    )
    return tf.argmax(perturbed, axis=-1, output_type=tf.int32)


@fused
def _add_gumbel_noise(
    logits: tf.Tensor, seed: tf.Tensor, first_row: tf.Tensor, temperature: tf.Tensor
) -> tf.Tensor:
    start = tf.cast(first_row, tf.uint32) * tf.cast(tf.shape(logits)[1], tf.uint32)
    # As many bits as float32 has, centered in their interval: never 0, never 1.
    bits = random_bits(shape_of(logits), seed, start)
    bits = tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32))
    uniform = (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23
    # The noise is scaled up instead of the logits down: the maximum is in the same place.
    return tf.cast(logits, tf.float32) - temperature * tf.math.log(-tf.math.log(uniform))


def random_tokens(shape: tf.Tensor, vocabulary_size: int, seed: tf.Tensor) -> tf.Tensor:
    """Samples tokens uniformly, int32: the "random replacements" of the paper's Table 3."""
    return tf.random.stateless_uniform(
        shape, tf.cast(seed, tf.int32), maxval=vocabulary_size, dtype=tf.int32
    )


@dataclasses.dataclass(frozen=True)
class SamplingTemperature:
    """T(u) = 1 + (start - 1) * exp(-u / decay), u being the share of the run's steps that are done.

    Fast-ELECTRA (Dong et al., ICLR 2024): the auxiliary model's logits are divided by it, so that
    early replacements are easy to detect, also those of an auxiliary model that has converged.

    Args:
        start: T(0).
        decay: The share of the run after which 1/e is left of what exceeds 1.
        steps: The length of the run.

    Example:
    ```python
    SamplingTemperature(2.0, 0.1, 1000).at(tf.constant(100))  # 1.37
    ```
    """

    start: float
    decay: float
    steps: int

    def at(self, step: tf.Tensor | int) -> tf.Tensor:
        """The temperature of a step, a float32 scalar."""
        done = tf.cast(step, tf.float32) / self.steps
        return 1.0 + (self.start - 1.0) * tf.exp(-done / self.decay)

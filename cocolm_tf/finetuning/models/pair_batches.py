"""Pairs of texts to batches of few shapes, in which short texts need little padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import (
    WIDTH_STEP,
    Column,
    Rows,
    Tokens,
    batch_widths,
    numbers_of_batches,
)


def pair_batches(
    columns: Sequence[Tokens],
    cosines: np.ndarray | None,
    batch_size: int,
    seed: int | None,
    buckets: int = 8,
    weights: np.ndarray | None = None,
) -> tuple[tf.data.Dataset, int]:
    """Batches of pairs, endless and shuffled or of one epoch, and how many an epoch has."""
    # A batch is `(x, cosines [B] or None, weights [B])`, where `x` is `{"queries": features of [B,
    # S], "documents": features of [B, 1 + K, T]}`. `columns` are the first texts, the second texts,
    # and hard negatives; `cosines` [N] how similar the first two are to be, None where they belong
    # together. Without a seed there is one epoch, the shortest rows first.
    # All batches have as many rows. A batch holds rows whose second texts are of like lengths, as
    # those of `training_batches` are; first texts have a width of their own, one for each of the
    # others. The last batch is filled with rows of weight 0. Every row occurs once an epoch.
    # `buckets` bounds the widths of the second texts, see `batch_widths`; 0 makes all batches as
    # wide as the longest row may be.
    first, *others = columns
    lengths = np.max([tokens.lengths for tokens in others], axis=0)
    widths = batch_widths(lengths, first.limit, batch_size, buckets)
    groups = np.searchsorted(widths, lengths)
    # The longest first text of a group and of those before, whose last rows join it.
    longest = np.zeros(len(widths), int)
    np.maximum.at(longest, groups, first.lengths)
    first_widths = -(-np.maximum.accumulate(longest) // WIDTH_STEP) * WIDTH_STEP
    first_widths = np.minimum(first_widths, first.limit) if buckets else widths

    weights = np.ones(len(first)) if weights is None else weights
    values = {"weights": Column(np.asarray(weights, np.float32))}
    if cosines is not None:
        values["labels"] = Column(np.asarray(cosines, np.float32))
    queries = Rows(first, first_widths, values)
    documents = [Rows(tokens, widths, {}) for tokens in others]

    def batch(numbers: tf.Tensor, group: tf.Tensor, real: tf.Tensor) -> tuple[Any, ...]:
        first_features, found = queries.batch(numbers, group)
        features = [rows.batch(numbers, group)[0] for rows in documents]
        stacked = {name: tf.stack([one[name] for one in features], axis=1) for name in features[0]}
        x = {"queries": first_features, "documents": stacked}
        return x, found.get("labels"), found["weights"] * tf.cast(real, tf.float32)

    batches, steps = numbers_of_batches(groups, batch_size, seed)
    return batches.map(batch, num_parallel_calls=2).prefetch(4), steps

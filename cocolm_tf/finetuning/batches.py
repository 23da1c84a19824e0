"""Texts to batches in which short texts need little padding."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.data.examples import Examples
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID
from cocolm_tf.tokenization.normalization import as_string_tensor

# Rows of a batch of predictions; without gradients, they need little memory.
PREDICTION_BATCH = 64

# Widths are multiples of it, which accelerators compute faster.
WIDTH_STEP = 8
# The most widths that `trimmed` makes, as each is traced and compiled as its own program.
_MOST_WIDTHS = 8

# How many texts are tokenized at once.
TOKENIZED_AT_ONCE = 1024
# How many batches' work a further width must save in an epoch: about what tracing and compiling its
# program costs, in a run of a few epochs.
_BATCHES_OF_A_WIDTH = 8


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Rows of tokens, without padding."""

    token_ids: np.ndarray  # int32, of all rows one after the other
    lengths: np.ndarray  # [N], tokens of each row
    limit: int  # the most tokens that a row may have
    truncated: int  # how many texts or pairs were longer and have been cut

    def __len__(self) -> int:
        return len(self.lengths)


def tokenized(preprocessor: keras_hub.models.Preprocessor, examples: Examples) -> Tokens:
    """Tokenizes texts or pairs into rows of at most the preprocessor's length."""
    tokenizer, limit = preprocessor.tokenizer, preprocessor.sequence_length
    features, truncated = [], 0
    for part in parts_of(examples):
        texts = [texts for texts in (part.first, part.second) if texts is not None]
        ids = [tokenizer.graph_module().tokenize(as_string_tensor(list(text))) for text in texts]
        features.append(tokenizer.pack(*ids, sequence_length=limit))
        # `<s> A </s>` and `<s> A </s> </s> B </s>`
        whole = sum(row.row_lengths().numpy() for row in ids) + 2 * len(ids)
        truncated += int((whole > limit).sum())
    return without_padding(features, limit, truncated)


def parts_of(examples: Examples) -> Iterator[Examples]:
    """Cuts examples into parts of as many as are tokenized at once."""
    for start in range(0, len(examples), TOKENIZED_AT_ONCE):
        yield examples.select(range(start, min(start + TOKENIZED_AT_ONCE, len(examples))))


def without_padding(
    features: Sequence[dict[str, tf.Tensor]], limit: int, truncated: int = 0
) -> Tokens:
    """The rows of a preprocessor's batches, without padding; `truncated` rows have been cut."""
    masks = [np.asarray(batch["padding_mask"]) for batch in features]
    return Tokens(
        np.concatenate(
            [
                np.asarray(batch["token_ids"])[mask]
                for batch, mask in zip(features, masks, strict=True)
            ]
        ),
        np.concatenate([mask.sum(axis=1) for mask in masks]),
        limit,
        truncated,
    )


def batch_widths(lengths: np.ndarray, limit: int, batch_size: int, buckets: int) -> np.ndarray:
    """The widths of the batches, in tokens, that pad rows of these lengths least, ascending."""
    # A row belongs to the first width that holds it. Each width is a program of its own, traced and
    # compiled once, so there are at most `buckets` of them, and each saves the work of eight
    # batches an epoch. `buckets` of 0 give the limit alone.
    if not buckets:
        return np.array([limit])
    steps, counts = np.unique(-(-lengths // WIDTH_STEP), return_counts=True)
    candidates = np.minimum(steps * WIDTH_STEP, limit)
    rows = np.concatenate([[0], np.cumsum(counts)])
    price = _BATCHES_OF_A_WIDTH * batch_size * lengths.mean()
    # The best cost, in tokens, of the rows up to each candidate, and the candidate before it.
    costs, chosen = np.zeros(len(rows)), []
    for _ in range(min(buckets, len(candidates))):
        # [before, last]: the rows after one candidate, as wide as the last.
        groups = candidates * (rows[1:] - rows[:-1, np.newaxis])
        totals = np.where(
            np.tri(len(candidates), dtype=bool).T, costs[:-1, np.newaxis] + groups, np.inf
        )
        if not chosen:
            totals[1:] = np.inf  # The first group has no other before it.
        before = totals.argmin(axis=0)
        chosen.append((totals.min(axis=0)[-1] + price * len(chosen), before))
        costs = np.concatenate([[np.inf], totals.min(axis=0)])
    number = int(np.argmin([cost for cost, _ in chosen]))
    places, place = [], len(candidates)
    for _, before in reversed(chosen[: number + 1]):
        places.append(place - 1)
        place = before[place - 1]
    return candidates[sorted(places)]


def trimmed(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Cuts a batch's [B, S] features to its longest row, rounded up to one of few widths."""
    # To a multiple of 8. Where B is known, batches of one width share a program: then to one of at
    # most 8 widths.
    rows, limit = features["token_ids"].shape
    step = WIDTH_STEP
    if rows is not None and limit is not None:
        step *= -(-limit // (_MOST_WIDTHS * WIDTH_STEP))
    longest = tf.reduce_max(tf.reduce_sum(tf.cast(features["padding_mask"], tf.int32), axis=1))
    width = tf.minimum(-(-longest // step) * step, limit or tf.shape(features["token_ids"])[1])
    return {name: feature[:, :width] for name, feature in features.items()}


def training_batches(
    tokens: Tokens,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    buckets: int = 8,
    weights: np.ndarray | None = None,
) -> tuple[tf.data.Dataset, int]:
    """Endless batches (features, labels, weights), shuffled anew each epoch; the steps of one."""
    # Features are `token_ids` and `padding_mask`, [B, S]. Labels are [N], [N, K] or one for each of
    # all tokens, [T]; weights [N] or [T]. In a batch they are [B], [B, K] or, 0 at padding, [B, S].
    # What has weight 0 is neither learned from nor counted.
    # All batches have `batch_size` rows and one of a few widths, see `batch_widths`, so that each
    # width is one program. A batch holds rows of like lengths. Every row occurs once an epoch. The
    # order follows from the seed.
    widths = batch_widths(tokens.lengths, tokens.limit, batch_size, buckets)
    rows = Rows(tokens, widths, _labels(tokens, labels, weights))
    groups = np.searchsorted(widths, tokens.lengths)

    def batch(numbers: tf.Tensor, group: tf.Tensor, real: tf.Tensor) -> tuple[Any, ...]:
        features, columns = rows.batch(numbers, group)
        weights = columns["weights"]
        real = tf.reshape(tf.cast(real, weights.dtype), [-1] + [1] * (weights.shape.rank - 1))
        return features, columns["labels"], weights * real

    batches, steps = numbers_of_batches(groups, batch_size, seed)
    return batches.map(batch, num_parallel_calls=2).prefetch(4), steps


def numbers_of_batches(
    groups: np.ndarray, batch_size: int, seed: int | None
) -> tuple[tf.data.Dataset, int]:
    """Each batch's rows by number, their last group, which are real; and the steps of an epoch."""
    # Endless and shuffled anew each epoch by the seed; without one a single epoch, by the groups.
    # Rows of one group that do not fill a batch join those of the next. The last row is repeated to
    # fill the last batch.
    count, steps = len(groups), -(-len(groups) // batch_size)
    groups, missing = tf.constant(groups, tf.int32), steps * batch_size - count

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order, turns = tf.range(count), tf.range(steps)
        if seed is not None:
            place = tf.stack([tf.constant(seed, tf.int64), number])
            order = tf.random.experimental.stateless_shuffle(order, place)
            turns = tf.random.experimental.stateless_shuffle(turns, place + 1)
        order = tf.gather(order, tf.argsort(tf.gather(groups, order), stable=True))
        batches = tf.concat([order, tf.fill([missing], order[-1])], axis=0)
        batches = tf.reshape(batches, [steps, batch_size])
        widest = tf.reduce_max(tf.gather(groups, batches), axis=1)
        real = tf.reshape(tf.range(steps * batch_size) < count, [steps, batch_size])
        slices = tuple(tf.gather(part, turns) for part in (batches, widest, real))
        return tf.data.Dataset.from_tensor_slices(slices)

    if seed is None:
        return epoch(tf.constant(0, tf.int64)), steps
    return tf.data.Dataset.counter().flat_map(epoch), steps


def prediction_batches(
    tokens: Tokens,
    batch_size: int,
    buckets: int = 8,
    columns: Mapping[str, "Column"] | None = None,
) -> tuple[tf.data.Dataset, np.ndarray]:
    """Batches of rows, the shortest first, and the number of the row that each of theirs is."""
    # Batches have `token_ids` and `padding_mask`, [B, S], of few widths; with columns, pairs of
    # these and of the columns with `real` [B]: 1.0 for a row, 0.0 for the copies of the last row
    # that fill the last batch. The numbers leave those copies out.
    order = np.argsort(tokens.lengths, kind="stable")
    batch_size = min(batch_size, max(1, len(order)))
    widths = batch_widths(tokens.lengths, tokens.limit, batch_size, buckets)
    missing = -len(order) % batch_size
    numbers = np.concatenate([order, np.repeat(order[-1:], missing)]).astype(np.int32)
    numbers = numbers.reshape(-1, batch_size)
    groups = np.searchsorted(widths, tokens.lengths[numbers[:, -1]]).astype(np.int32)
    real = (np.arange(numbers.size) < len(order)).astype(np.float32).reshape(numbers.shape)
    rows = Rows(tokens, widths, columns or {})

    def batch(numbers: tf.Tensor, group: tf.Tensor, real: tf.Tensor) -> Any:
        features, found = rows.batch(numbers, group)
        return (features, found | {"real": real}) if columns else features

    batches = tf.data.Dataset.from_tensor_slices((numbers, groups, real))
    return batches.map(batch, num_parallel_calls=2).prefetch(4), order


def predict_rows(
    model: keras.Model,
    tokens: Tokens,
    batch_size: int = PREDICTION_BATCH,
    buckets: int = 8,
    **kwargs: Any,
) -> Any:
    """Outputs [N, ...] in the rows' order; of [B, S, ...] outputs a list of [length, ...]."""
    batches, order = prediction_batches(tokens, batch_size, buckets)
    if len(model.output.shape) == 2:
        found = model.predict(batches, **{"verbose": 0} | kwargs)[: len(order)]
        outputs = np.empty_like(found)
        outputs[order] = found
        return outputs
    ends = iter(order)
    rows = [np.empty(0)] * len(order)
    for features in batches:
        for output, number in zip(model.predict_on_batch(features), ends, strict=False):
            rows[number] = output[: tokens.lengths[number]]
    return rows


class Column(NamedTuple):
    """A value for each row, or for each token, beside the token ids."""

    values: np.ndarray  # [N, ...], or one for each of all tokens, [T]
    padding: Any = 0  # where there is no token


class Rows:
    """Gathers batches of rows by their numbers, in the graph."""

    # The arrays are captured as they are, and not serialized into the dataset's graph.

    def __init__(self, tokens: Tokens, widths: np.ndarray, columns: Mapping[str, Column]) -> None:
        self._limit = int(widths[0]) if len(widths) == 1 else None
        self._of_tokens, self._of_rows = {}, {}
        # Captured by the pipeline, not copied into its graph. On the CPU, where pipelines run.
        with tf.device("cpu"):
            self._widths = tf.constant(widths, tf.int32)
            self._lengths = tf.constant(tokens.lengths, tf.int32)
            self._starts = tf.constant(np.cumsum(tokens.lengths) - tokens.lengths, tf.int32)
            token_ids = Column(np.asarray(tokens.token_ids, np.int32), PAD_TOKEN_ID)
            for name, (values, padding) in {"token_ids": token_ids, **columns}.items():
                of_rows = len(values) == len(tokens)
                values = tf.constant(values)
                (self._of_rows if of_rows else self._of_tokens)[name] = Column(values, padding)

    def batch(
        self, numbers: tf.Tensor, group: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """The features of some rows [B], padded to the width of their group, and their columns."""
        width = self._limit or self._widths[group]
        places, lengths = tf.range(width), tf.gather(self._lengths, numbers)[:, tf.newaxis]
        real = places < lengths
        flat = tf.where(real, tf.gather(self._starts, numbers)[:, tf.newaxis] + places, 0)
        shape = [numbers.shape[0], self._limit]

        def padded(column: Column) -> tf.Tensor:
            values = tf.gather(column.values, flat)
            padding = tf.constant(column.padding, values.dtype)
            return tf.ensure_shape(tf.where(real, values, padding), shape)

        columns = {name: padded(column) for name, column in self._of_tokens.items()}
        # Keras adds up the batches of several replicas to see their shapes: booleans have no sum.
        features = {
            "token_ids": columns.pop("token_ids"),
            "padding_mask": tf.ensure_shape(tf.cast(real, tf.int32), shape),
        }
        for name, column in self._of_rows.items():
            columns[name] = tf.gather(column.values, numbers)
        return features, columns


def _labels(tokens: Tokens, labels: np.ndarray, weights: np.ndarray | None) -> dict[str, Column]:
    labels = np.asarray(labels)
    if len(labels) not in (len(tokens), len(tokens.token_ids)):
        raise ValueError(
            f"{len(labels)} labels, where there are {len(tokens)} rows of "
            f"{len(tokens.token_ids)} tokens."
        )
    if weights is None:
        weights = np.ones(len(labels), np.float32)
    if len(weights) != len(labels):
        raise ValueError(f"{len(labels)} labels, but {len(weights)} weights.")
    return {"labels": Column(labels), "weights": Column(np.asarray(weights, np.float32))}


def describe_lengths(tokens: Tokens) -> dict[str, int]:
    """`median`, `percentile_95` and `longest` length in tokens, and how many are `truncated`."""
    median, percentile_95 = np.percentile(tokens.lengths, [50, 95])
    return {
        "median": round(float(median)),
        "percentile_95": round(float(percentile_95)),
        "longest": int(tokens.lengths.max()),
        "truncated": tokens.truncated,
    }

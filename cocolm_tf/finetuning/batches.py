"""Texts to batches in which short ones do not pay for long ones."""

import dataclasses
from collections.abc import Iterator, Sequence

import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.data.examples import Examples
from cocolm_tf.finetuning.models.raw_text import WIDTH_STEP, batch_width
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID
from cocolm_tf.tokenization.normalization import as_string_tensor

# How many rows are predicted at once: nothing is kept of them, so memory is no matter.
PREDICTION_BATCH = 64

_TOKENIZED_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The rows of a model's input, without padding.

    Args:
        token_ids: int32, of all rows one after the other.
        lengths: [N], the length of each row.
        limit: int. The longest that a row may be.
        truncated: int. How many texts or pairs were longer and have been cut.

    Example:
    ```python
    tokens = tokenized(preprocessor, examples)
    ```
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    limit: int
    truncated: int

    def __len__(self) -> int:
        return len(self.lengths)


def tokenized(preprocessor: keras_hub.models.Preprocessor, examples: Examples) -> Tokens:
    """Turns texts into rows of tokens.

    Args:
        preprocessor: Of the model.
        examples: The texts or pairs.

    Returns:
        The rows, each as long as it is.

    Example:
    ```python
    tokenized(preprocessor, Examples(["A cat sat.", "It slept."])).lengths
    ```
    """
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
    """Cuts examples into parts that are tokenized at once.

    Example:
    ```python
    features = [preprocessor(list(part.first)) for part in parts_of(examples)]
    ```
    """
    for start in range(0, len(examples), _TOKENIZED_AT_ONCE):
        yield examples.select(range(start, min(start + _TOKENIZED_AT_ONCE, len(examples))))


def without_padding(
    features: Sequence[dict[str, tf.Tensor]], limit: int, truncated: int = 0
) -> Tokens:
    """Takes the padding out of what a preprocessor gave.

    Args:
        features: `token_ids` and `padding_mask` of some batches.
        limit: int. The longest that a row may be.
        truncated: int. How many rows were longer and have been cut.

    Returns:
        The rows of all batches.

    Example:
    ```python
    without_padding([preprocessor(["A cat sat."])], preprocessor.sequence_length)
    ```
    """
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


def bucket_boundaries(lengths: np.ndarray, batch_size: int, buckets: int) -> list[int]:
    """Cuts lengths into groups of about as many rows.

    Args:
        lengths: [N], of the rows.
        batch_size: int.
        buckets: int. The number of groups at most. There are fewer where a group would not fill
            eight batches, as each leaves a batch over that is not full.

    Returns:
        The lengths at which a new group begins, ascending; one fewer than there are groups.

    Example:
    ```python
    bucket_boundaries(np.arange(1, 1001), batch_size=16, buckets=4)  # [257, 505, 753]
    ```
    """
    buckets = min(buckets, max(1, len(lengths) // (8 * batch_size)))
    cuts = np.quantile(lengths, np.arange(1, buckets) / buckets, method="higher")
    # A batch is as wide as the next multiple of the step anyway.
    boundaries = {int(-(-cut // WIDTH_STEP) * WIDTH_STEP + 1) for cut in cuts}
    return sorted(boundary for boundary in boundaries if boundary <= lengths.max())


def training_batches(
    tokens: Tokens,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    buckets: int = 8,
) -> tuple[tf.data.Dataset, int]:
    """Makes endless batches of labeled rows, shuffled anew in every epoch.

    A batch holds rows of like lengths, by `tf.data`'s `bucket_by_sequence_length`, and is as wide
    as its longest row. Every row is there once an epoch. The order follows from the seed.

    Args:
        tokens: The rows.
        labels: [N].
        batch_size: int. The last batch of a group is smaller where the rows do not fill it.
        seed: int.
        buckets: int. How many groups of like lengths to make at most; 1 for batches as they come,
            and 0 for batches that are all as wide as the longest row may be.

    Returns:
        Batches of `({"token_ids": [B, S], "padding_mask": [B, S]}, labels [B])`, and how many of
        them an epoch has.

    Example:
    ```python
    batches, steps = training_batches(tokens, examples.labels, batch_size=32, seed=0)
    classifier.fit(batches, steps_per_epoch=steps, epochs=3)
    ```
    """
    boundaries = bucket_boundaries(tokens.lengths, batch_size, max(1, buckets))
    groups = np.bincount(
        np.searchsorted(boundaries, tokens.lengths, side="right"), minlength=len(boundaries) + 1
    )
    rows = _Rows(tokens, labels, equal_shapes=buckets == 0)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        place = tf.stack([tf.constant(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(tokens)), place)
        dataset = tf.data.Dataset.from_tensor_slices(order).map(rows.row)
        if not boundaries:
            return rows.padded_batches(dataset, batch_size)
        return dataset.bucket_by_sequence_length(
            lambda token_ids, _: tf.size(token_ids),
            boundaries,
            [batch_size] * (len(boundaries) + 1),
            padding_values=rows.padding_values,
        )

    batches = tf.data.Dataset.counter().flat_map(epoch)
    batches = batches.map(rows.features, num_parallel_calls=2).prefetch(4)
    return batches, int(np.ceil(groups / batch_size).sum())


def prediction_batches(tokens: Tokens, batch_size: int) -> tuple[tf.data.Dataset, np.ndarray]:
    """Makes batches of rows, the shortest first.

    Args:
        tokens: The rows.
        batch_size: int.

    Returns:
        Batches of `{"token_ids": [B, S], "padding_mask": [B, S]}`, and the number of the row that
        each of their rows is.

    Example:
    ```python
    batches, order = prediction_batches(tokens, 64)
    outputs = np.empty([len(tokens), 2], np.float32)
    outputs[order] = classifier.predict(batches)
    ```
    """
    order = np.argsort(tokens.lengths, kind="stable")
    rows = _Rows(tokens, np.zeros(len(tokens), np.int32))
    dataset = tf.data.Dataset.from_tensor_slices(order.astype(np.int32)).map(rows.row)
    batches = rows.padded_batches(dataset, batch_size).map(rows.features)
    return batches.map(lambda features, _: features).prefetch(4), order


class _Rows:
    """Rows by their number, in a graph."""

    def __init__(self, tokens: Tokens, labels: np.ndarray, equal_shapes: bool = False) -> None:
        self._token_ids = tf.constant(tokens.token_ids, tf.int32)
        self._ends = tf.constant(np.cumsum(tokens.lengths), tf.int32)
        self._lengths = tf.constant(tokens.lengths, tf.int32)
        self._labels = tf.constant(labels)
        self._limit = tokens.limit
        self._equal_shapes = equal_shapes
        self.padding_values = (tf.constant(PAD_TOKEN_ID), tf.zeros([], self._labels.dtype))

    def row(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        end = self._ends[number]
        token_ids = self._token_ids[end - self._lengths[number] : end]
        return tf.ensure_shape(token_ids, [None]), self._labels[number]

    def padded_batches(self, dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        return dataset.padded_batch(batch_size, padding_values=self.padding_values)

    def features(
        self, token_ids: tf.Tensor, labels: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        longest = tf.shape(token_ids)[1]
        width = self._limit if self._equal_shapes else batch_width(longest, self._limit)
        token_ids = tf.pad(token_ids, [[0, 0], [0, width - longest]], constant_values=PAD_TOKEN_ID)
        token_ids = tf.ensure_shape(token_ids, [None, width if self._equal_shapes else None])
        # Keras adds up the batches of several replicas to see their shapes: booleans have no sum.
        padding_mask = tf.cast(token_ids != PAD_TOKEN_ID, tf.int32)
        return {"token_ids": token_ids, "padding_mask": padding_mask}, labels


def describe_lengths(tokens: Tokens) -> dict[str, int]:
    """Sums up how long rows are.

    Args:
        tokens: The rows.

    Returns:
        `median`, `percentile_95` and `longest`, in tokens, and `truncated`, in rows.

    Example:
    ```python
    describe_lengths(tokens)["truncated"]
    ```
    """
    median, percentile_95 = np.percentile(tokens.lengths, [50, 95])
    return {
        "median": round(float(median)),
        "percentile_95": round(float(percentile_95)),
        "longest": int(tokens.lengths.max()),
        "truncated": tokens.truncated,
    }

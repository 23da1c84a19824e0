"""The losses of sequence vectors: contrastive ones, over the global batch, and cosines."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from cocolm_tf.losses.language_modeling import weighted_mean
from cocolm_tf.losses.replicas import gather_over_replicas, sum_over_replicas

# A squared length below this is rounding of a zero vector.
_ZERO_LENGTH = 1e-24


def sequence_contrastive_loss(
    first: tf.Tensor, second: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """Cross entropy of finding each sequence's other view in the batch (paper, equation 3).

    Each of the 2B vectors is compared, by cosine over temperature, with the 2B - 1 others, of
    which only its own other view is right. In a replica context the batch is the global one: the
    vectors are gathered from all replicas, with gradients, and each replica returns the same
    value. Its share of the objective is then `loss / num_replicas`: summed over replicas, those
    losses, and their gradients, are the ones that a single device gets from the whole batch.

    Args:
        first: `[B, H]` float16, bfloat16 or float32, the vectors of the first views. A zero
            vector has cosine 0 with every other, and no gradient.
        second: `[B, H]`, the vectors of the second views, in the same order.
        temperature: Divides the cosines; the paper's is 1.

    Returns:
        float32 scalar, the mean over the 2B vectors in nats.

    Raises:
        ValueError: If the two shapes differ.

    Example:
    ```python
    same = tf.ones([4, 16])
    sequence_contrastive_loss(same, same)  # log(2 * 4 - 1): every other vector looks right
    ```
    """
    first, second = gather_over_replicas(_unit_vectors(first, second))
    vectors = tf.concat([first, second], axis=0)
    similarities = tf.matmul(vectors, vectors, transpose_b=True) / temperature
    # A vector is no candidate for itself.
    itself = tf.fill([tf.shape(vectors)[0]], tf.float32.min)
    candidates = tf.reduce_logsumexp(tf.linalg.set_diag(similarities, itself), axis=1)
    positives = tf.reduce_sum(first * second, axis=1) / temperature
    return tf.reduce_mean(candidates) - tf.reduce_mean(positives)


def contrastive_cosines(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean cosine of the positive and of the negative pairs: alignment and uniformity.

    The curves of the paper's figures 7a and 7b, over the global batch as in
    `sequence_contrastive_loss`.

    Args:
        first: `[B, H]` float16, bfloat16 or float32, the vectors of the first views.
        second: `[B, H]`, the vectors of the second views, in the same order.

    Returns:
        Two float32 scalars between -1 and 1: the mean over the positive pairs, and the mean over
        the negative pairs, which is 0 if the global batch is a single sequence.

    Raises:
        ValueError: If the two shapes differ.

    Example:
    ```python
    contrastive_cosines(tf.eye(4), tf.eye(4))  # (1.0, 0.0)
    ```
    """
    first, second = _unit_vectors(first, second)
    pairs, positives, squares, total = sum_over_replicas(
        [
            tf.cast(tf.shape(first)[0], tf.float32),
            tf.reduce_sum(first * second),
            tf.reduce_sum(first * first + second * second),
            tf.reduce_sum(first + second, axis=0),
        ]
    )
    # The square of the vectors' sum holds the cosine of every ordered pair, so no [2B, 2B]
    # matrix is needed: take away each vector with itself, and each positive pair both ways.
    negatives = tf.reduce_sum(total * total) - squares - 2 * positives
    return (
        tf.math.divide_no_nan(positives, pairs),
        tf.math.divide_no_nan(negatives, 2 * pairs * (2 * pairs - 2)),
    )


def in_batch_negatives_loss(
    queries: tf.Tensor,
    documents: tf.Tensor,
    temperature: float = 0.05,
    weights: tf.Tensor | None = None,
    document_keys: tf.Tensor | None = None,
    query_keys: tf.Tensor | None = None,
    dimensions: Sequence[int] = (),
) -> tf.Tensor:
    """Cross entropy of finding each query's document among those of the whole batch.

    The candidates of a query are all documents, by cosine over temperature: its own, which is
    right, its hard negatives, and every document of every other query (InfoNCE: van den Oord et
    al., 2018; with hard negatives as Karpukhin et al., 2020). In a replica context the batch is the
    global one: all tensors are gathered, with gradients, and each replica returns the same value.
    Its share of the objective is then `loss / num_replicas`.

    Args:
        queries: `[B, H]` float16, bfloat16 or float32. A zero vector has cosine 0 with every other.
        documents: `[B, 1 + K, H]`; the first of a row answers its query, the other K are its hard
            negatives.
        temperature: Divides the cosines.
        weights: `[B]`, not negative; None for 1 each. A row of weight 0 is no query, and its
            documents are no candidates.
        document_keys: `[B, 1 + K]` int64, the same number for the same document; None where all
            differ. The document that is right is no negative where another row has it too.
        query_keys: `[B]` int64, the same number for the same query; None where all differ. What is
            right for a query is no negative where another row has the query too.
        dimensions: The numbers of leading dimensions to compare, of whose losses the mean is taken
            (Matryoshka representations: Kusupati et al., 2022); empty for all H.

    Returns:
        float32 scalar, the weighted mean over the queries in nats.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
    ```python
    queries, documents = tf.eye(4), tf.eye(4)[:, tf.newaxis]
    in_batch_negatives_loss(queries, documents, temperature=1.0)  # log(e + 3) - 1
    ```
    """
    queries, documents = tf.cast(queries, tf.float32), tf.cast(documents, tf.float32)
    queries.shape.assert_is_compatible_with([documents.shape[0], documents.shape[2]])
    if weights is None:
        weights = tf.ones(tf.shape(queries)[:1])
    gathered = [queries, documents, tf.cast(weights, tf.float32)]
    keys = {"documents": document_keys, "queries": query_keys}
    keys = {name: one for name, one in keys.items() if one is not None}
    queries, documents, weights, *found = gather_over_replicas([*gathered, *keys.values()])
    keys = dict(zip(keys, found, strict=True))
    per_query = tf.shape(documents)[1]
    rows = tf.shape(queries)[0]
    candidate, positive = tf.range(per_query * rows), per_query * tf.range(rows)
    is_excluded = tf.repeat(weights <= 0, per_query)[tf.newaxis]
    if "documents" in keys:
        is_excluded |= tf.equal(keys["documents"][:, :1], tf.reshape(keys["documents"], [1, -1]))
    if "queries" in keys:
        same = tf.equal(keys["queries"][:, tf.newaxis], keys["queries"])
        is_excluded |= tf.repeat(same, per_query, axis=1) & tf.equal(candidate % per_query, 0)
    # The positive is a candidate whatever its weight: a row without any would give no number.
    is_excluded &= tf.not_equal(candidate, positive[:, tf.newaxis])

    def loss(width: int) -> tf.Tensor:
        first = _unit(queries[:, :width])
        second = _unit(documents[:, :, :width])
        candidates = tf.reshape(second, [-1, width])
        similarities = tf.matmul(first, candidates, transpose_b=True) / temperature
        similarities = tf.where(is_excluded, tf.float32.min, similarities)
        correct = tf.reduce_sum(first * second[:, 0], axis=1) / temperature
        return weighted_mean(tf.reduce_logsumexp(similarities, axis=1) - correct, weights)

    return _mean_over(dimensions, queries.shape[1], loss)


def cosine_regression_loss(
    first: tf.Tensor,
    second: tf.Tensor,
    cosines: tf.Tensor,
    weights: tf.Tensor | None = None,
    dimensions: Sequence[int] = (),
) -> tf.Tensor:
    """Squared error of the cosines of pairs (Sentence-BERT: Reimers and Gurevych, 2019).

    Args:
        first: `[B, H]` float16, bfloat16 or float32, the vectors of the first texts. A zero vector
            has cosine 0 with every other.
        second: `[B, H]`, those of the second texts.
        cosines: `[B]` float, what they should be, from -1 to 1.
        weights: `[B]`, not negative; None for 1 each.
        dimensions: As for `in_batch_negatives_loss`.

    Returns:
        float32 scalar, the weighted mean over the pairs.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
    ```python
    cosine_regression_loss(tf.eye(2), tf.eye(2)[::-1], tf.constant([0.0, 0.6]))  # 0.18
    ```
    """
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    first.shape.assert_is_compatible_with(second.shape)
    cosines = tf.cast(cosines, tf.float32)
    weights = tf.ones_like(cosines) if weights is None else weights

    def loss(width: int) -> tf.Tensor:
        found = _unit(first[:, :width]) * _unit(second[:, :width])
        found = tf.reduce_sum(found, axis=1)
        found.shape.assert_is_compatible_with(cosines.shape)
        return weighted_mean(tf.math.squared_difference(found, cosines), weights)

    return _mean_over(dimensions, first.shape[1], loss)


def _mean_over(
    dimensions: Sequence[int], width: int, loss: Callable[[int], tf.Tensor]
) -> tf.Tensor:
    for dimension in dimensions:
        if not 0 < dimension <= width:
            raise ValueError(f"dimensions={[*dimensions]}: vectors have 1 to {width} of them.")
    losses = [loss(dimension) for dimension in dimensions or [width]]
    return tf.add_n(losses) / len(losses)


def _unit_vectors(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    first.shape.assert_is_compatible_with(second.shape)
    return _unit(first), _unit(second)


def _unit(vectors: tf.Tensor) -> tf.Tensor:
    """Scales [..., H] float32 to length 1; a zero vector stays one, and has no gradient."""
    squared_length = tf.reduce_sum(vectors * vectors, axis=-1, keepdims=True)
    is_zero = squared_length < _ZERO_LENGTH
    # The inner `where` keeps the infinite slope of rsqrt at 0 out of the gradient, which the
    # outer one alone would multiply by 0 into NaN.
    inverse_length = tf.math.rsqrt(tf.where(is_zero, 1.0, squared_length))
    return vectors * tf.where(is_zero, 0.0, inverse_length)

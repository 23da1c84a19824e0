"""What trains embeddings: a query's document against all others, and cosines as they should be."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from cocolm_tf.losses.replicas import gather_over_replicas
from cocolm_tf.losses.unit_vectors import unit_vectors
from cocolm_tf.losses.weighted import weighted_mean


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
    found = gather_over_replicas([*gathered, *keys.values()])
    queries, documents, weights, *found = found
    keys = dict(zip(keys, found, strict=True))
    per_query = tf.shape(documents)[1]
    rows = tf.shape(queries)[0]
    candidate, right = tf.range(per_query * rows), per_query * tf.range(rows)
    is_none = tf.repeat(weights <= 0, per_query)[tf.newaxis]
    if "documents" in keys:
        is_none |= tf.equal(keys["documents"][:, :1], tf.reshape(keys["documents"], [1, -1]))
    if "queries" in keys:
        same = tf.equal(keys["queries"][:, tf.newaxis], keys["queries"])
        is_none |= tf.repeat(same, per_query, axis=1) & tf.equal(candidate % per_query, 0)
    # What is right is a candidate whatever its weight: a row without any would give no number.
    is_none &= tf.not_equal(candidate, right[:, tf.newaxis])

    def loss(width: int) -> tf.Tensor:
        first = unit_vectors(queries[:, :width])
        second = unit_vectors(documents[:, :, :width])
        candidates = tf.reshape(second, [-1, width])
        similarities = tf.matmul(first, candidates, transpose_b=True) / temperature
        similarities = tf.where(is_none, tf.float32.min, similarities)
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
        found = unit_vectors(first[:, :width]) * unit_vectors(second[:, :width])
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

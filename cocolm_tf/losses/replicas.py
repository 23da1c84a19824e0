"""All that the losses say to the other replicas, kept apart from their mathematics.

Outside a TPU, XLA compiles no communication between replicas, so under `MirroredStrategy` these
functions belong in the function given to `strategy.run`, not in a jit-compiled one inside it.
With one replica, and outside a replica context, they communicate nothing and compile anywhere.
"""

from typing import Any

import tensorflow as tf


def global_share(weights: tf.Tensor) -> tf.Tensor:
    """This replica's share of the weight of the global batch.

    Replicas rarely hold the same number of real tokens, so the mean of their weighted means is
    not the mean over the global batch. The sum over replicas of `global_share * local mean` is,
    and so is the sum of the gradients of these products.

    Args:
        weights: float, integer or bool tensor of any shape, the weights of a local mean.

    Returns:
        float32 scalar between 0 and 1. It is 1 with one replica, 0 if no replica has weight.

    Example:
    ```python
    weights = tf.constant([1.0, 0.0])
    loss = global_share(weights) * masked_lm_loss(tf.zeros([2, 8]), tf.constant([3, 5]), weights)
    ```
    """
    local = tf.reduce_sum(tf.cast(weights, tf.float32))
    return tf.math.divide_no_nan(local, sum_over_replicas(local))


def sum_over_replicas(tensors: Any) -> Any:
    """Adds up the replicas' tensors, in replica context.

    Args:
        tensors: A tensor or a structure of tensors, of the same shapes on every replica.

    Returns:
        The same structure, with the same sums on every replica.

    Example:
    ```python
    sum_over_replicas(tf.constant(2.0))  # 2.0 with one replica, 8.0 with four
    ```
    """
    context = _context_of_several_replicas()
    if context is None:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def gather_over_replicas(tensors: Any) -> Any:
    """Concatenates the replicas' tensors along their first axis, in replica context.

    Gradients flow through it to the replica that a row came from, summed over all replicas'
    losses.

    Args:
        tensors: A tensor or a structure of tensors of shape `[B, ...]`.

    Returns:
        The same structure of `[B * replicas, ...]`, the same on every replica.

    Example:
    ```python
    gather_over_replicas(tf.ones([2, 3]))  # [2, 3] with one replica, [8, 3] with four
    ```
    """
    context = _context_of_several_replicas()
    if context is None:
        return tensors
    return context.all_gather(tensors, axis=0)


def _context_of_several_replicas() -> tf.distribute.ReplicaContext | None:
    context = tf.distribute.get_replica_context()  # None in cross-replica context
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context

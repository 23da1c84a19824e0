"""Communication between replicas, kept apart from the mathematics of the losses.

All of it is all-reduces, which XLA compiles on TPUs and GPUs (of a gather it has no kernel there).
On CPUs it compiles none, so there these functions belong in the function given to `strategy.run`,
not in a jit-compiled one inside it, nor in a loop. With one replica, and outside a replica context,
they communicate nothing and compile anywhere.
"""

from typing import Any

import tensorflow as tf

# Gradients are sent in packs of this size as soon as they are there, while the backward pass goes
# on. Smaller ones would leave the time of a message, not its length, to wait for.
BYTES_PER_PACK = 32 * 2**20


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

    Several tensors are sent in packs of some `BYTES_PER_PACK`, the last tensors first.

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
    packs = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=BYTES_PER_PACK)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors, packs)


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
    own = tf.equal(tf.range(context.num_replicas_in_sync), context.replica_id_in_sync_group)

    def place(rows: tf.Tensor) -> tf.Tensor:
        """`rows` where they stand in the whole, zeros elsewhere: the same program on each."""
        mask = tf.reshape(own, [-1] + [1] * rows.shape.rank)
        placed = tf.where(mask, rows, tf.zeros([], rows.dtype))
        return tf.reshape(placed, tf.concat([[-1], tf.shape(rows)[1:]], axis=0))

    return sum_over_replicas(tf.nest.map_structure(place, tensors))


def compiles_communication(strategy: tf.distribute.Strategy) -> bool:
    """Whether a step with all of this in it may be given to XLA: `tf.function(jit_compile=True)`.

    Args:
        strategy: the replicas.

    Returns:
        True of one replica, and of the GPUs of one host. A TPU's strategy compiles by itself.

    Example:
    ```python
    compiles_communication(tf.distribute.get_strategy())  # True
    ```
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return True
    devices = strategy.extended.worker_devices  # of this host
    return len(devices) == replicas and all(_is_gpu_device(device) for device in devices)


def _is_gpu_device(device: str) -> bool:
    return tf.DeviceSpec.from_string(device).device_type == "GPU"


def _context_of_several_replicas() -> tf.distribute.ReplicaContext | None:
    context = tf.distribute.get_replica_context()  # None in cross-replica context
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context

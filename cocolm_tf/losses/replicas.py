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


def sum_over_replicas(tensors: Any) -> Any:
    """Adds up the replicas' tensors, in replica context."""
    # Several tensors are sent in packs of some `BYTES_PER_PACK`, the last tensors first.
    context = _context_of_several_replicas()
    if context is None:
        return tensors
    packs = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=BYTES_PER_PACK)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors, packs)


def gather_over_replicas(tensors: Any, replica: tf.Tensor | int | None = None) -> Any:
    """Concatenates the replicas' tensors along their first axis, in replica context."""
    # Gradients flow through it to the replica that a row came from, summed over all replicas'
    # losses. `replica` is the own number, as a tensor where it must not be part of the program.
    context = _context_of_several_replicas()
    if context is None:
        return tensors
    if replica is None:
        replica = context.replica_id_in_sync_group
    own = tf.equal(tf.range(context.num_replicas_in_sync), replica)

    def place(rows: tf.Tensor) -> tf.Tensor:
        """`rows` at their place in the whole, zeros elsewhere: the same program on each replica."""
        mask = tf.reshape(own, [-1] + [1] * rows.shape.rank)
        placed = tf.where(mask, rows, tf.zeros([], rows.dtype))
        return tf.reshape(placed, tf.concat([[-1], tf.shape(rows)[1:]], axis=0))

    return sum_over_replicas(tf.nest.map_structure(place, tensors))


def compiles_communication(strategy: tf.distribute.Strategy) -> bool:
    """Whether XLA can compile a step with this in it: on one replica, or one host's GPUs."""
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

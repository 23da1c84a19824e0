"""The devices that a run is spread over."""

import tensorflow as tf
from official.common import distribute_utils

from cocolm_tf.errors import UserError

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")


def make_strategy(name: str, tpu: str = "") -> tf.distribute.Strategy:
    """Makes the distribution strategy that a flag names.

    Args:
        name: one of `STRATEGIES`. Without a GPU, `mirrored` takes the logical CPUs.
        tpu: the address of a TPU, or `local`, for `tpu`.

    Returns:
        The strategy.

    Raises:
        UserError: if the name is unknown or its devices are not there.

    Example:
    ```python
    with make_strategy("one_device").scope():
        pretrainer = build_pretrainer(config, mask_token_id)
    ```
    """
    if name not in STRATEGIES:
        raise UserError(f"--distribution_strategy is one of {', '.join(STRATEGIES)}, not {name!r}.")
    if name == "tpu" and not tpu:
        raise UserError("--distribution_strategy=tpu needs --tpu=ADDRESS, or --tpu=local.")
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    gpus = len(tf.config.list_logical_devices("GPU"))
    try:
        return distribute_utils.get_distribution_strategy(
            name, num_gpus=min(gpus, 1) if name == "one_device" else gpus, tpu_address=tpu or None
        )
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(f"--distribution_strategy={name}: {error}") from error


def per_replica_batch(batch_size: int, micro_batches: int, strategy: tf.distribute.Strategy) -> int:
    """One replica's share of the global batch.

    Raises:
        UserError: if the batch cannot be shared out evenly.

    Example:
    ```python
    per_replica_batch(2048, micro_batches=4, strategy=make_strategy("one_device"))
    ```
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % (replicas * micro_batches):
        raise UserError(
            f"trainer.batch_size={batch_size} does not divide into {replicas} replicas of "
            f"{micro_batches} micro-batches: make it a multiple of {replicas * micro_batches}."
        )
    return batch_size // replicas

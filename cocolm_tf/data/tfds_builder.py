"""Prepared datasets of TensorFlow Datasets."""

from typing import Any

from cocolm_tf.errors import UserError


def prepared_builder(name: str, data_dir: str | None = None) -> Any:
    """The builder of a dataset, e.g. "glue/rte", prepared; UserError where that fails."""
    # Slow to import, and most sources do without it.
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f"TensorFlow Datasets has no dataset {name!r}: {first_line(error)}"
        ) from error
    try:
        builder.download_and_prepare()
    # Some datasets need packages of their own to be prepared.
    except (OSError, ImportError, tfds.download.DownloadError, tf.errors.OpError) as error:
        raise UserError(f"dataset {name!r} cannot be prepared: {first_line(error)}") from error
    return builder


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

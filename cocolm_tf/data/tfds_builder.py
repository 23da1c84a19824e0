"""Datasets of TensorFlow Datasets, ready to read."""

from typing import Any

from cocolm_tf.errors import UserError


def prepared_builder(name: str, data_dir: str | None = None) -> Any:
    """Finds a dataset and makes sure that it is on this machine.

    Args:
        name: The dataset, as `tfds.builder` takes it, e.g. `"glue/rte"`.
        data_dir: Where TensorFlow Datasets keeps its files; None for its default.

    Returns:
        The `tfds.core.DatasetBuilder`, downloaded and prepared.

    Raises:
        UserError: If there is no such dataset, or it cannot be downloaded.

    Example:
    ```python
    prepared_builder("glue/rte").as_dataset(split="validation")
    ```
    """
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
    """What an exception says, on one line.

    Example:
    ```python
    first_line(ValueError("no such dataset\\nTry another."))  # "no such dataset"
    ```
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]

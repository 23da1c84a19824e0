"""What a fine-tuning run of a text classifier is."""

import dataclasses
from typing import Any

from cocolm_tf.data.examples import TaskData
from cocolm_tf.data.glue import read_glue
from cocolm_tf.data.table_task import read_table_task

_READERS = {"glue": read_glue, "table": read_table_task}


@dataclasses.dataclass(frozen=True)
class ClassificationRun:
    """What a run is: the `spec` of its job.

    Args:
        preset: The folder of the encoder to start from.
        preset_fingerprint: What `presets.fingerprint` says of it.
        data: The arguments of `read_glue` as `{"glue": {...}}`, or of `read_table_task` as
            `{"table": {...}}`.
        config: A `FinetuningConfig` as a dict.
        seed: Decides the head, dropout, the order of the examples, and which of them are used.
        train_fraction: The share of the training examples to learn from.
        from_scratch: Whether to start from random weights in the preset's architecture.
        save_preset: Whether to keep the model.

    Example:
    ```python
    ClassificationRun("runs/first/preset", "", {"glue": {"task": "rte"}}, config.as_dict())
    ```
    """

    preset: str
    preset_fingerprint: str
    data: dict[str, dict[str, Any]]
    config: dict[str, Any]
    seed: int = 0
    train_fraction: float = 1.0
    from_scratch: bool = False
    save_preset: bool = True


def read_task(data: dict[str, dict[str, Any]]) -> TaskData:
    """Reads what a `ClassificationRun`'s `data` names.

    Raises:
        UserError: if a file is missing or is not what it should be.

    Example:
    ```python
    read_task({"glue": {"task": "rte", "data_dir": "glue_data"}})
    ```
    """
    ((kind, arguments),) = data.items()
    return _READERS[kind](**arguments)

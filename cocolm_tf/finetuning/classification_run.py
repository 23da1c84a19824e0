"""What a fine-tuning run of a text classifier is."""

import dataclasses
from typing import Any, ClassVar

from cocolm_tf.data.examples import TaskData
from cocolm_tf.data.glue import glue_files, read_glue
from cocolm_tf.data.table_task import read_table_task
from cocolm_tf.finetuning.run import Run

_READERS = {"glue": read_glue, "table": read_table_task}
_TABLES = ("train_file", "dev_file", "test_file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationRun(Run):
    """What a run is: the `spec` of its job.

    Args:
        data: The arguments of `read_glue` as `{"glue": {...}}`, or of `read_table_task` as
            `{"table": {...}}`.
        **kwargs: As for `Run`.

    Example:
    ```python
    ClassificationRun(
        preset="runs/first/preset", config=config.as_dict(), data={"glue": {"task": "rte"}}
    )
    ```
    """

    module: ClassVar[str] = "cocolm_tf.finetuning.classification"

    data: dict[str, dict[str, Any]]

    @property
    def has_leaderboard(self) -> bool:
        """Whether it is a task of GLUE."""
        return "glue" in self.data

    def read(self) -> TaskData:
        """Reads the examples.

        Raises:
            UserError: If a file is missing or is not what it should be.
        """
        ((kind, arguments),) = self.data.items()
        return _READERS[kind](**arguments)

    def files_read(self) -> list[str]:
        """The paths of the files that it reads."""
        ((kind, arguments),) = self.data.items()
        if kind == "glue":
            return glue_files(arguments["task"], arguments.get("data_dir"))
        return [arguments[name] for name in _TABLES if arguments.get(name)]

    def check(self) -> str:
        """Reads the data, so that a mistake in it is told before any process starts."""
        return self.read().name

"""What all fine-tuning runs have in common."""

import dataclasses
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is: the `spec` of its job. Every kind of task derives its own.

    Args:
        preset: The folder of the encoder to start from.
        config: A `FinetuningConfig` as a dict.
        preset_fingerprint: What `fingerprint` says of the preset.
        content_fingerprints: What `content_fingerprints` says of the files that it reads.
        seed: Decides the head, dropout, the order of the examples, and which of them are used.
        train_fraction: The share of the training examples to learn from.
        from_scratch: Whether to start from random weights in the preset's architecture.
        save_preset: Whether to keep the model.

    Example:
    ```python
    ClassificationRun(
        preset="runs/first/preset", config=config.as_dict(), data={"glue": {"task": "rte"}}
    )
    ```
    """

    module: ClassVar[str]
    """The module whose processes do such runs; see `jobs`."""

    preset: str
    config: dict[str, Any]
    preset_fingerprint: str = ""
    content_fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    train_fraction: float = 1.0
    from_scratch: bool = False
    save_preset: bool = True

    def check(self) -> str:
        """Reads the data, so that a mistake in it is told before any process starts.

        Returns:
            What the task is called.

        Raises:
            UserError: If a file is missing or is not what it should be.
        """
        raise NotImplementedError

    def files_read(self) -> list[str]:
        """The paths of the files that it reads; none of a dataset that has a version of its own."""
        raise NotImplementedError

    @property
    def has_leaderboard(self) -> bool:
        """Whether its predictions are for a leaderboard."""
        return False

    @property
    def start(self) -> str:
        """What its model starts from, for people."""
        return "random weights" if self.from_scratch else self.preset

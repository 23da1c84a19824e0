"""What a run of prompt-based fine-tuning is."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptRun:
    """What a run is: the `spec` of its job.

    Args:
        preset: The folder of the pretrained model.
        config: A `PromptConfig` as a dict.
        task: One of `GLUE_TASKS`.
        template: As for `Template`.
        words: For every class its label words.
        data_dir: As for `read_glue`.
        shots: How many examples of each class to learn from, and as many to choose by.
        learning_rate: The peak: one of those in `config`.
        preset_fingerprint: What `fingerprint` says of the preset.
        content_fingerprints: What `content_fingerprints` says of the files that it reads.
        seed: Decides which examples these are, and everything else.

    Example:
    ```python
    PromptRun(
        preset="runs/first/preset",
        config=config.as_dict(),
        task="sst2",
        template="{first} It was {mask} .",
        words=[["terrible"], ["great"]],
        learning_rate=3e-6,
    )
    ```
    """

    preset: str
    config: dict[str, Any]
    task: str
    template: str
    words: Sequence[Sequence[str]]
    data_dir: str | None = None
    shots: int = 16
    learning_rate: float = 0.0
    preset_fingerprint: str = ""
    content_fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0

"""What a run of prompt-based fine-tuning is."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class PromptRun:
    """What a run is: the `spec` of its job.

    Args:
        preset: The folder of the pretrained model.
        preset_fingerprint: What `presets.fingerprint` says of it.
        task: One of `GLUE_TASKS`.
        data_dir: As for `read_glue`.
        template: As for `Template`.
        words: For every class its label words.
        config: A `PromptConfig` as a dict.
        learning_rate: The peak.
        shots: How many examples of each class to learn from, and as many to choose by.
        seed: Decides which examples these are, and everything else.

    Example:
    ```python
    PromptRun("runs/first/preset", "", "sst2", None, "{first} It was {mask} .", words, {}, 3e-6)
    ```
    """

    preset: str
    preset_fingerprint: str
    task: str
    data_dir: str | None
    template: str
    words: Sequence[Sequence[str]]
    config: dict[str, Any]
    learning_rate: float
    shots: int = 16
    seed: int = 0

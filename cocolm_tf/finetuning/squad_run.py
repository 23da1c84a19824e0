"""What a fine-tuning run of a question answerer is."""

import dataclasses
from typing import Any

from cocolm_tf.data.squad import TFDS_NAME, Question, load_squad_from_tfds, read_squad
from cocolm_tf.errors import UserError

_TFDS_SPLITS = {"train": "train", "dev": "validation"}


@dataclasses.dataclass(frozen=True)
class SquadRun:
    """What a run is: the `spec` of its job.

    Args:
        preset: The folder of the encoder to start from.
        config: A `FinetuningConfig` as a dict.
        preset_fingerprint: What `presets.fingerprint` says of the preset.
        files: The JSON files by their parts, `train` and `dev`; empty for TFDS.
        stride: See `CocoLMQuestionAnswererPreprocessor`.
        max_question_length: See `CocoLMQuestionAnswererPreprocessor`.
        max_answer_length: See `CocoLMQuestionAnswerer`.
        n_best: See `CocoLMQuestionAnswerer`.
        seed: Decides the head, dropout and the order of the windows.
        from_scratch: Whether to start from random weights in the preset's architecture.
        save_preset: Whether to keep the model.

    Example:
    ```python
    files = {"train": "train-v2.0.json", "dev": "dev-v2.0.json"}
    SquadRun("runs/first/preset", config.as_dict(), files=files)
    ```
    """

    preset: str
    config: dict[str, Any]
    preset_fingerprint: str = ""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    stride: int | None = None
    max_question_length: int | None = None
    max_answer_length: int | None = None
    n_best: int = 20
    seed: int = 0
    from_scratch: bool = False
    save_preset: bool = True


def read_questions(run: SquadRun, part: str) -> list[Question]:
    """Reads what a run learns from or is measured on.

    Args:
        run: The run.
        part: `train` or `dev`.

    Returns:
        The questions.

    Raises:
        UserError: If a file is missing or is not what it should be.

    Example:
    ```python
    read_questions(run, "dev")
    ```
    """
    if not run.files:
        return load_squad_from_tfds(_TFDS_SPLITS[part])
    questions = read_squad(run.files[part])
    if all(question.span is None for question in questions):
        raise UserError(
            f"{run.files[part]}: no answer is where its answer_start says, in characters of the "
            "context."
        )
    return questions


def source(run: SquadRun, part: str) -> str:
    """Says where a part comes from.

    Example:
    ```python
    source(run, "dev")  # "dev-v2.0.json"
    ```
    """
    return run.files[part] if run.files else f"{TFDS_NAME} ({_TFDS_SPLITS[part]})"

"""What a fine-tuning run of a question answerer is."""

import dataclasses
from typing import ClassVar

from cocolm_tf.data.squad import TFDS_NAME, Question, load_squad_from_tfds, read_squad
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.run import Run

_TFDS_SPLITS = {"train": "train", "dev": "validation"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadRun(Run):
    """What a run is: the `spec` of its job.

    Args:
        files: The JSON files by their parts, `train` and `dev`; empty for TFDS.
        stride: See `CocoLMQuestionAnswererPreprocessor`.
        max_question_length: See `CocoLMQuestionAnswererPreprocessor`.
        max_answer_length: See `CocoLMQuestionAnswerer`.
        n_best: See `CocoLMQuestionAnswerer`.
        **kwargs: As for `Run`.

    Example:
    ```python
    files = {"train": "train-v2.0.json", "dev": "dev-v2.0.json"}
    SquadRun(preset="runs/first/preset", config=config.as_dict(), files=files)
    ```
    """

    module: ClassVar[str] = "cocolm_tf.finetuning.squad"

    files: dict[str, str] = dataclasses.field(default_factory=dict)
    stride: int | None = None
    max_question_length: int | None = None
    max_answer_length: int | None = None
    n_best: int = 20

    def read(self, part: str) -> list[Question]:
        """Reads what the run learns from or is measured on.

        Args:
            part: `train` or `dev`.

        Returns:
            The questions.

        Raises:
            UserError: If a file is missing or is not what it should be.
        """
        if not self.files:
            return load_squad_from_tfds(_TFDS_SPLITS[part])
        questions = read_squad(self.files[part])
        if all(question.span is None for question in questions):
            raise UserError(
                f"{self.files[part]}: no answer is where its answer_start says, in characters of "
                "the context."
            )
        return questions

    def source(self, part: str) -> str:
        """Says where a part comes from."""
        return self.files[part] if self.files else f"{TFDS_NAME} ({_TFDS_SPLITS[part]})"

    def files_read(self) -> list[str]:
        """The paths of the files that it reads."""
        return list(self.files.values())

    def check(self) -> str:
        """Reads the data, so that a mistake in it is told before any process starts."""
        for part in _TFDS_SPLITS:
            self.read(part)
        return "SQuAD"

"""The tasks of SuperGLUE, each as the classification of texts."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.examples import TaskData
from cocolm_tf.data.superglue import (
    SUPERGLUE_TASKS,
    SuperGlueData,
    chosen,
    leaderboard_lines,
    read_superglue,
    superglue_files,
    superglue_scores,
)
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.predictions import leave_predictions
from cocolm_tf.finetuning.tasks.classification import ClassificationTask, PreparedClassification
from cocolm_tf.training.model_card import Facts


class SuperGlueClassificationTask(ClassificationTask):
    """A run on a task of SuperGLUE, as the classification of texts.

    Args:
        data: `{"superglue": {"task": ..., "data_dir": ...}}`, the arguments of
            `cocolm_tf.data.superglue.read_superglue`.
        **kwargs: As for `ClassificationTask`.

    Example:
    ```python
    data = {"superglue": {"task": "copa", "data_dir": "superglue"}}
    SuperGlueClassificationTask(preset="runs/first/preset", config=config.as_dict(), data=data)
    ```
    """

    family: ClassVar[str] = "superglue"

    @property
    def has_leaderboard(self) -> bool:
        return True

    def read(self) -> SuperGlueData:
        return read_superglue(**self.data["superglue"])

    def files_read(self) -> list[str]:
        return superglue_files(**self.data["superglue"])

    def metrics_of(self, data: TaskData) -> tuple[str, ...]:
        if self.metric and self.metric not in data.metrics:
            raise UserError(
                f"--metric={self.metric}: that of {data.name} is one of {', '.join(data.metrics)}."
            )
        return tuple(dict.fromkeys((self.metric or data.metrics[0], *data.metrics)))

    def drawn(self, data: SuperGlueData) -> np.ndarray:
        """The rows of whole questions, as a question's candidates belong together."""
        rows = data.rows["train"]
        if rows.num_groups == len(data.train):
            return super().drawn(data)
        generator = np.random.default_rng(self.seed)
        count = max(1, round(self.train_fraction * rows.num_groups))
        kept = generator.permutation(rows.num_groups)[:count]
        return np.flatnonzero(np.isin(rows.groups, kept))

    def predicted(self, data: SuperGlueData, part: str, shares: np.ndarray) -> np.ndarray:
        """The class of each row; of a question's candidates, 1 for the one that is chosen."""
        if SUPERGLUE_TASKS[data.key].chooses:
            return chosen(data.rows[part], shares[:, 1])
        return super().predicted(data, part, shares)

    def evaluated(
        self, data: SuperGlueData, part: str, predictions: np.ndarray
    ) -> dict[str, float]:
        if SUPERGLUE_TASKS[data.key].chooses and not predictions.any():
            # The baseline, which predicts that no candidate is right, takes the first one.
            predictions = chosen(data.rows[part], np.zeros(len(predictions)))
        scores = superglue_scores(data, part, data.dev[part].labels, predictions)
        return {name: scores[name] for name in self.metrics_of(data)}

    def left(
        self, folder: str, shares: Mapping[str, np.ndarray], data: TaskData, decide: Any = None
    ) -> dict[str, Any]:
        """Writes the files of predictions, those of test sets in the leaderboard's format."""

        def write(predictions: str, part: str, of_part: np.ndarray) -> None:
            files.make_dirs(predictions)
            found = self.predicted(data, part, of_part)
            lines = leaderboard_lines(data.key, data.rows[part], found)
            files.write_text(os.path.join(predictions, f"{part}.jsonl"), "".join(lines))

        return leave_predictions(folder, shares, data, write=write)

    def prepare(self, config: FinetuningConfig) -> "PreparedSuperGlue":
        return PreparedSuperGlue(self, config)


class PreparedSuperGlue(PreparedClassification):
    """A classifier that is ready to train on a task of SuperGLUE."""

    def facts(self, results: Mapping[str, Any]) -> Facts:
        facts = super().facts(results)
        return dataclasses.replace(facts, datasets=("aps/super_glue",), languages=("en",))

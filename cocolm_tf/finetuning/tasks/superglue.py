"""The tasks of SuperGLUE, each as the classification of texts."""

import dataclasses
import os
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
from cocolm_tf.finetuning.metrics import predicted
from cocolm_tf.finetuning.tasks.classification import (
    PREDICTIONS_DIRECTORY,
    PreparedClassification,
    TextTask,
)


class SuperGlueClassificationTask(TextTask):
    """A run on a task of SuperGLUE; `data` has the arguments of `read_superglue`.

    Example:
    ```python
    data = {"superglue": {"task": "copa", "data_dir": "superglue"}}
    SuperGlueClassificationTask(preset="runs/first/preset", config=config.as_dict(), data=data)
    ```
    """

    family: ClassVar[str] = "superglue"

    @property
    def has_leaderboard(self) -> bool:
        """Whether its predictions are for a leaderboard."""
        return True

    def read(self) -> SuperGlueData:
        """Reads the examples."""
        return read_superglue(**self.data["superglue"])

    def files_read(self) -> list[str]:
        """The paths of the files that it reads."""
        return superglue_files(**self.data["superglue"])

    def metrics_of(self, data: TaskData) -> tuple[str, ...]:
        """The metrics of the task, the one to choose by first."""
        if self.metric and self.metric not in data.metrics:
            raise UserError(
                f"--metric={self.metric}: that of {data.name} is one of {', '.join(data.metrics)}."
            )
        return tuple(dict.fromkeys((self.metric or data.metrics[0], *data.metrics)))

    def drawn(self, data: SuperGlueData) -> np.ndarray:
        """Whole questions: their candidates belong together."""
        rows = data.rows["train"]
        if rows.num_groups == len(data.train):
            return super().drawn(data)
        generator = np.random.default_rng(self.seed)
        count = max(1, round(self.train_fraction * rows.num_groups))
        kept = generator.permutation(rows.num_groups)[:count]
        return np.flatnonzero(np.isin(rows.groups, kept))

    def prepare(self, config: FinetuningConfig) -> "PreparedSuperGlue":
        """Reads the data and builds the model."""
        return PreparedSuperGlue(self, config)


class PreparedSuperGlue(PreparedClassification):
    """A classifier that is ready to train on a task of SuperGLUE."""

    _data: SuperGlueData

    def _predicted(self, part: str, outputs: np.ndarray) -> np.ndarray:
        if SUPERGLUE_TASKS[self._data.key].chooses:
            return chosen(self._data.rows[part], outputs[:, 1] - outputs[:, 0])
        return predicted(outputs)

    def _evaluated(self, part: str, predictions: np.ndarray) -> dict[str, float]:
        data = self._data
        if SUPERGLUE_TASKS[data.key].chooses and not predictions.any():
            # Who guesses that nothing is right takes the first candidate.
            predictions = chosen(data.rows[part], np.zeros(len(predictions)))
        scores = superglue_scores(data, part, data.dev[part].labels, predictions)
        return {name: scores[name] for name in self._metrics}

    def _write(self, folder: str, part: str, outputs: np.ndarray) -> None:
        data = self._data
        path = os.path.join(folder, PREDICTIONS_DIRECTORY, f"{part}.jsonl")
        predictions = self._predicted(part, outputs)
        files.make_dirs(os.path.dirname(path))
        lines = leaderboard_lines(data.key, data.rows[part], predictions)
        files.write_text(path, "".join(lines))

    def facts(self, results: Any) -> Any:
        """What the model card says."""
        facts = super().facts(results)
        return dataclasses.replace(facts, datasets=("aps/super_glue",), languages=("en",))

"""Training that keeps the best epoch's weights."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from cocolm_tf.finetuning.jobs import Reporter
from cocolm_tf.finetuning.results import Scores


class BestEpoch(keras.callbacks.Callback):
    """Measures the model after every epoch, keeps the weights of the best, and tells how far it is.

    Args:
        measure: Gives the scores of the model as it is, and the one to choose by; it raises
            `FloatingPointError` where the outputs are not finite, which ends the training.
        epochs: int.
        steps: int. Of an epoch.
        rows: int. Training examples of an epoch.
        reporter: Is told.

    Example:
    ```python
    best = BestEpoch(measure, epochs=3, steps=100, rows=1600, reporter=Reporter())
    classifier.fit(batches, steps_per_epoch=100, epochs=3, callbacks=[best], verbose=0)
    best.restore()
    ```
    """

    def __init__(
        self,
        measure: Callable[[], tuple[Scores, float]],
        epochs: int,
        steps: int,
        rows: int,
        reporter: Reporter,
    ) -> None:
        super().__init__()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.diverged = False
        self._measure = measure
        self._epochs, self._steps, self._rows = epochs, steps, rows
        self._reporter = reporter
        self._weights: list[np.ndarray] = []
        self._epoch = 0
        self._started = self._first_step_ended = 0.0
        self._seconds = 0.0

    @property
    def examples_per_second(self) -> float:
        """How fast it learned, measuring and the first step, which compiles, left out."""
        steps = self._epochs_done * self._steps - 1
        rows = self._rows / self._steps * steps
        return rows / self._seconds if self._seconds else 0.0

    @property
    def _epochs_done(self) -> int:
        return len(self.history) + self.diverged

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._epoch = epoch
        self._started = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells."""
        if self._epoch == batch == 0:
            self._started = time.monotonic()
        score = f", dev {self.best['score']:.3f}" if self.best else ""
        self._reporter.progress(
            (self._epoch * self._steps + batch + 1) / (self._epochs * self._steps),
            f"epoch {self._epoch + 1}/{self._epochs}, loss {float(logs['loss']):.3f}{score}",
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, and keeps what is better."""
        self._seconds += time.monotonic() - self._started
        try:
            scores, score = self._measure()
        except FloatingPointError:
            self.diverged = True
            self.model.stop_training = True
            return
        entry = {"epoch": epoch + 1, "loss": float(logs["loss"]), "score": score, "dev": scores}
        self.history.append(entry)
        if self.best is None or score > self.best["score"]:
            self.best = entry
            self._weights = [np.array(variable) for variable in self.model.trainable_variables]

    def restore(self) -> None:
        """Gives the model the weights of its best epoch."""
        for variable, value in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(value)

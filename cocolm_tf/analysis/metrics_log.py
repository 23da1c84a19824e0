"""A run's logged metrics by split and step, and when each line was written."""

import dataclasses
import json
import os

import numpy as np

from cocolm_tf import files
from cocolm_tf.errors import UserError

METRICS_FILENAME = "metrics.jsonl"
TRAINING, VALIDATION = "train", "validation"


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The log of a run."""

    # from each split, `train` and `validation`, its lines in the order of their steps.
    lines: dict[str, list[dict[str, float]]]

    def series(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """The steps at which a metric was logged, and its values there."""
        found = [(line["step"], line[name]) for line in self.lines[split] if name in line]
        return [step for step, _ in found], [value for _, value in found]

    def final(self) -> tuple[str, dict[str, float]]:
        """The last validation line, or the last training line of a run without validation."""
        split = VALIDATION if self.lines[VALIDATION] else TRAINING
        return split, self.lines[split][-1]

    @property
    def last_step(self) -> int:
        """The last step with a logged metric."""
        return max(lines[-1]["step"] for lines in self.lines.values() if lines)

    @property
    def seconds(self) -> float:
        """The duration of the run in seconds, summed over the attempts of a resumed one."""
        return max(times[-1] for split in self.lines if len(times := self.elapsed(split)))

    def elapsed(self, split: str) -> np.ndarray:
        """When each line of a split was logged, in seconds since the run began."""
        logged = sorted((line for lines in self.lines.values() for line in lines), key=_order)
        total = before = 0.0
        times = {}
        for line in logged:
            # Each attempt counts from 0.
            total += line["seconds"] - (before if line["seconds"] >= before else 0.0)
            before = line["seconds"]
            times[id(line)] = total
        return np.array([times[id(line)] for line in self.lines[split]])


def read_metrics(model_dir: str) -> Metrics:
    """Reads the log of a run, which may be unfinished."""
    path = os.path.join(model_dir, METRICS_FILENAME)
    if not files.is_file(path):
        raise UserError(
            f"{model_dir} has no {METRICS_FILENAME}: give the --model_dir of a pretraining run."
        )
    lines: dict[str, list[dict[str, float]]] = {TRAINING: [], VALIDATION: []}
    # What follows the last end of a line is being written.
    for number, text in enumerate(files.read_text(path).split("\n")[:-1], start=1):
        try:
            line = dict(json.loads(text))
            # null stands for what was not finite.
            values = {name: value for name, value in line.items() if value is not None}
            lines[line["split"]].append(values | {"step": int(line["step"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}, is not a line of metrics: it must be a JSON object "
                "with step, split (train or validation) and numbers."
            ) from error
    if not any(lines.values()):
        raise UserError(f"{path} has no lines yet: wait for the run's first log_interval.")
    for of_split in lines.values():
        of_split.sort(key=lambda line: line["step"])
    return Metrics(lines)


def _order(line: dict[str, float]) -> tuple[int, float]:
    return line["step"], line["seconds"]

"""The identity of a run: which settings may change when it is resumed, and which did.

A model directory has `history.json`, a list of segments: from which step on which settings held.
Resuming compares with the segment that trained the checkpoint. Settings that only decide how far,
how fast and how observed a run is may differ, and begin a new segment; all others define what the
checkpoint is, and changes of them are refused.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.data.pipeline import parse_mixture
from cocolm_tf.data.shards import resolve_shards
from cocolm_tf.errors import UserError
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.training.checkpoints import checkpoint_steps
from cocolm_tf.training.config import PretrainingConfig, decay_steps, load_config
from cocolm_tf.training.stages import stage_ends

# The name of its key before it was "segments".
_OLD_KEY = "stretches"
HISTORY_FILENAME = "history.json"

# Keys, or sections with a dot, that may change. The learning rate and the like do on purpose.
_MAY_CHANGE = (
    "model.rematerialize",
    "data.verify_checksums",
    "data.skip_corrupt",
    "optimizer.learning_rate",
    "optimizer.end_learning_rate",
    "optimizer.warmup_steps",
    "optimizer.warmup_tokens",
    "optimizer.schedule",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.sharded",
    "trainer.",
    "runtime.",
    "--validation_data",
    "replicas",
)
# Keys of these sections that must stay all the same.
_MUST_STAY = (
    "trainer.batch_size",
    "trainer.batch_size_schedule",
    "trainer.decay_from",
    "trainer.ema_decay",
    "runtime.seed",
)
# Keys that decide where stages end. Stages that were trained must stay.
_STAGES = ("trainer.train_steps", "trainer.steps_per_loop")
_SCHEDULES = ("data.sequence_length_schedule", "trainer.batch_size_schedule")
# Paths of files that are compared by their content instead.
_PATHS = ("auxiliary.preset",)


@dataclasses.dataclass(frozen=True)
class Input:
    """A dataset, vocabulary or preset of a run; equal if the contents are, whatever the path."""

    path: str = dataclasses.field(compare=False)  # As it was given, for people
    fingerprint: str  # Of its content

    def __str__(self) -> str:
        return f"{self.path} ({self.fingerprint[:8]})" if self.path else "none"


@dataclasses.dataclass(frozen=True)
class Segment:
    """The settings and inputs of a run from a step on."""

    step: int  # The steps that were done before
    settings: Mapping[str, Any]  # The configuration by its full keys, and `replicas`
    inputs: Mapping[str, Input]  # By the flags that name them

    def changes_from(self, before: "Segment") -> dict[str, tuple[Any, Any]]:
        """The differences from an earlier segment, by key: the old value and the new one."""
        changes = {}
        # A key that the record lacks is younger than the record: it had its default then.
        defaults = flat(PretrainingConfig().as_dict())
        for key, value in self.settings.items():
            old = before.settings.get(key, defaults.get(key, value))
            if key not in _PATHS and old != value:
                changes[key] = (old, value)
        for name, given in self.inputs.items():
            if name in before.inputs and before.inputs[name] != given:
                changes[name] = (before.inputs[name], given)
        return changes


def segment_of(
    config: PretrainingConfig,
    train_data: str,
    vocabulary: Input,
    validation_data: str = "",
    init_preset: str = "",
    replicas: int = 1,
) -> Segment:
    """The segment of a run that is asked for."""
    return Segment(
        0,
        flat(config.as_dict()) | {"replicas": replicas},
        {
            "--train_data": Input(train_data, dataset_fingerprint(train_data)),
            "--vocabulary": vocabulary,
            "--validation_data": Input(validation_data, dataset_fingerprint(validation_data)),
            "--init_preset": _preset_input(init_preset),
            "auxiliary.preset": _preset_input(config.auxiliary.preset),
        },
    )


def dataset_fingerprint(datasets: str) -> str:
    """SHA-256 of the manifests, weights and order of datasets; empty for none."""
    if not datasets:
        return ""
    contents = []
    for pattern, weight in parse_mixture(datasets):
        paths, manifest = resolve_shards(pattern)
        contents.append((manifest.fingerprint(paths), weight))
    if len(contents) == 1:
        return contents[0][0]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


class History:
    """The segments of a run, and the run it branched off."""

    def __init__(
        self, model_dir: str, segments: Sequence[Segment] = (), branched_from: str = ""
    ) -> None:
        self.model_dir = model_dir
        self.segments = list(segments)
        self.branched_from = branched_from  # RUN@STEP, until it resumes from its own checkpoint

    @classmethod
    def read(cls, model_dir: str) -> "History":
        """Reads the history of a model directory."""
        path = os.path.join(model_dir, HISTORY_FILENAME)
        config_file = os.path.join(model_dir, "config.yaml")
        if not files.is_file(path):
            if not files.is_file(config_file):
                return cls(model_dir)
            # A run from before there were histories has at least its configuration.
            return cls(model_dir, [Segment(0, flat(load_config(config_file).as_dict()), {})])
        try:
            record = json.loads(files.read_text(path))
            records = record["segments"] if "segments" in record else record[_OLD_KEY]
            segments = [
                Segment(
                    int(record["step"]),
                    dict(record["settings"]),
                    {name: Input(**values) for name, values in record["inputs"].items()},
                )
                for record in records
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): restore it, or give another --model_dir."
            ) from error
        return cls(model_dir, segments)

    @classmethod
    def branch(cls, decay_from: str, model_dir: str) -> "History":
        """The history of another run up to a checkpoint, RUN@STEP, to begin a new run with."""
        run, step = split_decay_from(decay_from)
        asked = f"trainer.decay_from={decay_from}"
        past = cls.read(run)
        if not past.segments:
            raise UserError(f"{asked}: {run} has no config.yaml: give the --model_dir of a run.")
        kept = checkpoint_steps(os.path.join(run, "checkpoints"))
        if step not in kept:
            have = ", ".join(map(str, kept)) or "none"
            raise UserError(
                f"{asked}: {run} has kept checkpoints of these steps: {have}. "
                "trainer.keep_checkpoint_interval has a run keep more."
            )
        config = _config_of(past._before(step))
        begin = config.trainer.train_steps - decay_steps(config)
        if step > begin:
            raise UserError(
                f"{asked}: the learning rate of that run decayed from step {begin} on: give a "
                "checkpoint up to there."
            )
        segments = [one for one in past.segments if one.step < step]
        return cls(model_dir, segments, decay_from)

    def check(self, now: Segment, step: int) -> dict[str, tuple[Any, Any]]:
        """The permitted changes, old and new value by key; refuses the others by name."""
        before = self._before(step)
        if not before or not step:
            return {}
        changes = now.changes_from(before)
        old, new = changes.get("--init_preset", (None, None))
        # A run that has weights needs its preset no more: it may be left out, or be gone.
        if old and (not new.path or (new.path == old.path and not new.fingerprint)):
            del changes["--init_preset"]
        moved = _stages_done(before, step) != _stages_done(now, step)
        refused = {
            key: values
            for key, values in changes.items()
            if not _may_change(key) or (moved and key in _STAGES)
        }
        if self.branched_from:
            refused.pop("trainer.decay_from", None)
        if refused:
            text = ", ".join(f"{key}={old}, not {new}" for key, (old, new) in refused.items())
            if self.branched_from:
                raise UserError(
                    f"trainer.decay_from={self.branched_from} is of a run with {text}: a decay "
                    "continues that run, so give what it was begun with."
                )
            raise UserError(
                f"--model_dir={self.model_dir} stands at step {step} of a run with {text}: "
                "give what it was begun with to go on, or another --model_dir for another run, "
                f"which --init_preset={os.path.join(self.model_dir, 'preset')} starts from its "
                "weights."
            )
        return changes

    def resume(self, now: Segment, step: int) -> list[str]:
        """Records the settings from a step on and drops later segments; returns the changes."""
        changes = self.check(now, step)
        if not step or not self.segments:
            self.segments = [dataclasses.replace(now, step=0)]
            return []
        self.segments = [one for one in self.segments if one.step < step]
        first = self.segments[0]
        self.segments[0] = dataclasses.replace(first, inputs=first.inputs or now.inputs)
        if changes:
            started = {"--init_preset": self.segments[0].inputs["--init_preset"]}
            self.segments.append(Segment(step, now.settings, dict(now.inputs) | started))
        return [_change(key, values) for key, values in changes.items()]

    def save(self) -> None:
        """Writes the record into the model directory, atomically."""
        path = os.path.join(self.model_dir, HISTORY_FILENAME)
        records = [dataclasses.asdict(segment) for segment in self.segments]
        files.write_text(path, json.dumps({"segments": records}, indent=2) + "\n")

    def lines(self, steps: int) -> Iterator[str]:
        """Describes the segments, one a line."""
        ends = [segment.step for segment in self.segments[1:]] + [steps]
        before = None
        for segment, end in zip(self.segments, ends, strict=True):
            changes = segment.changes_from(before) if before else {}
            text = "; ".join(_change(key, values) for key, values in changes.items())
            yield f"steps {segment.step + 1:,} to {end:,}" + (f": {text}" if text else "")
            before = segment

    def _before(self, step: int) -> Segment | None:
        """The segment that trained the checkpoint of a step."""
        return next((one for one in reversed(self.segments) if one.step < step), None)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by their full keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def split_decay_from(decay_from: str) -> tuple[str, int]:
    """RUN and STEP of `trainer.decay_from`, RUN@STEP."""
    run, _, step = decay_from.rpartition("@")
    return run, int(step)


def _config_of(segment: Segment) -> PretrainingConfig:
    """The configuration that held in a segment."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in segment.settings.items():
        section, dot, field = key.partition(".")
        if dot:
            nested.setdefault(section, {})[field] = value
    config = PretrainingConfig()
    config.override(nested, is_strict=False)
    return config


def _stages_done(segment: Segment, step: int) -> list[int]:
    """The ends of the stages that a run has begun by a step, none later than that step."""
    loops = [segment.settings.get(key, 1) for key in _STAGES]
    schedules = (segment.settings.get(key, []) for key in _SCHEDULES)
    return [min(end, step) for schedule in schedules for end in stage_ends(schedule, *loops)]


def _may_change(key: str) -> bool:
    allowed = any(key == one or (one.endswith(".") and key.startswith(one)) for one in _MAY_CHANGE)
    return allowed and key not in _MUST_STAY


def _change(key: str, values: tuple[Any, Any]) -> str:
    return f"{key}: {values[0]} -> {values[1]}"


def _preset_input(preset: str) -> Input:
    return Input(preset, fingerprint(preset) if files.is_dir(preset) else "")

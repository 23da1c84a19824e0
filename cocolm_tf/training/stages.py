"""The stages of a run: steps in a row whose batches are of one shape, each with a step of its own.

A schedule, of sequence lengths or of batch sizes, is a list of shares of the run's steps, each
followed by the value up to there: [0.1, 64, 0.3, 128].
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # It imports this module.
    from cocolm_tf.training.config import PretrainingConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps in a row with batches of one shape."""

    begin: int  # The steps before it
    end: int  # The steps up to its last, that included
    config: PretrainingConfig  # As of a run of such batches alone
    first_sequence: int  # How many sequences of its length come before it


def stages(config: PretrainingConfig) -> list[Stage]:
    """The stages of a run, in their order; one where there is no schedule."""
    data, trainer = config.data, config.trainer
    loops = trainer.train_steps, trainer.steps_per_loop
    schedules = data.sequence_length_schedule, trainer.batch_size_schedule
    ends = {end for schedule in schedules for end in stage_ends(schedule, *loops)}
    found, begin, before = [], 0, 0
    for end in sorted(ends | {trainer.train_steps}):
        length = _value_at(begin, schedules[0], data.sequence_length, *loops)
        size = _value_at(begin, schedules[1], trainer.batch_size, *loops)
        scale = data.sequence_length // length if data.scale_batch_size else 1
        of_stage = copy.deepcopy(config)
        of_stage.data.sequence_length, of_stage.data.sequence_length_schedule = length, []
        of_stage.trainer.batch_size, of_stage.trainer.batch_size_schedule = size * scale, []
        # A smaller batch fits into memory in fewer parts.
        of_stage.trainer.micro_batches = -(-trainer.micro_batches * size // trainer.batch_size)
        found.append(Stage(begin, end, of_stage, before * scale))
        begin, before = end, before + (end - begin) * size
    return found


def stage_ends(schedule: Sequence[float], train_steps: int, steps_per_loop: int) -> list[int]:
    """The steps at which the parts of a schedule end, the last one aside: whole loops."""
    return [
        round(share * train_steps) // steps_per_loop * steps_per_loop for share in schedule[::2]
    ]


def stage_at(run: Sequence[Stage], steps: int) -> Stage:
    """The stage of the step that follows some steps; the last one at the end of the run."""
    return next((stage for stage in run if steps < stage.end), run[-1])


class Total:
    """The sum over the first steps of a run of `of_step`, the amount of a step by its stage."""

    def __init__(
        self, config: PretrainingConfig, of_step: Callable[[PretrainingConfig], float]
    ) -> None:
        self._stages = [(stage.begin, stage.end, of_step(stage.config)) for stage in stages(config)]

    def __call__(self, steps: int) -> float:
        """The sum over so many steps; any after the last stage count as in it."""
        *_, (last, _, rate) = self._stages
        before = sum(
            amount * (min(steps, end) - begin)
            for begin, end, amount in self._stages[:-1]
            if steps > begin
        )
        return before + rate * max(0, steps - last)


def tokens_per_step(config: PretrainingConfig) -> int:
    """The tokens of a step of a stage, padding included."""
    return config.trainer.batch_size * config.data.sequence_length


def resolve_durations(config: PretrainingConfig) -> None:
    """Sets steps from durations in tokens: the fewest with as many, for the run in whole loops."""
    # Padding is included, as everywhere where tokens are counted.
    trainer, optimizer = config.trainer, config.optimizer
    if trainer.train_tokens:
        # The shares of the stages stay, whatever the number of steps.
        loop = trainer.steps_per_loop
        mean = _tokens(config, trainer.train_steps) / trainer.train_steps
        steps = math.ceil(trainer.train_tokens / (mean * loop)) * loop
        while _tokens(config, steps) < trainer.train_tokens:
            steps += loop
        while steps > loop and _tokens(config, steps - loop) >= trainer.train_tokens:
            steps -= loop
        trainer.train_steps = steps
    if optimizer.warmup_tokens:
        tokens = Total(config, tokens_per_step)
        steps = range(trainer.train_steps + 1)
        optimizer.warmup_steps = bisect.bisect_left(steps, optimizer.warmup_tokens, key=tokens)


def schedule_faults(schedule: Sequence[float], what: str) -> Iterator[str]:
    """The faults in a schedule's form."""
    shares, values = schedule[::2], schedule[1::2]
    if (
        len(shares) != len(values)
        or not all(isinstance(share, float) for share in shares)
        or not all(isinstance(value, int) for value in values)
    ):
        yield (
            f"it must be shares of the steps, each followed by a {what}: [0.9, 128] is 128 for 90% "
            "of them."
        )
    elif any(not a < b < 1 for a, b in zip([0.0, *shares], shares, strict=False)):
        yield "shares must grow, between 0 and 1."


def _tokens(config: PretrainingConfig, train_steps: int) -> float:
    """The tokens of a run of another number of steps."""
    config = copy.deepcopy(config)
    config.trainer.train_steps = train_steps
    return Total(config, tokens_per_step)(train_steps)


def _value_at(
    step: int, schedule: Sequence[float], last: int, train_steps: int, steps_per_loop: int
) -> int:
    """The value of a schedule in a step, counted from 0."""
    ends = stage_ends(schedule, train_steps, steps_per_loop)
    return next((v for end, v in zip(ends, schedule[1::2], strict=True) if step < end), last)

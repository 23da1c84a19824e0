"""The stages of a run: a schedule of sequence lengths, each with a step of its own."""

import copy
import dataclasses
from collections.abc import Callable, Sequence

from cocolm_tf.training.config import PretrainingConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps in a row with sequences of one length.

    Args:
        begin: int. The steps before it.
        end: int. The steps up to its last, that included.
        config: what a run of this length alone would have.

    Example:
    ```python
    config = load_config("configs/pretrain/base.yaml", "data.sequence_length_schedule=[0.9,128]")
    [(stage.end, stage.config.data.sequence_length) for stage in stages(config)]
    # [(112500, 128), (125000, 512)]
    ```
    """

    begin: int
    end: int
    config: PretrainingConfig


def stages(config: PretrainingConfig) -> list[Stage]:
    """The stages of a run, in their order; one where there is no schedule.

    Example:
    ```python
    len(stages(PretrainingConfig()))  # 1
    ```
    """
    data, trainer = config.data, config.trainer
    found, begin = [], 0
    ends = stage_ends(data.sequence_length_schedule, trainer.train_steps, trainer.steps_per_loop)
    lengths = data.sequence_length_schedule[1::2]
    for end, length in zip(
        [*ends, trainer.train_steps], [*lengths, data.sequence_length], strict=True
    ):
        of_stage = copy.deepcopy(config)
        of_stage.data.sequence_length, of_stage.data.sequence_length_schedule = length, []
        if data.scale_batch_size:
            of_stage.trainer.batch_size *= data.sequence_length // length
        found.append(Stage(begin, end, of_stage))
        begin = end
    return found


def stage_ends(schedule: Sequence[float], train_steps: int, steps_per_loop: int) -> list[int]:
    """The steps that the stages of a schedule end with, the last stage aside: whole loops.

    Example:
    ```python
    stage_ends([0.9, 128], train_steps=125_000, steps_per_loop=1)  # [112500]
    ```
    """
    return [
        round(share * train_steps) // steps_per_loop * steps_per_loop for share in schedule[::2]
    ]


def stage_at(run: Sequence[Stage], steps: int) -> Stage:
    """The stage that goes on after some steps; the last one at the end of the run.

    Example:
    ```python
    stage_at(stages(config), 0).config.data.sequence_length  # 128
    ```
    """
    return next((stage for stage in run if steps < stage.end), run[-1])


class Total:
    """The sum over the first steps of a run of what is the same for each step of a stage.

    Args:
        config: the run.
        of_step: what a step has of it, from the configuration of the stage.

    Example:
    ```python
    Total(config, tokens_per_step)(1000)  # the tokens of the first thousand steps
    ```
    """

    def __init__(
        self, config: PretrainingConfig, of_step: Callable[[PretrainingConfig], float]
    ) -> None:
        self._stages = [(stage.begin, stage.end, of_step(stage.config)) for stage in stages(config)]

    def __call__(self, steps: int) -> float:
        """The sum over so many steps; after the last stage as in it."""
        *_, (last, _, rate) = self._stages
        before = sum(
            amount * (min(steps, end) - begin)
            for begin, end, amount in self._stages[:-1]
            if steps > begin
        )
        return before + rate * max(0, steps - last)


def tokens_per_step(config: PretrainingConfig) -> int:
    """The tokens of a step of a stage, padding included.

    Example:
    ```python
    tokens_per_step(PretrainingConfig())  # 2048 * 512
    ```
    """
    return config.trainer.batch_size * config.data.sequence_length

"""What schedules of sequence lengths and batch sizes make of a run."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import tiny

from cocolm_tf.costs.estimation import estimate, format_report
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.costs.memory import step_memory
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import check_config
from cocolm_tf.training.identity import History, Segment, flat
from cocolm_tf.training.stages import Total, resolve_durations, stage_at, stages, tokens_per_step


def run(schedule: list, scale: bool = False, **trainer):
    data = {"sequence_length_schedule": schedule, "scale_batch_size": scale}
    return tiny({"data": data, "trainer": {"batch_size": 8, "train_steps": 100} | trainer})


def lengths(config) -> list[tuple[int, int, int]]:
    return [
        (stage.end, stage.config.data.sequence_length, stage.config.trainer.batch_size)
        for stage in stages(config)
    ]


def test_without_a_schedule_there_is_one_stage():
    assert lengths(run([])) == [(100, 26, 8)]


def test_a_schedule_is_of_shares_of_the_steps():
    assert lengths(run([0.5, 8, 0.9, 13])) == [(50, 8, 8), (90, 13, 8), (100, 26, 8)]
    assert lengths(run([0.5, 8, 0.9, 13], scale=True)) == [
        (50, 8, 24),
        (90, 13, 16),
        (100, 26, 8),
    ]
    assert lengths(run([0.55, 8], steps_per_loop=10))[0] == (50, 8, 8)


def test_batches_grow_by_shares_of_the_steps():
    config = run([0.5, 8], batch_size_schedule=[0.25, 2, 0.75, 4], micro_batches=4)
    assert lengths(config) == [(25, 8, 2), (50, 8, 4), (75, 26, 4), (100, 26, 8)]
    # Parts stay as large as they were, where they divide.
    assert [stage.config.trainer.micro_batches for stage in stages(config)] == [1, 2, 2, 4]
    # Each sequence is read once: the data continues where the stage before ended.
    assert [stage.first_sequence for stage in stages(config)] == [0, 50, 150, 250]
    config = run([0.5, 13], scale=True, batch_size_schedule=[0.25, 4])
    assert lengths(config) == [(25, 13, 8), (50, 13, 16), (100, 26, 8)]
    assert [stage.first_sequence for stage in stages(config)] == [0, 200, 300]


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 10**6),
    loop=st.integers(1, 7),
    schedule=st.sampled_from([[], [0.5, 8, 0.9, 13]]),
    sizes=st.sampled_from([[], [0.3, 2]]),
)
def test_durations_in_tokens_are_the_fewest_loops_that_hold_them(tokens, loop, schedule, sizes):
    config = run(schedule, steps_per_loop=loop, train_tokens=tokens, batch_size_schedule=sizes)
    config.optimizer.warmup_tokens = max(1, tokens // 3)
    resolve_durations(config)
    steps = config.trainer.train_steps
    total = Total(config, tokens_per_step)
    assert steps % loop == 0 and total(steps) >= tokens
    if steps > loop:
        config.trainer.train_steps = steps - loop
        assert Total(config, tokens_per_step)(steps - loop) < tokens
    warmup = config.optimizer.warmup_steps
    assert total(warmup) >= max(1, tokens // 3)
    assert not warmup or total(warmup - 1) < max(1, tokens // 3)


def test_tokens_are_instead_of_steps():
    config = run([], train_tokens=10 * 8 * 26 + 1)
    config.optimizer.warmup_tokens = 4 * 8 * 26
    check_config(config, "it")
    assert (config.trainer.train_steps, config.optimizer.warmup_steps) == (11, 4)


@settings(max_examples=25)
@given(steps=st.integers(0, 120))
def test_totals_are_sums_over_the_steps(steps: int):
    config = run([0.5, 8, 0.9, 13], scale=True)
    by_hand = sum(tokens_per_step(stage_at(stages(config), step).config) for step in range(steps))
    assert Total(config, tokens_per_step)(steps) == by_hand


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([0.5], "must be shares of the steps, each followed by a length"),
        ([0.5, 8.0], "must be shares of the steps, each followed by a length"),
        ([0.9, 8, 0.5, 13], "shares must grow"),
        ([1.0, 8], "shares must grow, between 0 and 1"),
        ([0.5, 64], "lengths must be from 3 to model.max_sequence_length=32"),
        ([0.001, 8], "a stage of less than trainer.steps_per_loop=1"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(schedule: list, message: str):
    with pytest.raises(UserError, match=message):
        check_config(run(schedule, validation_interval=50), "it")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([0.5], "must be shares of the steps, each followed by a size"),
        ([0.5, 9], "sizes must be from 1 to trainer.batch_size=8"),
        ([0.5, 0], "sizes must be from 1 to trainer.batch_size=8"),
        ([0.001, 4], "a stage of less than trainer.steps_per_loop=1"),
    ],
)
def test_ramps_that_make_no_sense_are_refused(sizes: list, message: str):
    with pytest.raises(UserError, match=f"trainer.batch_size_schedule=.*{message}"):
        check_config(run([], validation_interval=50, batch_size_schedule=sizes), "it")


def test_an_estimate_is_of_all_stages():
    config = run([0.75, 13], scale=True)
    short, long = (stage.config for stage in stages(config))
    flops = [sum(pretraining_flops(one).values()) for one in (short, long)]
    result = estimate(config, 2, ["v5e"])
    assert result["flops_per_run"] == 75 * flops[0] + 25 * flops[1]
    assert result["tokens_per_run"] == 100 * 8 * 26
    assert result["flops_per_step"] == flops[1]
    assert [stage["flops_per_step"] for stage in result["stages"]] == flops
    memories = [sum(step_memory(one, 2, False).values()) for one in (short, long)]
    assert sum(result["memory"]["kept"].values()) == max(memories)
    plan = result["accelerators"]["v5e"]["plans"]["kept"]
    assert 0 < plan["run_seconds"] < 100 * plan["step_seconds"]
    assert re.search(r"75 +13 +16 ", format_report(result))


def test_stages_that_were_trained_stay(tmp_path):
    def segment(**trainer) -> Segment:
        return Segment(0, flat(run([0.5, 8], **trainer).as_dict()), {})

    history = History(str(tmp_path), [segment()])
    longer = segment(train_steps=200)
    assert history.check(longer, 40)  # The first stage goes on in either.
    with pytest.raises(UserError, match="trainer.train_steps=100, not 200"):
        history.check(longer, 60)

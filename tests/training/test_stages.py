"""What a schedule of sequence lengths makes of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_configs import tiny

from cocolm_tf.costs.estimation import estimate, format_report
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.costs.memory import step_memory
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import check_config
from cocolm_tf.training.identity import History, Stretch, flat
from cocolm_tf.training.stages import Total, stage_at, stages, tokens_per_step


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
    assert "75 steps of 16 x 13" in format_report(result)


def test_stages_that_were_trained_stay(tmp_path):
    def stretch(**trainer) -> Stretch:
        return Stretch(0, flat(run([0.5, 8], **trainer).as_dict()), {})

    history = History(str(tmp_path), [stretch()])
    longer = stretch(train_steps=200)
    assert history.check(longer, 40)  # The first stage goes on in either.
    with pytest.raises(UserError, match="trainer.train_steps=100, not 200"):
        history.check(longer, 60)

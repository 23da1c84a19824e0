"""Learning rate schedules, against their closed forms."""

import math

import keras
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import tiny

from cocolm_tf.errors import UserError
from cocolm_tf.training.config import check_config, decay_steps
from cocolm_tf.training.schedules import SCHEDULES, WarmupDecay

PEAK = 1e-3


def expected_rate(step: int, warmup: int, decay: int, total: int, end: float, shape: str) -> float:
    if step < warmup:
        return PEAK * (step + 1) / warmup
    if step < total - decay:
        return PEAK
    if step >= total:
        return end
    done = (step - (total - decay)) / decay
    share = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "sqrt": 1 - math.sqrt(done),
    }[shape]
    return end + (PEAK - end) * share


@settings(max_examples=80)
@given(
    st.integers(0, 50),
    st.integers(0, 60),
    st.integers(1, 100),
    st.integers(0, 230),
    st.sampled_from([0.0, 1e-5]),
    st.sampled_from(["linear", "cosine", "sqrt"]),
)
def test_schedules_are_their_closed_forms(warmup, stable, decay, step, end, shape):
    total = warmup + stable + decay
    schedule = WarmupDecay(PEAK, warmup, total, end, shape, decay)
    expected = expected_rate(step, warmup, decay, total, end, shape)
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-4, abs=2e-9)
    if not stable:
        assert float(WarmupDecay(PEAK, warmup, total, end, shape)(step)) == float(schedule(step))


def test_schedule_of_the_paper():
    schedule = WarmupDecay(peak=5e-4, warmup_steps=10_000, total_steps=125_000)
    rates = [float(schedule(tf.constant(step, tf.int64))) for step in (0, 9_999, 10_000, 67_500)]
    assert rates == pytest.approx([5e-8, 5e-4, 5e-4, 2.5e-4], rel=1e-5)
    assert float(schedule(125_000)) == float(schedule(200_000)) == 0


@pytest.mark.parametrize("shape", [shape for shape, _ in SCHEDULES.values()])
def test_config_round_trip(shape: str):
    schedule = WarmupDecay(1e-3, 3, 9, end=1e-5, shape=shape, decay_steps=4)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()
    assert float(again(6)) == float(schedule(6))


# What the configuration makes of it.


def config_of(train_steps: int = 100, decay_from: str = "", **optimizer):
    trainer = {"train_steps": train_steps, "decay_from": decay_from}
    return tiny({"trainer": trainer, "optimizer": {"warmup_steps": 10} | optimizer})


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 90),
        ({"schedule": "cosine"}, 90),
        ({"schedule": "wsd"}, 10),
        ({"schedule": "wsd_sqrt", "train_steps": 101}, 11),
        ({"schedule": "wsd", "decay_steps": 30}, 30),
        ({"schedule": "wsd", "decay_from": "runs/a@b@60"}, 40),
        ({"schedule": "wsd", "decay_from": "runs/a@60", "decay_steps": 30}, 30),
    ],
)
def test_the_steps_in_which_the_rate_decays(changes: dict, steps: int):
    config = config_of(**changes)
    check_config(config, "it")
    assert decay_steps(config) == steps


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schedule": "wds"}, "optimizer.schedule"),
        ({"decay_steps": 5}, "optimizer.decay_steps needs optimizer.schedule=wsd or wsd_sqrt"),
        ({"decay_from": "runs/a@60"}, "trainer.decay_from needs optimizer.schedule=wsd"),
        ({"schedule": "wsd", "decay_from": "runs/a"}, "decay_from=runs/a must be RUN@STEP"),
        ({"schedule": "wsd", "decay_from": "@60"}, "decay_from=@60 must be RUN@STEP"),
        ({"schedule": "wsd", "decay_from": "a@100"}, "train_steps=100 must be more than 100"),
        ({"schedule": "wsd", "decay_steps": 91}, "91 steps does not fit between step 10 and"),
        (
            {"schedule": "wsd", "decay_from": "a@60", "decay_steps": 41},
            "41 steps does not fit between step 60 and trainer.train_steps=100",
        ),
        ({"warmup_steps": 101}, "optimizer.warmup_steps=101 is more than trainer.train_steps=100"),
    ],
)
def test_decays_that_make_no_sense_are_refused(changes: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        check_config(config_of(**changes), "it")

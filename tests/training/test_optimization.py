import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import tiny

from cocolm_tf.errors import UserError
from cocolm_tf.training.config import check_config, decay_steps
from cocolm_tf.training.optimization import SCHEDULES, AdamW, ShardedAdamW, WarmupDecay

SHAPES = [(3, 4), (4,), ()]


def make_variables() -> list[keras.Variable]:
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=shape).astype(np.float32), name=f"variable_{i}")
        for i, shape in enumerate(SHAPES)
    ]


def make_gradients(step: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(step + 100)
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES]


def make_optimizer(kind, variables, **changes):
    arguments = {
        "learning_rate": WarmupDecay(0.1, 2, 6),
        "weight_decay": 0.05,
        "beta_1": 0.9,
        "beta_2": 0.98,
        "epsilon": 1e-6,
    }
    optimizer = kind(**(arguments | changes))
    optimizer.exclude_from_weight_decay(var_list=variables[1:2])
    optimizer.build(variables)
    return optimizer


def run_step(optimizer, variables, gradients, scale=1.0) -> None:
    optimizer.apply_scaled(gradients, variables, tf.constant(scale, tf.float32))


def values(variables) -> list[np.ndarray]:
    return [np.array(variable) for variable in variables]


def assert_close(first, second) -> None:
    for one, other in zip(values(first), values(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(
    "changes", [{}, {"weight_decay": 0.0}, {"learning_rate": 0.02, "epsilon": 1e-3}], ids=str
)
def test_follows_keras(clip_norm, changes):
    ours, theirs = make_variables(), make_variables()
    our_optimizer = make_optimizer(AdamW, ours, **changes)
    their_optimizer = make_optimizer(
        keras.optimizers.AdamW, theirs, global_clipnorm=clip_norm, **changes
    )
    for step in range(5):
        gradients = make_gradients(step)
        norm = float(tf.linalg.global_norm(gradients))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        run_step(our_optimizer, ours, gradients, scale)
        their_optimizer.apply(gradients, theirs)
        assert_close(ours, theirs)
    assert_close(our_optimizer.variables, their_optimizer.variables)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_scale_of_zero_leaves_all_but_the_count(compiled):
    variables = make_variables()
    optimizer = make_optimizer(AdamW, variables)
    step = tf.function(
        lambda gradients, scale: optimizer.apply_scaled(gradients, variables, scale),
        autograph=False,
        jit_compile=compiled,
    )
    step(make_gradients(0), tf.constant(1.0))
    before = values(variables), values(optimizer._momentums), values(optimizer._velocities)
    bad = [
        tf.fill(shape, value)
        for shape, value in zip(SHAPES, [np.nan, np.inf, -np.inf], strict=True)
    ]
    for gradients in (bad, make_gradients(1)):
        step([tf.cast(gradient, tf.float32) for gradient in gradients], tf.constant(0.0))
    after = values(variables), values(optimizer._momentums), values(optimizer._velocities)
    for olds, news in zip(before, after, strict=True):
        for old, new in zip(olds, news, strict=True):
            np.testing.assert_array_equal(new, old)
    assert int(optimizer.iterations) == 3
    step(make_gradients(2), tf.constant(1.0))
    assert all((np.array(v) != old).any() for v, old in zip(variables, before[0], strict=True))


def test_excluded_variables_do_not_decay():
    variables = make_variables()
    before = values(variables)
    optimizer = make_optimizer(AdamW, variables, learning_rate=0.1)
    run_step(optimizer, variables, [tf.zeros(shape) for shape in SHAPES])
    after = values(variables)
    np.testing.assert_allclose(after[0], before[0] * (1 - 0.1 * 0.05), rtol=1e-6)
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("mirrored_strategy", [2, 4], indirect=True)
@pytest.mark.parametrize("kind", [AdamW, ShardedAdamW])
def test_every_replica_makes_the_same_update(mirrored_strategy, kind):
    alone = make_variables()
    optimizer = make_optimizer(AdamW, alone)
    optimizer.scale_learning_rate(alone[:1], 0.25)
    with mirrored_strategy.scope():
        mirrored = make_variables()
        mirrored_optimizer = make_optimizer(kind, mirrored)
        mirrored_optimizer.scale_learning_rate(mirrored[:1], 0.25)

    @tf.function(autograph=False)
    def step(gradients, scale):
        def update():
            own = tf.distribute.get_replica_context().replica_id_in_sync_group
            mirrored_optimizer.apply_scaled(gradients, mirrored, scale, own)

        mirrored_strategy.run(update)

    for number, scale in enumerate([1.0, 0.0, 0.3]):
        gradients = [g / (scale > 0) for g in make_gradients(number)]  # Skipped ones are infinite.
        run_step(optimizer, alone, gradients, scale)
        step(gradients, tf.constant(scale))
    for one, other in zip(alone, mirrored, strict=True):
        for replica in mirrored_strategy.experimental_local_results(other.value):
            np.testing.assert_allclose(replica, one, rtol=1e-6, atol=1e-6)
        found, expected = mirrored_optimizer.slots(other), optimizer.slots(one)
        for name, slot in expected.items():
            np.testing.assert_allclose(found[name].numpy(), slot, rtol=1e-6, atol=1e-6)
    assert int(mirrored_optimizer.iterations.numpy()) == 3


@pytest.mark.parametrize("mirrored_strategy", [4], indirect=True)
def test_each_replica_keeps_its_part_of_the_moments(mirrored_strategy):
    with mirrored_strategy.scope():
        variables = make_variables()
        optimizer = make_optimizer(ShardedAdamW, variables)
    slot = optimizer.slots(variables[0])["momentum"]
    slot.assign(np.arange(12.0).reshape(3, 4))
    parts = mirrored_strategy.experimental_local_results(optimizer._momentums[0].value)
    np.testing.assert_array_equal(parts, np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(tf.convert_to_tensor(slot), np.arange(12.0).reshape(3, 4))
    # A scalar's whole part is the first one's, and there is nothing in the others.
    assert [part.shape[0] for part in optimizer._momentums] == [3, 1, 1]


def test_optimizer_config_round_trip():
    optimizer = AdamW(WarmupDecay(0.1, 2, 6, end=0.01), weight_decay=0.05, beta_2=0.98)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is AdamW
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_apply_follows_keras(clip_norm):
    ours, theirs = make_variables(), make_variables()
    pairs = [
        (make_optimizer(kind, variables, global_clipnorm=clip_norm), variables)
        for kind, variables in ((AdamW, ours), (keras.optimizers.AdamW, theirs))
    ]
    for step in range(5):
        gradients = make_gradients(step)
        # As of an embedding: rows 0 and 2, the former twice.
        sparse = tf.IndexedSlices(
            tf.gather(gradients[0], [0, 2, 0]), tf.constant([0, 2, 0]), tf.constant([3, 4])
        )
        # Keras would square what a row gets from each before it adds it up.
        for (optimizer, variables), first in zip(
            pairs, (sparse, tf.convert_to_tensor(sparse)), strict=True
        ):
            optimizer.apply([first, *gradients[1:]], variables)
        assert_close(ours, theirs)
    assert_close(pairs[0][0].variables, pairs[1][0].variables)


@pytest.mark.parametrize("by_keras", [False, True])
def test_a_variable_may_learn_at_a_rate_of_its_own(by_keras):
    plain, scaled, slow = make_variables(), make_variables(), make_variables()
    optimizers = [make_optimizer(AdamW, variables) for variables in (plain, scaled)]
    optimizers.append(make_optimizer(AdamW, slow, learning_rate=WarmupDecay(0.025, 2, 6)))
    optimizers[1].scale_learning_rate(scaled[:1], 0.25)
    for step in range(4):
        for optimizer, variables in zip(optimizers, (plain, scaled, slow), strict=True):
            if by_keras:
                optimizer.apply(make_gradients(step), variables)
            else:
                run_step(optimizer, variables, make_gradients(step))
    assert_close(scaled[:1], slow[:1])
    assert_close(scaled[1:], plain[1:])
    assert not np.allclose(scaled[0], plain[0])


# Learning rate schedules, against their closed forms.

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

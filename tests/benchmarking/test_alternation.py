from functools import partial
from pathlib import Path

import benchmarking_contenders
import pytest
from benchmarks.alternation import (
    Contender,
    alternate,
    spread_of_ratios,
    thread_environment,
)

from cocolm_tf.errors import UserError


def test_each_has_its_turn_in_every_round_and_no_two_at_a_time(tmp_path: Path):
    log = tmp_path / "log"
    names = ["a", "b", "c"]
    contenders = [
        Contender(name, partial(benchmarking_contenders.logged, name, str(log))) for name in names
    ]
    timings = alternate(contenders, rounds=6, warmup_calls=1, pause=0)
    calls = [line.split() for line in log.read_text().splitlines()]
    called = [name for name, *_ in calls]
    assert called[:6] == ["a", "a", "b", "b", "c", "c"], "a first call and one to warm up"
    rounds = [called[start : start + 3] for start in range(6, len(called), 3)]
    assert len(rounds) == 6 and all(sorted(one) == names for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1, "the order changes"
    ends_and_starts = zip(calls[:-1], calls[1:], strict=True)
    assert all(float(before[2]) <= float(after[1]) for before, after in ends_and_starts)
    for name in names:
        assert timings[name].first_result == name
        assert timings[name].results == [name] * 6
        assert len(timings[name].seconds) == 6 and min(timings[name].seconds) >= 0.01
        assert timings[name].first_seconds >= 0.01


def test_a_contender_has_its_environment_before_it_is_built():
    build = partial(benchmarking_contenders.variable, "OMP_NUM_THREADS")
    contender = Contender("variable", build, thread_environment(3))
    timings = alternate([contender], rounds=1, warmup_calls=0, pause=0)
    assert timings["variable"].first_result == "3"


def test_who_does_not_sleep_while_others_have_their_turn_is_found_out():
    contenders = [
        Contender("spinning", benchmarking_contenders.spinning),
        Contender("sleeping", benchmarking_contenders.sleeping),
    ]
    timings = alternate(contenders, rounds=2, warmup_calls=0, pause=0.3)
    assert timings["sleeping"].waiting_cpu_share < timings["spinning"].waiting_cpu_share


def test_a_process_that_dies_is_the_users_to_know():
    contenders = [Contender("mortal", benchmarking_contenders.dying)]
    with pytest.raises(UserError, match="process of mortal ended unexpectedly"):
        alternate(contenders, rounds=1)


def test_what_a_contender_raises_is_raised():
    contenders = [Contender("failing", benchmarking_contenders.failing)]
    with pytest.raises(RuntimeError, match="it cannot be built"):
        alternate(contenders, rounds=1)


def test_ratios_are_of_the_same_round():
    # The machine was twice as slow in the last two rounds; the ratio does not show it.
    spread = spread_of_ratios([3.0, 3.0, 6.0, 6.0], [2.0, 2.0, 4.0, 4.0])
    assert spread == {"first_quartile": 1.5, "median": 1.5, "third_quartile": 1.5}


def test_quartiles_are_of_the_ratios():
    spread = spread_of_ratios([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert spread == {"first_quartile": 2.0, "median": 3.0, "third_quartile": 4.0}


def test_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError):
        spread_of_ratios([1.0, 2.0], [1.0, 2.0, 3.0])

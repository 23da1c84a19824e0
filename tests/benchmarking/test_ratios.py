import pytest

from cocolm_tf.benchmarking.ratios import describe_spread, spread_of_ratios


def test_ratios_are_of_the_same_round():
    # The machine was twice as slow in the last two rounds; the ratio does not show it.
    spread = spread_of_ratios([3.0, 3.0, 6.0, 6.0], [2.0, 2.0, 4.0, 4.0])
    assert spread == {"first_quartile": 1.5, "median": 1.5, "third_quartile": 1.5}


def test_quartiles_are_of_the_ratios():
    spread = spread_of_ratios([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert spread == {"first_quartile": 2.0, "median": 3.0, "third_quartile": 4.0}
    assert describe_spread(spread) == "3 (2 to 4)"


def test_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError):
        spread_of_ratios([1.0, 2.0], [1.0, 2.0, 3.0])

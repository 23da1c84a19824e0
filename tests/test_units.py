import pytest

from cocolm_tf.units import duration, si


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0"),
        (12, "12"),
        (999, "999"),
        (999.9, "1 k"),
        (1000, "1 k"),
        (999_999, "1 M"),
        (1.234e12, "1.23 T"),
        (2e21, "2 Z"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(number: float, written: str):
    assert si(number) == written


def test_a_unit_follows_the_prefix():
    assert si(1.5e9, "FLOP/s") == "1.5 GFLOP/s"
    assert si(3, "B") == "3 B"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0 ms"),
        (0.00123, "1.23 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (90, "1.5 min"),
        (5400, "1.5 h"),
        (86_400 * 12.34, "12.3 days"),
    ],
)
def test_times_have_the_unit_that_suits_them(seconds: float, written: str):
    assert duration(seconds) == written

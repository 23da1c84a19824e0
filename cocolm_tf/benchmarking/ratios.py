"""Ratios of times that were taken in alternation."""

from collections.abc import Sequence

import numpy as np


def spread_of_ratios(dividends: Sequence[float], divisors: Sequence[float]) -> dict[str, float]:
    """Divides times round by round, and gives the median and quartiles of the ratios.

    Args:
        dividends: a time for each round.
        divisors: likewise, of the same rounds.

    Returns:
        `first_quartile`, `median`, `third_quartile`.

    Example:
    ```python
    spread_of_ratios([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])["median"]  # 2.0
    ```
    """
    ratios = np.asarray(dividends) / np.asarray(divisors)
    names = ("first_quartile", "median", "third_quartile")
    quartiles = np.percentile(ratios, [25, 50, 75])
    return {name: float(value) for name, value in zip(names, quartiles, strict=True)}


def describe_spread(spread: dict[str, float], digits: int = 3) -> str:
    """Writes a median and its quartiles.

    Args:
        spread: with the keys that `spread_of_ratios` gives.
        digits: int. How many significant ones.

    Returns:
        As `"2 (1.5 to 2.5)"`.

    Example:
    ```python
    describe_spread(spread_of_ratios([2.0, 4.0], [1.0, 2.0]))  # "2 (2 to 2)"
    ```
    """
    low, middle, high = (
        f"{spread[name]:.{digits}g}" for name in ("first_quartile", "median", "third_quartile")
    )
    return f"{middle} ({low} to {high})"

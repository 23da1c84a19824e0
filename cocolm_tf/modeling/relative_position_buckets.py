"""The row of the relative position table for each distance."""

import numpy as np


def relative_position_buckets(bins: int, max_distance: int, max_positions: int) -> np.ndarray:
    """Maps distances key - query to table rows: int32 [2 * max_positions - 1], from 0 on."""
    # Entry `max_positions - 1 + distance`. Half of the bins serve each direction. Near distances
    # have a bin each, far ones share bins whose width grows with the logarithm of the distance, up
    # to `max_distance`. This is the layout of the released COCO-LM models, which rounds up and
    # orders by signed distance where T5 rounds down and puts the directions side by side.
    half, exact = bins // 2, bins // 4
    if bins < 4 or bins % 4:
        raise ValueError(f"relative_position_bins must be a multiple of 4, not {bins}.")
    if max_distance - 1 <= exact:
        raise ValueError(
            f"relative_position_max_distance must exceed {exact + 1} for {bins} bins, "
            f"not {max_distance}."
        )
    distance = np.arange(1 - max_positions, max_positions)
    magnitude = np.abs(distance)
    # float32, as the released models compute it: rounding decides at the edges of the bins.
    ratio = np.log(np.maximum(magnitude, exact).astype(np.float32) / np.float32(exact))
    ratio /= np.float32(np.log((max_distance - 1) / exact))
    far = exact + np.ceil(ratio * np.float32(half - 1 - exact)).astype(np.int32)
    bucket = np.where(magnitude < exact, magnitude, np.minimum(half - 1, far))
    signed = np.sign(distance) * bucket
    return (signed - signed.min()).astype(np.int32)

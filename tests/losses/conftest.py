"""Random batches in the shapes that the losses take."""

import numpy as np
import pytest
from losses_rows import Rows, make_rows


@pytest.fixture
def rows() -> Rows:
    return make_rows(seed=1)


@pytest.fixture
def views() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    first = rng.normal(size=(8, 5)).astype(np.float32)
    return first, first + rng.normal(0, 0.7, size=(8, 5)).astype(np.float32)

import numpy as np
import pytest


@pytest.fixture
def views() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the first and the second views of eight texts."""
    rng = np.random.default_rng(2)
    first = rng.normal(size=(8, 5)).astype(np.float32)
    return first, first + rng.normal(0, 0.7, size=(8, 5)).astype(np.float32)

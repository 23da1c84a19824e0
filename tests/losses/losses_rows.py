"""Random positions to predict, for the tests that need many and for the `rows` fixture."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Rows:
    """N positions to predict: about half the inputs are original, about a third carry no weight."""

    lm_logits: np.ndarray
    copy_logits: np.ndarray
    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def arguments(self) -> tuple[np.ndarray, ...]:
        return self.lm_logits, self.copy_logits, self.input_ids, self.labels, self.weights


def make_rows(seed: int, n: int = 12, v: int = 11) -> Rows:
    rng = np.random.default_rng(seed)
    labels = rng.integers(v, size=n).astype(np.int32)
    sampled = rng.integers(v, size=n).astype(np.int32)
    weights = rng.uniform(0.1, 2, size=n) * (rng.random(n) < 0.7)
    weights[0] = 1.0
    return Rows(
        lm_logits=rng.normal(0, 3, size=(n, v)).astype(np.float32),
        copy_logits=rng.normal(0, 3, size=n).astype(np.float32),
        input_ids=np.where(rng.random(n) < 0.5, labels, sampled),
        labels=labels,
        weights=weights.astype(np.float32),
    )

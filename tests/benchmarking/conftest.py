from pathlib import Path

import pytest
import yaml

from cocolm_tf.training.config import PretrainingConfig

TINY = {
    "model": {
        "vocabulary_size": 97,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "max_sequence_length": 24,
    },
    "auxiliary": {"num_layers": 1},
    "data": {"sequence_length": 24},
    "trainer": {"batch_size": 8},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 0},
}


@pytest.fixture
def tiny() -> PretrainingConfig:
    config = PretrainingConfig()
    config.override(TINY)
    return config


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path

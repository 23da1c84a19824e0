import pytest

from cocolm_tf.training.config import PretrainingConfig


@pytest.fixture
def tiny() -> PretrainingConfig:
    config = PretrainingConfig()
    sizes = {
        "vocabulary_size": 97,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "max_sequence_length": 24,
    }
    config.override({"model": sizes, "auxiliary": {"num_layers": 1}})
    config.override({"data": {"sequence_length": 24}, "trainer": {"batch_size": 8}})
    config.override({"optimizer": {"learning_rate": 3e-3, "warmup_steps": 0}})
    return config

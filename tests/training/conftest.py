import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tensorflow as tf

from cocolm_tf.data.build import build_shards
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.pretraining import pretrain

WORDS = "A cat saw the red house on its hill and then some bird sang to a dog of rain"
SEQUENCE_LENGTH = 16


class Corpus(NamedTuple):
    """The folders of a vocabulary and of two datasets built with it."""

    vocabulary: str
    vocabulary_size: int
    train: str
    validation: str


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    sentences = [
        " ".join(words.choices(WORDS.split(), k=words.randrange(3, 20))) for _ in range(120)
    ]
    vocabulary = str(folder / "vocabulary")
    tokenizer = train_vocabulary(sentences, 60, vocabulary)
    build_shards(
        sentences, vocabulary, SEQUENCE_LENGTH, 3, 0, str(folder / "data"), validation_fraction=0.2
    )
    return Corpus(
        vocabulary,
        tokenizer.vocabulary_size(),
        str(folder / "data" / "train"),
        str(folder / "data" / "validation"),
    )


@pytest.fixture(scope="session")
def tiny(corpus: Corpus) -> Callable[..., PretrainingConfig]:
    """Makes a configuration that trains within seconds; sections are given as dicts of changes."""
    sizes = {
        "vocabulary_size": corpus.vocabulary_size,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 16,
        "max_sequence_length": SEQUENCE_LENGTH,
        "relative_position_bins": 8,
        "relative_position_max_distance": 12,
    }
    trainer = {
        "train_steps": 10,
        "batch_size": 4,
        "log_interval": 2,
        "validation_interval": 4,
        "checkpoint_interval": 2,
        "max_checkpoints": 2,
    }

    def make(**changes: dict[str, Any]) -> PretrainingConfig:
        config = PretrainingConfig()
        config.override({"model": sizes, "trainer": trainer})
        config.override({"auxiliary": {"num_layers": 1}, "optimizer": {"warmup_steps": 4}})
        config.override({"data": {"sequence_length": SEQUENCE_LENGTH}})
        config.override(changes)
        return config

    return make


class Run(NamedTuple):
    """What a run was of, and where it is."""

    config: PretrainingConfig
    model_dir: Path


@pytest.fixture(scope="session")
def pretrain_on(corpus: Corpus) -> Callable[..., str]:
    """Calls `pretrain` with the corpus, on one device; keywords replace its arguments."""

    def run(config: PretrainingConfig, model_dir: Path, **changes: Any) -> str:
        arguments = {
            "train_data": corpus.train,
            "vocabulary": corpus.vocabulary,
            "strategy": tf.distribute.OneDeviceStrategy("CPU:0"),
            "validation_data": corpus.validation,
        }
        return pretrain(config, model_dir=str(model_dir), **(arguments | changes))

    return run


@pytest.fixture(scope="session")
def finished(
    tiny: Callable[..., PretrainingConfig],
    pretrain_on: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run that has ended; tests read it only."""
    config, model_dir = tiny(), tmp_path_factory.mktemp("runs") / "finished"
    pretrain_on(config, model_dir)
    return Run(config, model_dir)

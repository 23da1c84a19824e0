import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import tensorflow as tf

from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training import pretraining
from cocolm_tf.training.config import PretrainingConfig, decay_steps

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


# Keys that the model and its step do not depend on.
UNTRACED = {
    "data": ("skip_corrupt", "verify_checksums"),
    "trainer": (
        "checkpoint_interval",
        "decay_from",
        "keep_checkpoint_interval",
        "log_interval",
        "max_checkpoints",
        "validation_interval",
    ),
}


@pytest.fixture(scope="session")
def pretrain_on(corpus: Corpus) -> Callable[..., str]:
    """Calls `pretrain` with the corpus, on one device; keywords replace its arguments.

    Most of a run's time is tracing. A model is built and traced once for all runs of a
    configuration; each run begins with the values that all variables had when it was built.
    """
    one_device, build = tf.distribute.OneDeviceStrategy("CPU:0"), pretraining._build
    built: dict[str, tuple[Any, list[tuple[tf.Variable, Any]]]] = {}

    def build_once(config, tokenizer, init_preset, strategy):
        values = config.as_dict()
        for section, keys in UNTRACED.items():
            values[section] = {k: v for k, v in values[section].items() if k not in keys}
        key = json.dumps([values, decay_steps(config), init_preset])
        if strategy is not one_device:
            return build(config, tokenizer, init_preset, strategy)
        if key not in built:
            pretrainer = build(config, tokenizer, init_preset, strategy)
            variables = [v.value for v in (*pretrainer.variables, *pretrainer.optimizer.variables)]
            variables += [v.value for metric in pretrainer.metrics for v in metric.variables]
            variables += [pretrainer.skipped_at, pretrainer.skipped_norms, *pretrainer.averages]
            built[key] = pretrainer, [(variable, variable.numpy()) for variable in variables]
        built[key] = built.pop(key)  # the last one, so that those that are long unused can go
        if len(built) > 4:
            del built[next(iter(built))]
        pretrainer, initial = built[key]
        for variable, value in initial:
            variable.assign(value)
        return pretrainer

    def run(config: PretrainingConfig, model_dir: Path | str, **changes: Any) -> str:
        arguments = {
            "train_data": corpus.train,
            "vocabulary": corpus.vocabulary,
            "strategy": one_device,
            "validation_data": corpus.validation,
        }
        with mock.patch.object(pretraining, "_build", build_once):
            return pretraining.pretrain(config, model_dir=str(model_dir), **(arguments | changes))

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


@pytest.fixture
def refused(
    tiny: Callable[..., PretrainingConfig], pretrain_on: Callable[..., str], tmp_path: Path
) -> Callable[..., str]:
    """Calls `pretrain` and returns the complaint."""

    def refused(config: PretrainingConfig | None = None, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            pretrain_on(config or tiny(), tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused

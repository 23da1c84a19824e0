"""Checkpoints of a run as presets: the weights that it had at that step."""

import random
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import load_vocabulary, train_vocabulary
from cocolm_tf.training.build import build_pretrainer, compile_pretrainer
from cocolm_tf.training.checkpoints import Checkpoints
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.preset import load_preset, save_checkpoint_presets, save_preset

TEXT = "the cat sat on a mat and dog ran to its house when it was cold outside again "


@pytest.fixture(scope="module")
def config() -> PretrainingConfig:
    config = PretrainingConfig()
    config.override(
        {
            "model": {
                "vocabulary_size": 70,
                "num_layers": 1,
                "num_heads": 2,
                "hidden_dim": 16,
                "intermediate_dim": 24,
                "max_sequence_length": 24,
            },
            "auxiliary": {"num_layers": 1},
            "data": {"sequence_length": 24},
            "optimizer": {"warmup_steps": 0},
            "trainer": {"train_steps": 40, "batch_size": 4},
        }
    )
    return config


@pytest.fixture(scope="module")
def run(config: PretrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, whose copy heads are 20 and 40 all over, and no preset."""
    path = tmp_path_factory.mktemp("run")
    save_config(config, str(path / "config.yaml"))
    random.seed(0)
    pretrainer = build_pretrainer(config, 69)
    compile_pretrainer(pretrainer, config, steps_per_execution=1)
    checkpoints = Checkpoints(str(path / "checkpoints"), pretrainer, keep=2)
    for step in (20, 40):
        pretrainer.optimizer.iterations.assign(step)
        pretrainer.copy_head.kernel.assign(np.full(16, step))
        checkpoints.save()
    checkpoints.wait()
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary"
    train_vocabulary([TEXT * 20], 70, path)
    return str(path)


def copy_head(preset: str, config: PretrainingConfig) -> float:
    pretrainer = build_pretrainer(config, 69)
    assert not load_preset(pretrainer, preset)
    (value,) = set(pretrainer.copy_head.kernel.numpy().tolist())
    return value


def test_presets_have_the_weights_of_their_steps(run: Path, vocabulary: str, config):
    paths = list(save_checkpoint_presets(str(run), vocabulary))
    assert paths == [str(run / "presets" / f"step_{step}") for step in (20, 40)]
    assert [copy_head(path, config) for path in paths] == [20, 40]


def test_one_step_is_exported_with_the_vocabulary_of_the_run(run: Path, vocabulary: str, config):
    tokenizer = load_vocabulary(vocabulary)
    save_preset(build_pretrainer(config, 69), tokenizer, str(run / "preset"))
    (path,) = save_checkpoint_presets(str(run), steps=[40])
    assert copy_head(path, config) == 40
    assert load_vocabulary(path).fingerprint() == tokenizer.fingerprint()


def test_what_is_missing_is_named(run: Path, vocabulary: str, tmp_path: Path):
    def failing(*arguments: object) -> str:
        with pytest.raises(UserError) as caught:
            list(save_checkpoint_presets(*arguments))
        return str(caught.value)

    assert "has no config.yaml" in failing(str(tmp_path))
    assert "--step=30: " in failing(str(run), vocabulary, [30])
    assert "has checkpoints of 20, 40 only" in failing(str(run), vocabulary, [30])
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "has no checkpoints" in failing(str(tmp_path))
    train_vocabulary([TEXT * 20], 60, tmp_path / "other")
    assert "has 60 tokens, the run 70" in failing(str(run), str(tmp_path / "other"))


def test_a_damaged_checkpoint_is_named(run: Path, vocabulary: str, tmp_path: Path):
    damaged = tmp_path / "run"
    (damaged / "checkpoints").mkdir(parents=True)
    (damaged / "config.yaml").write_text((run / "config.yaml").read_text())
    for file in (run / "checkpoints").iterdir():
        content = bytearray(file.read_bytes())
        if ".data-" in file.name:
            content = content[: len(content) // 2]
        (damaged / "checkpoints" / file.name).write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt-20 cannot be read"):
        list(save_checkpoint_presets(str(damaged), vocabulary))
    assert not (damaged / "presets" / "step_20").exists()


def test_a_run_without_a_preset_needs_its_vocabulary(run: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.raises(UserError, match="has no preset yet: give the run's --vocabulary"):
        list(save_checkpoint_presets(str(tmp_path)))

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from programs import Program

from cocolm_tf.data.build import build_shards
from cocolm_tf.tokenization.vocabulary import train_vocabulary

pretrain = Program("pretrain.py")

TINY = """
model: {vocabulary_size: 60, num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16}
objective: {name: masked_lm}  # what traces the least
data: {sequence_length: 16}
optimizer: {warmup_steps: 10}
trainer:
  train_steps: 60
  batch_size: 4
  log_interval: 10
  validation_interval: 30
  checkpoint_interval: 10
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    words = "A cat saw the red house on its hill and then some bird sang to a dog of rain"
    draw = random.Random(0)
    sentences = [" ".join(draw.choices(words.split(), k=draw.randrange(3, 20))) for _ in range(120)]
    train_vocabulary(sentences, 60, folder / "vocabulary")
    build_shards(
        sentences,
        str(folder / "vocabulary"),
        sequence_length=16,
        num_shards=3,
        num_workers=0,
        output_dir=str(folder / "data"),
        validation_fraction=0.2,
    )
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def flags(inputs: Path, model_dir: Path) -> list[str]:
    return [
        f"--config_file={inputs}/tiny.yaml",
        f"--train_data={inputs}/data/train",
        f"--validation_data={inputs}/data/validation/*.tfrecord",
        f"--vocabulary={inputs}/vocabulary",
        f"--model_dir={model_dir}",
    ]


def metrics(model_dir: Path) -> list[dict]:
    lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: line[name] for name in line if name not in ("seconds", "tokens_per_second")}
        for line in lines
    ]


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(inputs: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = pretrain(*flags(inputs, whole))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{whole}/preset"
    assert "60/60" in done.stderr and "step 60: validation loss" in done.stderr

    with pretrain.start(*flags(inputs, killed)) as process:
        deadline = time.monotonic() + 200
        while not (killed / "checkpoints" / "ckpt-20.index").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert not (killed / "preset").exists()

    done = pretrain(*flags(inputs, killed))
    assert done.returncode == 0, done.stderr
    assert metrics(killed) == metrics(whole)
    one, other = (
        np.load(folder / "preset" / "pretraining_heads.npz") for folder in (whole, killed)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_a_mistake_in_the_data_is_one_line(inputs: Path, tmp_path: Path):
    *_, said = pretrain.mistakes(
        *flags(inputs, tmp_path / "run"),
        f"--train_data={inputs}/data/train/none-*",
        "--distribution_strategy=mirrored",
    )
    assert said.startswith("error: no shard matches")
    assert not (tmp_path / "run").exists()


def test_help_is_instant():
    told = pretrain.help()
    for flag in (
        "config_file",
        "params_override",
        "init_preset",
        "distribution_strategy",
        "tpu",
        "profile_steps",
    ):
        assert f"--{flag}" in told


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--config_file=/nowhere.yaml", "error: --config_file=/nowhere.yaml does not exist."),
        ("--profile_steps=5", "--profile_steps=5: must be the first and the last step"),
    ],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    inputs: Path, tmp_path: Path, change: str, complaint: str
):
    (said,) = pretrain.mistakes_before_tensorflow(*flags(inputs, tmp_path / "run"), change)
    assert complaint in said
    assert not (tmp_path / "run").exists()

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cocolm_tf.analysis.detection import Detections
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.preset import load_pretrained, save_preset

TEXT = "the cat sat on a mat and dog ran to its house when it was cold outside again "


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CocoLMTokenizer:
    """Its words are tokens of their own, but for those it has never seen."""
    return train_vocabulary([TEXT * 20], 70, tmp_path_factory.mktemp("vocabulary") / "vocabulary")


@pytest.fixture(scope="session")
def config(tokenizer: CocoLMTokenizer) -> PretrainingConfig:
    config = PretrainingConfig()
    config.override(
        {
            "model": {
                "vocabulary_size": tokenizer.vocabulary_size(),
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
            "runtime": {"precision": "mixed_bfloat16"},
        }
    )
    return config


@pytest.fixture
def lines() -> list[dict[str, float]]:
    """A log with what every objective logs, at a few steps."""
    names = ("loss", "mlm_loss", "mlm_accuracy", "copy_loss", "copy_accuracy_replaced")
    names += ("copy_accuracy_original", "replacement_rate", "lm_loss", "lm_accuracy_replaced")
    names += ("lm_accuracy_original", "scl_loss", "positive_cosine", "negative_cosine")
    extra = ("gradient_norm", "learning_rate", "skipped_updates", "tokens_per_second")
    lines = []
    for step in (10, 20, 30, 40):
        values = dict.fromkeys(names, 0.5 + 1 / step)
        train = {"step": step, "split": "train", "seconds": step / 10}
        lines.append(train | values | dict.fromkeys(extra, 0.25))
        if step % 20 == 0:
            lines.append({"step": step, "split": "validation", "seconds": step / 10} | values)
    return lines


@pytest.fixture
def model_dir(tmp_path: Path, config: PretrainingConfig, lines: list[dict[str, float]]) -> Path:
    """A run that still goes on: it has no preset."""
    path = tmp_path / "run"
    path.mkdir()
    save_config(config, str(path / "config.yaml"))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def preset(
    config: PretrainingConfig,
    tokenizer: CocoLMTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    # Built first: building sets the global seed, which empties the cache a tokenizer lives in.
    pretrainer = build_pretrainer(config, config.model.vocabulary_size - 1)
    pretrainer.copy_head.kernel.assign(range(16))
    path = tmp_path_factory.mktemp("run") / "preset"
    save_preset(pretrainer, tokenizer, str(path))
    return path


@pytest.fixture(scope="session")
def pretrainer(preset: Path) -> CocoLMPretrainer:
    return load_pretrained(str(preset))[0]


@pytest.fixture
def loaded(pretrainer: CocoLMPretrainer, preset: Path) -> tuple[CocoLMPretrainer, CocoLMTokenizer]:
    # A tokenizer does not outlive the building of the next model.
    return pretrainer, CocoLMTokenizer.from_preset(str(preset))


@pytest.fixture
def found() -> Detections:
    """Six tokens, half of them replaced."""
    return Detections(
        pd.DataFrame(
            {
                "probability": [0.95, 0.75, 0.75, 0.25, 0.05, 0.05],
                "is_replaced": [True, True, False, True, False, False],
                "rank": [0, 4, -1, 5, -1, -1],
                "frequency_rank": [0, 100, 99, 1000, 999, 1],
            }
        )
    )


@pytest.fixture
def finished_run(model_dir: Path, preset: Path) -> Path:
    shutil.copytree(preset, model_dir / "preset")
    return model_dir

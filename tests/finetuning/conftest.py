import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_presets import SEQUENCE_LENGTH, opinions, write_tiny_preset

from cocolm_tf.finetuning.models.text_classifier import (
    CocoLMTextClassifier,
    CocoLMTextClassifierPreprocessor,
)
from cocolm_tf.finetuning.run import run_task
from cocolm_tf.finetuning.tasks.task import Task


class Listener:
    """A reporter of a run that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heard: list[tuple[float, str]] = []

    def progress(self, share: float, note: str = "") -> None:
        self.heard.append((share, note))

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="session")
def do_task():
    """Runs a task, by its spec as JSON, in a folder; returns its results and what was told."""

    def do_task(task: Task, folder: Path, **options: Any) -> tuple[dict[str, Any], Listener]:
        listener = Listener()
        results = run_task(json.loads(json.dumps(task.spec())), str(folder), listener, **options)
        assert json.loads(json.dumps(results)) == results
        return results, listener

    return do_task


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained preset; tests read it only."""
    return write_tiny_preset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def preprocessor(tiny_preset: str) -> CocoLMTextClassifierPreprocessor:
    """Tests leave it as it is."""
    return CocoLMTextClassifierPreprocessor.from_preset(tiny_preset)


@pytest.fixture(scope="session")
def fine_tuned(tiny_preset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The preset of a classifier that has learned to tell opinions; tests read it only."""
    random.seed(0)
    classifier = CocoLMTextClassifier.from_preset(
        tiny_preset, num_classes=2, label_names=["bad", "good"], dropout=0.0
    )
    classifier.optimizer.learning_rate = 5e-3
    texts, labels = map(list, zip(*opinions(120, seed=1), strict=True))
    classifier.fit(texts, labels, batch_size=8, epochs=10, verbose=0)
    path = str(tmp_path_factory.mktemp("fine_tuned") / "preset")
    classifier.save_to_preset(path)
    return path


@pytest.fixture(scope="session")
def sst2_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small SST-2 in GLUE's layout."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "SST-2").mkdir()
    for name, count, seed in (("train", 120, 1), ("dev", 20, 2)):
        rows = "".join(f"{text}\t{label}\n" for text, label in opinions(count, seed))
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    rows = "".join(f"{number}\t{text}\n" for number, (text, _) in enumerate(opinions(9, seed=3)))
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n" + rows)
    return str(folder)


@pytest.fixture
def sequence_length() -> int:
    return SEQUENCE_LENGTH


@pytest.fixture
def write(tmp_path: Path):
    """Writes a file by its name and returns its path."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write

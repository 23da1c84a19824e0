from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from cocolm_tf.data import build
from cocolm_tf.data.manifest import Manifest


class WordTokenizer:
    """Hashes words: as much of a tokenizer as building data needs."""

    start_token_id, pad_token_id, end_token_id = 0, 1, 2

    def __init__(self, name: str = "words"):
        self._name = name

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.cast(tf.strings.to_hash_bucket_fast(tf.strings.split(texts), 96), tf.int32) + 4

    def vocabulary_size(self) -> int:
        return 100

    def fingerprint(self) -> str:
        return self._name.ljust(64, "0")


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def make_dataset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: WordTokenizer
) -> Callable[..., Manifest]:
    """Builds a dataset in this process; takes the arguments of `build_shards` to change."""
    monkeypatch.setattr(build, "load_vocabulary", lambda directory: tokenizer)

    def make(documents: list[str] | None = None, **changes) -> Manifest:
        arguments = {
            "vocabulary_dir": "vocabulary",
            "sequence_length": 16,
            "num_shards": 3,
            "num_workers": 0,
            "output_dir": str(tmp_path / "data"),
        }
        return build.build_shards(
            some_documents() if documents is None else documents, **(arguments | changes)
        )

    return make


def some_documents(count: int = 60) -> list[str]:
    return [f"document {index} " + "and so on " * (index % 13) for index in range(count)]

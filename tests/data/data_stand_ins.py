"""What the tests of data building put in the place of a vocabulary and a corpus."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tensorflow as tf

from cocolm_tf.data.shards import Manifest
from cocolm_tf.data.sources import Source


class WordTokenizer:
    """Hashes words: as much of a tokenizer as building data needs."""

    start_token_id, pad_token_id, end_token_id = 0, 1, 2

    def __init__(self, name: str = "words"):
        self._name = name

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.cast(tf.strings.to_hash_bucket_fast(tf.strings.split(texts), 96), tf.int32) + 4

    def get_vocabulary(self) -> list[str]:
        return ["▁word"] * self.vocabulary_size()

    def vocabulary_size(self) -> int:
        return 100

    def fingerprint(self) -> str:
        return self._name.ljust(64, "0")


def some_documents(count: int = 60) -> list[str]:
    return [f"document {index} " + "and so on " * (index % 13) for index in range(count)]


@dataclass(frozen=True)
class Lists(Source):
    """A source of lists: a part each, under its number."""

    lists: tuple[list[str], ...] = ()

    @classmethod
    def of(cls, *lists: list[str]) -> "Lists":
        return cls(tuple(map(str, range(len(lists)))), lists)

    def documents(self, part: str, counts: Counter[str] | None = None) -> Iterator[str]:
        yield from self.lists[int(part)]

    def describe(self) -> dict[str, Any]:
        return {"input": "lists"}


def dataset_maker(patch: pytest.MonkeyPatch, output_dir: str) -> Callable[..., Manifest]:
    """A function that builds a dataset in this process, with `WordTokenizer`."""
    # Not above: the processes that tests start import this module, and need neither.
    from cocolm_tf.data import build
    from cocolm_tf.tokenization import vocabulary

    patch.setattr(vocabulary, "load_vocabulary", lambda directory: WordTokenizer())

    def make(documents: Iterable[str] | None = None, **changes: Any) -> Manifest:
        arguments = {
            "vocabulary_dir": "vocabulary",
            "sequence_length": 16,
            "num_shards": 3,
            "num_workers": 0,
            "output_dir": output_dir,
        }
        return build.build_shards(
            some_documents() if documents is None else documents, **(arguments | changes)
        )

    return make

"""A vocabulary small enough to learn in a second, for all tests of the room."""

import pathlib

import pytest

from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary, train_vocabulary

CORPUS = [
    "The cat sat on the mat, and the dog (a big one) didn't like it; they'll fight!",
    "She said: \"I'm sure he's seen the other cats.\" The others weren't there...",
    "In 1984, 1,250 cats and 30.5% of the dogs lived there - or so they've told us?",
    "Some words repeat: the then there these those that this them they. On and on and on.",
    "Zebras, jackals & quick foxes walk by; every kind of vowel gives us something to merge.",
]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return CORPUS * 3


@pytest.fixture(scope="session")
def vocabulary_dir(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("vocabularies") / "cased"
    train_vocabulary(corpus, 150, folder, character_coverage=1.0)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary_dir: pathlib.Path) -> CocoLMTokenizer:
    return load_vocabulary(vocabulary_dir)

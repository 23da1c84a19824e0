import functools
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from data_stand_ins import WordTokenizer, some_documents

from cocolm_tf.data import build, packing, processes
from cocolm_tf.data.manifest import Manifest
from cocolm_tf.tokenization import vocabulary


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def make_dataset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: WordTokenizer
) -> Callable[..., Manifest]:
    """Builds a dataset in this process; takes the arguments of `build_shards` to change."""
    monkeypatch.setattr(vocabulary, "load_vocabulary", lambda directory: tokenizer)

    def make(documents: Iterable[str] | None = None, **changes) -> Manifest:
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


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a chunk of a few documents."""
    chunks = functools.partial(packing.chunks, size=300)
    monkeypatch.setattr(build, "chunks", chunks)
    monkeypatch.setattr(processes, "chunks", chunks)


@pytest.fixture
def write_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[dict[str, str | bytes]], None]:
    """Writes Python files, by name and source, to where the installed packages seem to be."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "packages"))

    def write(modules: dict[str, str | bytes]) -> None:
        for name, source in modules.items():
            path = tmp_path / "packages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.encode() if isinstance(source, str) else source)

    return write

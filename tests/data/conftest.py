import functools
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from data_stand_ins import WordTokenizer, dataset_maker

from cocolm_tf.data import build, packing, processes
from cocolm_tf.data.shards import Manifest


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def make_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Manifest]:
    """Builds a dataset in this process; takes the arguments of `build_shards` to change."""
    return dataset_maker(monkeypatch, str(tmp_path / "data"))


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

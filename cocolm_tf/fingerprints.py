"""Hashes of files, by which a run or a job recognizes its inputs."""

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator

from cocolm_tf import files


def fingerprint(preset: str) -> str:
    """SHA-256 of what a model that starts from a preset depends on: sizes, weights, vocabulary."""
    digest = hashlib.sha256()
    for name in _names(preset):
        digest.update(name.encode())
        digest.update(_digest(files.join(preset, name)))
    return digest.hexdigest()


def content_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, by path; one that does not exist is left out."""
    return {path: _digest(path).hex() for path in paths if files.is_file(path)}


def _digest(path: str) -> bytes:
    with files.open_read(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _names(preset: str) -> Iterator[str]:
    """The files that count, relative to the preset."""
    names = files.list_dir(preset)
    for pattern in ("config.json", "*.h5", "*.npz", "tokenizer.json"):
        found = fnmatch.filter(names, pattern)
        yield from (name for name in found if files.is_file(files.join(preset, name)))
    yield from sorted(files.walk(preset, "assets"))

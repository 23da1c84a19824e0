"""Hashes of what files hold, by which a run or a job knows its inputs again."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator


def fingerprint(preset: str) -> str:
    """Hashes what a model that starts from a preset depends on.

    Args:
        preset: The folder.

    Returns:
        SHA-256 in hexadecimal, of the architecture, the weights and the vocabulary.

    Example:
    ```python
    fingerprint("runs/first/preset")
    ```
    """
    digest = hashlib.sha256()
    for path in _files(preset):
        digest.update(os.path.relpath(path, preset).encode())
        digest.update(_digest(path))
    return digest.hexdigest()


def content_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """Hashes files.

    Args:
        paths: The files. One that does not exist is left out.

    Returns:
        SHA-256 in hexadecimal, by path.

    Example:
    ```python
    content_fingerprints(["train.csv", "dev.csv"])
    ```
    """
    return {path: _digest(path).hex() for path in paths if os.path.isfile(path)}


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _files(preset: str) -> Iterator[str]:
    for pattern in ("config.json", "*.h5", "*.npz", "tokenizer.json", "assets/**/*"):
        found = glob.glob(os.path.join(glob.escape(preset), pattern), recursive=True)
        yield from sorted(path for path in found if os.path.isfile(path))

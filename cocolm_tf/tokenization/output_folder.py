"""A folder that appears whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from cocolm_tf.errors import UserError


def check_output_folder(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Makes sure that writing a folder destroys nothing that was meant to be kept.

    Args:
        path: The folder to be written.
        overwrite: Whether it may replace one that is not empty.

    Raises:
        UserError: If it may not, or if the path is a file.

    Example:
    ```python
    check_output_folder("runs/vocabulary")
    ```
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{path} is a file; the output must be a folder.")
    if os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise UserError(f"{path} is not empty; give another folder, or --overwrite to replace it.")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a folder to write into, which becomes `path` when all went well.

    Args:
        path: The folder. One that is there already is replaced.

    Yields:
        The folder to write into, beside `path`.

    Example:
    ```python
    with new_folder("/tmp/vocabulary") as folder:
        with open(f"{folder}/notes.txt", "w") as file:
            file.write("complete")
    ```
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as temporary:
        folder = os.path.join(temporary, "new")
        os.mkdir(folder)
        yield folder
        if os.path.isdir(path):
            os.replace(path, os.path.join(temporary, "old"))
        os.replace(folder, path)

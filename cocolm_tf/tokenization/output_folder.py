"""A folder that appears whole or not at all, in a place that was tried before the work."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from cocolm_tf.errors import UserError

# More than a file system keeps beside the name of a file.
_PROBE = bytes(4096)


def check_output_folder(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Makes sure that a folder can be written, and that this destroys nothing meant to be kept.

    Args:
        path: The folder to be written.
        overwrite: Whether it may replace one that is not empty.

    Raises:
        UserError: If it may not, if the path is a file, or as `check_writable`.

    Example:
    ```python
    check_output_folder("runs/vocabulary")
    ```
    """
    check_writable(path)
    if os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise UserError(f"{path} is not empty; give another folder, or --overwrite to replace it.")


def check_writable(path: str | os.PathLike[str], flag: str = "") -> None:
    """Tries whether a folder can be made and written to, before the work that is to fill it.

    Nothing is left of the attempt.

    Args:
        path: The folder, which need not exist.
        flag: The flag that gave it, as `--output_dir`, for the message.

    Raises:
        UserError: If it is a file or lies in one, or the system refuses to write there.

    Example:
    ```python
    check_writable("runs/vocabulary", "--output_dir")
    ```
    """
    path = os.fspath(path)
    named = f"{flag}={path}" if flag else path
    if "://" in path:
        raise UserError(f"{named} must be a folder of a mounted file system.")
    present = _missing(path)[-1]
    if not os.path.isdir(present):
        within = "" if os.path.abspath(path) == present else f" cannot be made, as {present}"
        raise UserError(f"{named}{within} is a file; the output must be a folder.")
    try:
        with made_folders(path, keep=False), tempfile.TemporaryFile(dir=path) as file:
            file.write(_PROBE)
    except OSError as error:
        raise UserError(f"{named} cannot be written to: {error.strerror}.") from error


@contextlib.contextmanager
def made_folders(path: str, keep: bool = True) -> Iterator[None]:
    """Makes a folder and those around it, and removes them again, where empty, if that fails.

    Args:
        path: The folder.
        keep: Whether they stay if all goes well.

    Example:
    ```python
    with made_folders("runs/table3"):
        open("runs/table3/notes.txt", "w").close()
    ```
    """
    missing = _missing(path)[:-1]
    try:
        os.makedirs(path, exist_ok=True)
        yield
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            for folder in missing:
                with contextlib.suppress(OSError):  # It holds something, or never came to be.
                    os.rmdir(folder)


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
    with (
        made_folders(parent),
        tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as temporary,
    ):
        folder = os.path.join(temporary, "new")
        os.mkdir(folder)
        yield folder
        if os.path.isdir(path):
            os.replace(path, os.path.join(temporary, "old"))
        os.replace(folder, path)


def _missing(path: str) -> list[str]:
    """A folder and those around it, up to the first that is there."""
    folders = [os.path.abspath(path)]
    while not os.path.lexists(folders[-1]):
        folders.append(os.path.dirname(folders[-1]))
    return folders

"""Files and folders that a user names: on this machine, or on a store such as `gs://`.

Local paths are opened by Python itself, pipes among them. A path with a scheme goes through
`tf.io.gfile`, which is imported only then; what it refuses is an `OSError` as anywhere else, and a
scheme that it has no file system for a `UserError`.

A store has no folders, only names with slashes, and renames none of them. So what consists of
several files counts once the last of them, a small one, is there (`new_folder`): writers write it
last and remove it first, and readers look for it.
"""

import contextlib
import errno
import glob as local_glob
import io
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TextIO

from cocolm_tf.errors import UserError

StrPath = str | os.PathLike[str]

# Larger than what file systems store inline with a file's name.
_PROBE = bytes(4096)
_BUFFER = 1 << 16
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A URL after `pathlib` has normalized it.
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
# The most characters of a store's message in one line.
_LONGEST_REASON = 300
# By the names of TensorFlow's errors; the others are the store's own trouble.
_NUMBERS = {
    "AbortedError": errno.ETIMEDOUT,  # what the client for gs:// ends in after ten attempts
    "AlreadyExistsError": errno.EEXIST,
    "DeadlineExceededError": errno.ETIMEDOUT,
    "FailedPreconditionError": errno.ENOTDIR,
    "InvalidArgumentError": errno.EISDIR,
    "NotFoundError": errno.ENOENT,
    "PermissionDeniedError": errno.EACCES,
    "ResourceExhaustedError": errno.ENOSPC,
    "UnauthenticatedError": errno.EACCES,
    "UnavailableError": errno.ETIMEDOUT,
}


def is_remote(path: StrPath) -> bool:
    """Whether a path has a scheme, as `gs://bucket/run` has."""
    return _SCHEME.match(os.fspath(path)) is not None


def check_scheme(path: StrPath, flag: str = "") -> None:
    """Refuses a path, of anything or nothing, whose file system TensorFlow does not know here."""
    path = os.fspath(path)
    named = f"{flag}={path}" if flag else path
    if found := _COLLAPSED.match(path):
        raise UserError(f"{named}: a scheme ends in two slashes, {found[1]}://.")
    if not (found := _SCHEME.match(path)):
        return
    import tensorflow as tf

    if found[1] in tf.io.gfile.get_registered_schemes():
        return
    # Importing its plug-in registers more file systems.
    with contextlib.suppress(ImportError):
        import tensorflow_io  # noqa: F401
    if found[1] not in (known := tf.io.gfile.get_registered_schemes()):
        given = ", ".join(sorted(f"{scheme}://" for scheme in known if scheme))
        raise UserError(
            f"{named}: TensorFlow has no file system for {found[1]}:// here, but for {given} and "
            "what is mounted as a folder."
        )


# --- Paths, and what exists ---


def join(path: StrPath, *parts: str) -> str:
    """Puts the parts of a path together; what is absolute or has a scheme begins anew."""
    joined = os.fspath(path)
    for part in parts:
        joined = part if is_remote(part) else os.path.join(joined, part)
    return joined


def normal(path: StrPath) -> str:
    """The path without `..`, which stores do not know, and without a slash at its end."""
    path = os.fspath(path)
    if scheme := _SCHEME.match(path):
        return scheme[0] + posixpath.normpath(path[scheme.end() :])
    return os.path.normpath(path)


def absolute(path: StrPath) -> str:
    """The normal path for processes that start elsewhere; one with a scheme is the same there."""
    return normal(path) if is_remote(path) else os.path.abspath(path)


def relative(path: StrPath, folder: StrPath) -> str:
    """The path from a folder that it lies in."""
    return os.path.relpath(absolute(path), absolute(folder))


def name(path: StrPath) -> str:
    """The last part of a path, also of `.` and of one that ends in a slash."""
    return os.path.basename(absolute(path))


def exists(path: StrPath) -> bool:
    """Whether there is a file, a pipe or a folder."""
    return os.path.exists(path) if not is_remote(path) else _stat(path) is not None


def is_file(path: StrPath) -> bool:
    """Whether there is a file or a pipe."""
    if not is_remote(path):
        return os.path.exists(path) and not os.path.isdir(path)
    status = _stat(path)
    return status is not None and not status.is_directory


def is_dir(path: StrPath) -> bool:
    """Whether there is a folder; on a store, whether any name begins with this one and a slash."""
    if not is_remote(path):
        return os.path.isdir(path)
    status = _stat(path)
    return status is not None and status.is_directory


def size(path: StrPath) -> int:
    """The bytes of a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    with _gfile(path) as gfile:
        return gfile.stat(os.fspath(path)).length


def list_dir(path: StrPath) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder."""
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    with contextlib.suppress(FileNotFoundError), _gfile(path) as gfile:
        names = {name.rstrip("/") for name in gfile.listdir(os.fspath(path))}
        return sorted(names - {""})
    return []


def walk(folder: StrPath, below: str = "") -> Iterator[str]:
    """The files in a folder and in those inside it, by their sorted paths from there."""
    for one in list_dir(join(folder, below)):
        inner = f"{below}/{one}" if below else one
        if is_dir(join(folder, inner)):
            yield from walk(folder, inner)
        else:
            yield inner


def glob(pattern: str) -> list[str]:
    """The files and folders that a pattern matches, sorted; `**` only in local ones."""
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern, recursive=True))
    if "**" in pattern:
        raise UserError(f"{pattern}: ** is for local files; give a * for each folder on the way.")
    with contextlib.suppress(FileNotFoundError), _gfile(pattern) as gfile:
        return sorted(gfile.glob(pattern))
    return []


# --- Reading and writing ---


def open_read(path: StrPath) -> BinaryIO:
    """Opens a file for reading bytes, buffered; all but pipes can seek."""
    return io.BufferedReader(_RemoteFile(path), _BUFFER) if is_remote(path) else open(path, "rb")


@contextlib.contextmanager
def open_append(path: StrPath) -> Iterator[TextIO]:
    """Opens a text file to add lines to; a store gets them when it is closed."""
    if not is_remote(path):
        with open(path, "a", encoding="utf-8") as file:
            yield file
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="cocolm_tf.") as file:
        if is_file(path):
            file.write(read_text(path))
            file.flush()
        try:
            yield file
        finally:
            file.flush()
            copy(file.name, path)


def read_bytes(path: StrPath) -> bytes:
    """The content of a file."""
    with open_read(path) as file:
        return file.read()


def read_text(path: StrPath) -> str:
    """The text of a file in UTF-8, with its line ends unchanged."""
    return read_bytes(path).decode()


def write_bytes(path: StrPath, content: bytes) -> None:
    """Writes a file atomically, in a folder that exists."""
    path = os.fspath(path)
    if is_remote(path):
        # A store shows an object only when it is complete.
        with _gfile(path) as gfile:
            _remove_before_write(path)
            with gfile.GFile(path, "wb") as file:
                file.write(content)
        return
    with open(path + ".tmp", "wb") as file:
        file.write(content)
    os.replace(path + ".tmp", path)


def write_text(path: StrPath, text: str) -> None:
    """Writes text in UTF-8 as `write_bytes` does, with its line ends unchanged."""
    write_bytes(path, text.encode())


def copy(source: StrPath, target: StrPath) -> None:
    """Copies a file, over one that may exist."""
    source, target = os.fspath(source), os.fspath(target)
    if not is_remote(source) and not is_remote(target):
        shutil.copyfile(source, target)
        return
    check_scheme(target)
    with _gfile(source) as gfile:
        _remove_before_write(target)
        gfile.copy(source, target, overwrite=True)


def rename(source: StrPath, target: StrPath) -> None:
    """Renames a file, over one that may exist; to, from and within a store it is copied."""
    if is_remote(source) != is_remote(target):
        copy(source, target)
        remove(source)
    elif is_remote(source):
        with _gfile(source) as gfile:
            gfile.rename(os.fspath(source), os.fspath(target), overwrite=True)
    else:
        os.replace(source, target)


def sync(path: StrPath) -> None:
    """Flushes a file or folder to disk; stores do so themselves."""
    if not is_remote(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_dirs(path: StrPath) -> None:
    """Makes a folder and its parents, which may exist."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
        return
    with _gfile(path) as gfile:
        gfile.makedirs(os.fspath(path))


def remove(path: StrPath) -> None:
    """Removes a file, which need not exist."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            os.remove(path)
            return
        with _gfile(path) as gfile:
            gfile.remove(os.fspath(path))


def remove_tree(path: StrPath) -> None:
    """Removes a folder and what is in it; it need not exist."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            shutil.rmtree(path)
            return
        with _gfile(path) as gfile:
            gfile.rmtree(os.fspath(path))


def remove_empty(folder: StrPath) -> bool:
    """Removes a folder if it is empty; returns whether it did."""
    if list_dir(folder) or not is_dir(folder):
        return False
    remove_tree(folder)
    return True


@contextlib.contextmanager
def local_copy(path: StrPath, names: Iterable[str] | None = None) -> Iterator[str]:
    """Yields a local path of a file or folder: its own, or a temporary copy of some names in it."""
    if not is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory(prefix="cocolm_tf.") as folder:
        target = os.path.join(folder, name(path))
        if names is None:
            _copy_tree(os.fspath(path), target)
        else:
            os.mkdir(target)
            for one in names:
                os.makedirs(os.path.dirname(join(target, one)), exist_ok=True)
                copy(join(path, one), join(target, one))
        try:
            yield target
        except UserError as error:  # The message names the user's path instead of the copy's.
            raise UserError(str(error).replace(target, os.fspath(path))) from error


@contextlib.contextmanager
def new_folder(
    path: StrPath, overwrite: bool = False, last: str = "manifest.json"
) -> Iterator[str]:
    """Yields a local folder to fill, which is moved to `path` on success, `last` as last file."""
    # Locally it lies beside `path` and is renamed, where the file system has that. Elsewhere its
    # files are copied: `last` of what is replaced goes first, that of the new comes last.
    path = absolute(path)
    _check_empty(path, overwrite)
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="cocolm_tf.") as folder:
            yield folder
            _copy_last(folder, path, last)
        return
    parent = os.path.dirname(path)
    # A fixed name, so that the rest of a killed process is removed by the next.
    temporary = os.path.join(parent, f".{name(path)}.tmp")
    folder = os.path.join(temporary, "new")
    with made_folders(parent):
        remove_tree(temporary)
        try:
            os.makedirs(folder)
            yield folder
            try:
                if os.path.isdir(path):
                    os.replace(path, os.path.join(temporary, "old"))
                os.replace(folder, path)
            except OSError:  # Mounted stores rename only files.
                _copy_last(folder, path, last)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


# --- Checks before the work ---


def check_output_folder(path: StrPath, overwrite: bool = False, flag: str = "") -> None:
    """Checks as `check_writable`, and that the folder is empty or may be replaced."""
    check_writable(path, flag)
    _check_empty(path, overwrite)


def check_writable(path: StrPath, flag: str = "") -> None:
    """Checks before the work that a folder can be made and written to, leaving no trace."""
    check_scheme(path, flag)
    path = os.fspath(path)
    named = f"{flag}={path}" if flag else path
    present = path if is_remote(path) else _missing(path)[-1]
    try:
        if is_file(present) or (not is_remote(path) and not os.path.isdir(present)):
            within = "" if absolute(path) == absolute(present) else f" cannot be made, as {present}"
            raise UserError(f"{named}{within} is a file; the output must be a folder.")
        if is_remote(path):
            probe = join(path, f".{uuid.uuid4().hex}.tmp")
            write_bytes(probe, _PROBE)
            remove(probe)
            return
        with made_folders(path, keep=False), tempfile.TemporaryFile(dir=path) as file:
            file.write(_PROBE)
    except OSError as error:
        raise UserError(f"{named} cannot be written to: {error.strerror}.") from error


@contextlib.contextmanager
def made_folders(path: str, keep: bool = True) -> Iterator[None]:
    """Makes a local folder and its parents; removes the empty ones again if what follows fails."""
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
                with contextlib.suppress(OSError):  # It is not empty, or was never made.
                    os.rmdir(folder)


def _check_empty(path: StrPath, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless that may be replaced."""
    if not overwrite and list_dir(path):
        raise UserError(f"{path} is not empty; give another folder, or --overwrite to replace it.")


def _missing(path: str) -> list[str]:
    """A local folder and its parents, up to the first that exists."""
    folders = [os.path.abspath(path)]
    while not os.path.lexists(folders[-1]):
        folders.append(os.path.dirname(folders[-1]))
    return folders


def _copy_last(folder: str, path: str, last: str) -> None:
    """Replaces what is at a path by what is in a local folder, one of its files last."""
    remove(join(path, last))
    if is_dir(path):
        remove_tree(path)
    _copy_tree(folder, path, last)
    if os.path.exists(os.path.join(folder, last)):
        copy(os.path.join(folder, last), join(path, last))


def _copy_tree(source: str, target: str, without: str = "") -> None:
    if not is_dir(source):
        copy(source, target)
        return
    make_dirs(target)
    for one in list_dir(source):
        if one != without:
            _copy_tree(join(source, one), join(target, one))


# --- TensorFlow's file systems ---


@contextlib.contextmanager
def _gfile(path: StrPath) -> Iterator[Any]:
    """`tf.io.gfile`, with its errors converted to Python's."""
    check_scheme(path)
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        number = _NUMBERS.get(type(error).__name__, errno.ETIMEDOUT)
        reason = " ".join(error.message.split()).rstrip(".")[:_LONGEST_REASON]
        raise OSError(number, reason or os.strerror(number), os.fspath(path)) from error


def _remove_before_write(path: str) -> None:
    """Removes a file of `ram://`, which unlike all others appends instead of overwriting."""
    if path.startswith("ram://") and is_file(path):
        remove(path)


def _stat(path: StrPath) -> Any:
    """The status of a file or folder; None if there is none."""
    with contextlib.suppress(FileNotFoundError), _gfile(path) as gfile:
        return gfile.stat(absolute(path))
    return None


class _RemoteFile(io.RawIOBase):
    """A file of one of TensorFlow's file systems, for reading."""

    def __init__(self, path: StrPath) -> None:
        self._path = os.fspath(path)
        self._size: int | None = None
        with _gfile(path) as gfile:
            self._file = gfile.GFile(self._path, "rb")
            self._file.read(0)  # The file is opened only now.

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        with _gfile(self._path):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _gfile(self._path):
            if whence == os.SEEK_CUR:
                offset += self._file.tell()
            elif whence == os.SEEK_END:
                self._size = self._file.size() if self._size is None else self._size
                offset += self._size
            self._file.seek(offset)
        return offset

    def tell(self) -> int:
        with _gfile(self._path):
            return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

"""The exceptions that are meant for a user and not for a developer."""

import errno
import os
import re
import sys


class UserError(Exception):
    """A mistake in what the user gave: a flag, a file, a row, a configuration key.

    Its message is one line that names what is wrong and what would be right. The programs print
    it without a traceback and exit with status 1 (see `cocolm_tf.program`).

    Example:
    ```python
    raise UserError("--sequence_length is 1024 but the model has 512 positions.")
    ```
    """


class RestartableError(BaseException):
    """An end without a mistake: the machine was preempted, or another worker is gone."""

    # Its message is one line. The programs print it and exit with status 75; started again with the
    # same flags, the job resumes (see `cocolm_tf.program`). Like `KeyboardInterrupt`, it may be
    # raised at any moment and is no `Exception`, so that no handler on its way takes it for a
    # failure.


# What the system refuses, with advice. Other errors of files may be defects of ours.
_ROOM = "make room and start again"
_ELSEWHERE = "give another folder, or change its permissions"
_PATH = "give another path"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) or give another file system",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.ENOENT: _PATH,
    errno.ENAMETOOLONG: _PATH,
    errno.ELOOP: _PATH,
    errno.EXDEV: _PATH,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs' files",
    errno.EIO: "look after the disk",
    errno.ESTALE: "mount the file system again",
    errno.EBUSY: "end what uses it",
    errno.ETIMEDOUT: "start again when the file system answers",
}
_BY_TEXT = {os.strerror(number): number for number in _ADVICE}
_HDF5_FILE = re.compile(r"filename = '([^']*)'")
_TENSORFLOW_FILE = re.compile(rf"(?:^|\}}\}} )([^;{{}}]+); ({'|'.join(map(re.escape, _BY_TEXT))})")
_TENSORFLOW_SCHEME = re.compile(r"File system scheme '([^']*)' not implemented \(file: '([^']*)'")
_TENSORFLOW_PARENT = re.compile(r"^(\S+) is not a directory")


def refusal(error: BaseException) -> str | None:
    """The one-line message where the system refused something (a file, a folder, room)."""
    tensorflow = sys.modules.get("tensorflow.python.framework.errors_impl")
    if isinstance(error, OSError) and error.errno in _ADVICE:
        # HDF5 has the file's name only in its message of several lines.
        found = _HDF5_FILE.search(str(error))
        path = error.filename or (found[1] if found else "")
        if "://" in str(path):  # A store's message says more than the error's number.
            return f"{error.strerror} ({path}): {_ADVICE[error.errno]}."
        return _refused(error.errno, path)
    if tensorflow is None or not isinstance(error, tensorflow.OpError):
        return None
    text = " ".join(error.message.split())
    if found := _TENSORFLOW_FILE.search(text):
        return _refused(_BY_TEXT[found[2]], found[1])
    if found := _TENSORFLOW_PARENT.search(text):
        return _refused(errno.ENOTDIR, found[1])
    if found := _TENSORFLOW_SCHEME.search(text):
        return f"TensorFlow here has no file system for {found[1]}://: {found[2]} cannot be opened."
    if isinstance(error, tensorflow.PermissionDeniedError | tensorflow.UnauthenticatedError):
        return f"{text.rstrip('.')}: {_ELSEWHERE}."
    return None


def is_hdf5_refusal(error: BaseException) -> bool:
    """Whether an error, of whatever class, says that HDF5 was refused a file."""
    found = re.search(r"errno = (\d+)", str(error))
    return found is not None and int(found[1]) in _ADVICE


def _refused(number: int, path: str | bytes | int | None) -> str:
    where = f" ({os.fsdecode(path)})" if isinstance(path, str | bytes) and path else ""
    return f"{os.strerror(number)}{where}: {_ADVICE[number]}."

import errno
import os
import pickle
import tempfile

import pytest
import tensorflow as tf

from cocolm_tf.errors import UserError, is_hdf5_refusal, refusal

FULL = os.strerror(errno.ENOSPC)


def told_by_hdf5(text: str) -> str:
    return f"{text} (file write failed: time = now\n, filename = '/x/m.h5', errno = 28, error = '')"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, FULL), "No space left on device: make room and start again."),
        (
            PermissionError(errno.EACCES, "", "/x"),
            "Permission denied (/x): give another folder, or",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "", "/x/y"),
            "Not a directory (/x/y): give another path.",
        ),
        (
            OSError(errno.EMFILE, "", "/x"),
            "Too many open files (/x): raise the limit of open files",
        ),
        (OSError(errno.ENOSPC, told_by_hdf5("Can't write")), f"{FULL} (/x/m.h5): make room and st"),
        (
            tf.errors.ResourceExhaustedError(None, None, f"/x/a.tfrecord; {FULL}"),
            f"{FULL} (/x/a.tfrecord): make room and start again.",
        ),
        (
            tf.errors.ResourceExhaustedError(
                None, None, f"{{{{function_node f}}}} /x/part-0; {FULL} [Op:SaveV2]"
            ),
            f"{FULL} (/x/part-0): make room and start again.",
        ),
        (tf.errors.FailedPreconditionError(None, None, "/x is not a directory"), "Not a directory"),
        (
            tf.errors.UnimplementedError(
                None, None, "File system scheme 's3' not implemented (file: 's3://b/x')"
            ),
            "TensorFlow here has no file system for s3://: s3://b/x cannot be opened.",
        ),
        (
            tf.errors.PermissionDeniedError(None, None, "HTTP response code 403"),
            "HTTP response code",
        ),
    ],
)
def test_what_the_system_refuses_is_a_line(error: Exception, told: str):
    for one in (error, pickle.loads(pickle.dumps(error))):  # as from a worker's process
        assert refusal(one).startswith(told)
        assert "\n" not in refusal(one)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("unforeseen"),
        OSError("without a number"),
        UserError("is told already"),
        tf.errors.InvalidArgumentError(None, None, "Incompatible shapes: [2] vs. [3]"),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor of shape [2]"),
        tf.errors.FailedPreconditionError(None, None, "Could not find variable"),
    ],
)
def test_a_defect_is_no_refusal(error: Exception):
    assert refusal(error) is None


def test_what_tensorflow_really_raises_is_understood(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path, "/proc/x", "s3://bucket/x"):
        with pytest.raises(tf.errors.OpError) as caught, tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(b"record")
        assert str(path) in refusal(caught.value)
    if os.path.exists("/dev/full"):
        with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
            tf.io.TFRecordWriter("/dev/full").write(bytes(1 << 20))
        assert refusal(caught.value) == f"{FULL} (/dev/full): make room and start again."


def test_what_hdf5_says_on_its_way_out_is_known():
    assert is_hdf5_refusal(RuntimeError(told_by_hdf5("Can't decrement id ref count")))
    assert not is_hdf5_refusal(RuntimeError("Can't decrement id ref count"))


def test_temporary_files_of_a_probe_are_gone(tmp_path, monkeypatch):
    from cocolm_tf.files import check_writable

    check_writable(tmp_path / "a" / "b", "--output_dir")
    assert not list(tmp_path.iterdir())

    def refuse(dir: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="^--output_dir=.*/a/b cannot be written to: Read-only fi"):
        check_writable(tmp_path / "a" / "b", "--output_dir")
    assert not list(tmp_path.iterdir())

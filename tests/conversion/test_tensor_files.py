import builtins
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.conversion.tensor_files import FORMATS, open_tensors, write_tensors
from cocolm_tf.errors import UserError

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "vector": np.float32([0.1, -2.5, 3e30]),
    "a.b.scalar_row": np.float32([[7]]),
}


@pytest.fixture(params=FORMATS)
def suffix(request: pytest.FixtureRequest) -> str:
    if request.param == "bin":
        pytest.importorskip("torch")
    return request.param


def test_what_is_written_is_read(tmp_path: Path, suffix: str):
    path = str(tmp_path / FORMATS[suffix])
    write_tensors(path, ARRAYS)
    file = open_tensors(path)
    assert sorted(file.names) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert file.read(name).dtype == np.float32
        np.testing.assert_array_equal(file.read(name), array)
    assert [file.name for file in tmp_path.iterdir()] == [FORMATS[suffix]]


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_one_tensor_is_read_at_a_time(tmp_path: Path, format: str):
    size, path = 1_000_000, str(tmp_path / FORMATS[format])
    write_tensors(path, {str(number): np.zeros(size, np.float32) for number in range(8)})
    tracemalloc.start()
    for name in open_tensors(path).names:
        open_tensors(path).read(name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 4 * size


def test_libraries_read_what_is_written(tmp_path: Path):
    from safetensors.numpy import load_file

    write_tensors(str(tmp_path / "model.safetensors"), ARRAYS)
    for name, array in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    write_tensors(str(tmp_path / "weights.npz"), ARRAYS)
    for name, array in np.load(tmp_path / "weights.npz").items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_other_number_types_become_float32(tmp_path: Path):
    import ml_dtypes
    from safetensors.numpy import save_file

    values = np.float32([1.5, -0.25])
    arrays = {
        "half": values.astype(np.float16),
        "brain": values.astype(ml_dtypes.bfloat16),
        "double": values.astype(np.float64),
        "ids": np.int64([[0, 1]]),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    file = open_tensors(str(tmp_path / "model.safetensors"))
    for name in ("half", "brain", "double"):
        assert file.read(name).dtype == np.float32
        np.testing.assert_array_equal(file.read(name), values)
    assert file.read("ids").dtype == np.int64


def test_pytorchs_half_precision_becomes_float32(tmp_path: Path):
    torch = pytest.importorskip("torch")
    values = torch.tensor([1.5, -0.25])
    state = {"half": values.half(), "brain": values.bfloat16(), "ids": torch.arange(2), "step": 3}
    torch.save(state, tmp_path / "pytorch_model.bin")
    file = open_tensors(str(tmp_path / "pytorch_model.bin"))
    assert sorted(file.names) == ["brain", "half", "ids"]
    for name in ("half", "brain"):
        assert file.read(name).dtype == np.float32
        np.testing.assert_array_equal(file.read(name), values.numpy())
    assert file.read("ids").dtype == np.int64


class Attack:
    def __reduce__(self):
        return (builtins.exec, ("import pathlib; pathlib.Path('/tmp/attacked').touch()",))


def test_no_code_of_a_file_runs(tmp_path: Path):
    torch = pytest.importorskip("torch")
    torch.save({"model": Attack()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="without running code of the file's"):
        open_tensors(str(tmp_path / "model.pt"))
    assert not Path("/tmp/attacked").exists()
    np.savez(tmp_path / "weights.npz", attack=np.array([Attack()], dtype=object))
    with pytest.raises(UserError, match="attack cannot be read"):
        open_tensors(str(tmp_path / "weights.npz")).read("attack")
    assert not Path("/tmp/attacked").exists()


@pytest.mark.parametrize("name", ["weights.npz", "model.safetensors", "pytorch_model.bin", "x.h5"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str):
    if name.endswith(".bin"):
        pytest.importorskip("torch")
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=str(path)):
        open_tensors(str(path))
    with pytest.raises(UserError, match="is not a file"):
        open_tensors(str(tmp_path / f"missing{name}"))


def test_without_pytorch_its_files_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"")
    for attempt in (lambda: open_tensors(str(path)), lambda: write_tensors(str(path), {})):
        with pytest.raises(UserError, match=r"pip install 'cocolm-tf\[convert\]'"):
            attempt()

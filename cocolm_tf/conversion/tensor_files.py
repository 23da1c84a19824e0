"""Files of named tensors, read one tensor at a time.

NumPy's `.npz`, safetensors, and PyTorch's `.bin` and `.pt`, and several of the latter two under an
`.index.json` that says which of them has which tensor. Only PyTorch's need PyTorch, and they are
read by its loader of plain tensors (`weights_only`), which runs no code of the file's.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cocolm_tf import files
from cocolm_tf.errors import UserError

FORMATS = {"npz": "weights.npz", "safetensors": "model.safetensors", "bin": "pytorch_model.bin"}

_PYTORCH = (".bin", ".pt", ".pth")
_INDEX = ".index.json"


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The tensors of a file; each is read when it is asked for."""

    path: str  # The file
    names: tuple[str, ...]  # What tensors it has
    read: Callable[[str], np.ndarray]  # Gives a tensor by its name
    # What a fairseq checkpoint says of the model beside its tensors, by name.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_tensors(path: str) -> TensorFile:
    """Opens a file of tensors for reading."""
    if not files.is_file(path):
        raise UserError(f"{path} is not a file.")
    if path.endswith(_INDEX):
        return _open_index(path)
    suffix = os.path.splitext(path)[1]
    if suffix == ".npz":
        return _open_npz(path)
    if suffix == ".safetensors":
        return _open_safetensors(path)
    if suffix in _PYTORCH:
        return _open_pytorch(path)
    raise UserError(f"{path} is no file of weights: give .safetensors, .npz, .bin or .pt.")


def write_tensors(path: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file of tensors."""
    suffix = os.path.splitext(path)[1]
    if suffix == ".npz":
        np.savez(path, **tensors)
    elif suffix == ".safetensors":
        import safetensors.numpy

        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})
    else:
        torch = _import_pytorch(f"to write {path}")
        torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)


def check_finite(array: np.ndarray, name: str) -> None:
    """Refuses weights that are not finite: they spoil whatever is computed from them."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise UserError(
            f"{name} has {count} values of {array.size} that are NaN or infinite: its training "
            "diverged; take an earlier checkpoint."
        )


def has_pytorch() -> bool:
    """Whether PyTorch is installed, for its files."""
    return importlib.util.find_spec("torch") is not None


def _open_index(path: str) -> TensorFile:
    """Opens the files of a checkpoint in several, as Hugging Face's libraries write it."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise UserError(f"{path} has no weight_map, which says what file has which tensor.")
    folder, opened = os.path.dirname(path), {}
    for file in sorted(set(weight_map.values())):
        # What an index names lies beside it.
        if file != os.path.basename(file):
            raise UserError(f"{path} names {file!r}, which is not a file beside it.")
        if not files.is_file(os.path.join(folder, file)):
            raise UserError(f"{path} names {file}, which is missing beside it.")
        opened[file] = open_tensors(os.path.join(folder, file))
    for name, file in weight_map.items():
        if name not in opened[file].names:
            raise UserError(f"{path} says that {file} has {name}, which it has not.")
    return TensorFile(path, tuple(weight_map), lambda name: opened[weight_map[name]].read(name))


def _open_npz(path: str) -> TensorFile:
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz file.") from error

    def read(name: str) -> np.ndarray:
        try:
            return _as_float32(file[name])
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: {name} cannot be read: {_line(error)}") from error

    return TensorFile(path, tuple(file.files), read)


def _open_safetensors(path: str) -> TensorFile:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="np")
        names = tuple(file.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file: {_line(error)}") from error

    def read(name: str) -> np.ndarray:
        # NumPy knows bfloat16 once TensorFlow's number types are there.
        import ml_dtypes  # noqa: F401

        return _as_float32(file.get_tensor(name))

    return TensorFile(path, names, read)


def _open_pytorch(path: str) -> TensorFile:
    torch = _import_pytorch(f"{path} is PyTorch's")
    try:
        # fairseq keeps its settings in this class, which holds plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files of the old kind, before zip archives, cannot be mapped into memory.
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not a file of weights that PyTorch reads without running code of the "
            f"file's: {_line(error)}"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not named tensors.")
    settings = {}
    if isinstance(content.get("model"), Mapping):  # fairseq's
        settings = _fairseq_settings(content)
        content = content["model"]
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name].detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    return TensorFile(path, tuple(tensors), read, settings)


def _fairseq_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    settings = content.get("args")
    if settings is None:  # Since 2021 in a dict, the model's under "model".
        settings = (content.get("cfg") or {}).get("model") or {}
    return dict(settings) if isinstance(settings, Mapping) else vars(settings)


def _import_pytorch(why: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{why}, but PyTorch is not installed: pip install 'cocolm-tf[convert]', or give "
            "the weights as .safetensors or .npz."
        ) from error
    return torch


def _as_float32(array: np.ndarray) -> np.ndarray:
    is_integer = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
    return array if is_integer else array.astype(np.float32, copy=False)


def _line(error: Exception) -> str:
    """The first line of an error message of several."""
    return str(error).strip().split("\n")[0]


def read_json(path: str) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        content = json.loads(files.read_text(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def write_json(path: str, content: dict[str, Any] | list[Any]) -> None:
    """Writes a file of JSON."""
    files.write_text(path, json.dumps(content, indent=2) + "\n")

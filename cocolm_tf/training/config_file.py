"""YAML to configuration dataclasses, with every mistake named by its key."""

import contextlib
import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from official.modeling import hyperparams

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import read_text

# A condition on numbers, in code and in words, and the keys, `section.field`, that it is for.
Ranges = Sequence[tuple[Callable[[float], bool], str, Sequence[str]]]

# The key with the path, from a file, of the one that it changes.
_BASE = "base"


def parse_file(path: str) -> Any:
    """Reads a YAML file."""
    if not files.is_file(path):
        raise UserError(f"--config_file={path} does not exist.")
    return _parse(path, path)


def apply_file(config: hyperparams.Config, path: str) -> None:
    """Changes a configuration by a YAML file, and by those that its `base` names before it."""
    for file, values in _with_bases(path):
        override(config, values, file)


def override(config: hyperparams.Config, values: Any, name: str, prefix: str = "") -> None:
    """Changes some values: `Config.override`, with mistakes by their full keys."""
    if not isinstance(values, dict):
        what = f"{prefix.removesuffix('.')} takes" if prefix else "a configuration takes"
        raise UserError(f"{name}: {what} keys and their values, not {values!r}.")
    kinds = typing.get_type_hints(type(config))
    keys = [field.name for field in dataclasses.fields(config)]
    for key, value in values.items():
        if key not in keys:
            raise UserError(
                f"{name}: {prefix}{key} does not exist; "
                f"{prefix.removesuffix('.') or 'a configuration'} has {', '.join(keys)}."
            )
        if isinstance(getattr(config, key), hyperparams.Config):
            override(getattr(config, key), value, name, f"{prefix}{key}.")
        else:
            _check_type(name, f"{prefix}{key}", value, kinds[key])
            setattr(config, key, value)


def apply_overrides(config: hyperparams.Config, overrides: str | Sequence[str]) -> list[str]:
    """Changes some values by what `--params_override` takes, and returns the flags for messages."""
    # `a.b=1,c.d=x`, YAML or JSON text, a YAML file, or a list of these. Of a file with a `base`
    # only its own values are taken: what it changes is put over this configuration instead.
    names = []
    for one in [overrides] if isinstance(overrides, str) else overrides:
        if one:
            names.append(f"--params_override={one}")
            values = _parse(one, names[-1])
            if files.is_file(one) and isinstance(values, dict):
                values.pop(_BASE, None)
            override(config, values, names[-1])
    return names


def check_types(config: hyperparams.Config, name: str, prefix: str = "") -> None:
    """Refuses a value that is not of the type of its field, by its key."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        _check_type(name, key, value, kinds[field.name])
        if isinstance(value, hyperparams.Config):
            check_types(value, name, f"{key}.")


def check_ranges(config: hyperparams.Config, name: str, ranges: Ranges) -> None:
    """Refuses a number that is not in its range, by its key."""
    for is_right, wanted, keys in ranges:
        for key in keys:
            section, field = key.split(".")
            value = getattr(getattr(config, section), field)
            if not is_right(value):
                raise UserError(f"{name}: {key} must be {wanted}, not {value}.")


def check_choice(name: str, key: str, value: str, allowed: Sequence[str]) -> None:
    """Refuses a value that is none of several, by its key."""
    if value not in allowed:
        raise UserError(f"{name}: {key} is one of {', '.join(allowed)}, not {value!r}.")


def save_config(config: hyperparams.Config, path: str) -> None:
    """Writes a configuration as YAML."""
    files.write_text(path, yaml.safe_dump(config.as_dict(), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """YAML of plain values only, in which 1e-3 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


def _with_bases(path: str) -> list[tuple[str, Any]]:
    """A file's values after those of the files that it is based on, each with its path."""
    chain, paths = [], []
    while True:
        values = parse_file(path)
        base = values.pop(_BASE, None) if isinstance(values, dict) else None
        chain.insert(0, (path, values))
        paths.append(files.absolute(path))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise UserError(f"{path}: {_BASE} must be the path of a file, not {base!r}.")
        base = files.normal(files.join(os.path.dirname(path), base))
        if not files.is_file(base):
            raise UserError(f"{path}: {_BASE}: {base} does not exist.")
        if files.absolute(base) in paths:
            raise UserError(f"{path}: {_BASE}: {base} is based on this file.")
        path = base


def _parse(source: str, name: str) -> Any:
    """Reads a YAML file, or the text of an override."""
    try:
        if files.is_file(source):
            return yaml.load(read_text(source), _Loader) or {}
        with contextlib.suppress(ValueError):  # Not nested CSV: YAML or JSON.
            source = hyperparams.nested_csv_str_to_json_str(source)
        return yaml.load(source, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def _check_type(name: str, key: str, value: Any, kind: type | types.UnionType) -> None:
    kinds = typing.get_args(kind) or (kind,)
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if k is types.NoneType else k.__name__ for k in kinds)
        raise UserError(f"{name}: {key} must be of type {wanted}, not {value!r}.")

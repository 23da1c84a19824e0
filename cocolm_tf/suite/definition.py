"""What a suite is: the rows of a table, each by what it changes of a configuration they share.

rows:
  coco_lm:                                   # the name of its folder; it changes nothing
    title: COCO-LM                           # what tables call it
  converged_auxiliary:
    title: w. converged auxiliary
    group: Training signal
    changes: ../ablations/converged_auxiliary.yaml  # by its path from this file; or several
    auxiliary_of: coco_lm                    # the row above that its auxiliary model is from
  shallow:
    changes: [{model: {num_layers: 3}}]      # or values in place
  half:
    decay_from: coco_lm@500                  # branches off the row above: trainer.decay_from
    changes: [{trainer: {train_steps: 550}}]
  from_scratch:
    title: from scratch
    random_weights_of: coco_lm               # not pretrained: that row's architecture, afresh
  soup:
    preset: ../soup                          # not pretrained here: a folder, by its path from this
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.training.config_file import parse_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OWN_TRAINING = ("changes", "auxiliary_of", "decay_from")
_NO_TRAINING = ("random_weights_of", "preset")
_KEYS = ("title", "group", *_OWN_TRAINING, *_NO_TRAINING)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a suite.

    Args:
        name: The name of its folder.
        title: Its name in tables.
        group: Its group in tables; may be empty.
        changes: What it changes of the shared configuration, each as `--params_override` takes
            it; later ones hold where they disagree.
        auxiliary_of: The row whose auxiliary model it samples from, frozen; empty for its own.
        decay_from: ROW@STEP, the row whose run it branches off to let the learning rate decay, and
            the checkpoint; empty for a run from the beginning.
        random_weights_of: The row whose architecture it is fine-tuned in from random weights,
            instead of being pretrained; empty for other rows.
        preset: The folder that it is fine-tuned from, instead of being pretrained; empty for
            other rows.

    Example:
    ```python
    Row("rtd_only", "RTD only", changes=("configs/ablations/rtd_only.yaml",))
    ```
    """

    name: str
    title: str
    group: str = ""
    changes: tuple[str, ...] = ()
    auxiliary_of: str = ""
    decay_from: str = ""
    random_weights_of: str = ""
    preset: str = ""

    @property
    def is_pretrained(self) -> bool:
        """Whether the suite pretrains it."""
        return not (self.random_weights_of or self.preset)

    def needs(self) -> tuple[str, ...]:
        """The names of the rows that must be pretrained before this one."""
        return tuple(filter(None, (self.auxiliary_of, self.decay_from.rpartition("@")[0])))


@dataclasses.dataclass(frozen=True)
class Suite:
    """The rows of a table, in their order.

    Args:
        name: The name of its file, without the ending.
        rows: At least one. A row comes after those that it needs.

    Example:
    ```python
    load_suite("table3", "configs/suites").rows[0].title  # "COCO-LM"
    ```
    """

    name: str
    rows: tuple[Row, ...]


def load_suite(suite: str, suites: str) -> Suite:
    """Reads a suite and checks it.

    Args:
        suite: A name of a file in `suites` without its ending, or a YAML file of the form above.
        suites: The folder of the suites that go by their names.

    Returns:
        The suite.

    Raises:
        UserError: If there is no such suite, or naming the file and what is wrong in it.

    Example:
    ```python
    load_suite("baselines", "configs/suites")
    ```
    """
    path = os.path.join(suites, f"{suite}.yaml")
    if not files.is_file(path):
        path = suite
    if not files.is_file(path):
        known = [name[:-5] for name in files.list_dir(suites) if name.endswith(".yaml")]
        raise UserError(f"--suite is one of {', '.join(known)} or a YAML file, not {suite!r}.")
    values = parse_file(path)
    rows = values.get("rows") if isinstance(values, dict) else None
    if not isinstance(rows, dict) or not rows or set(values) != {"rows"}:
        raise UserError(f"{path}: a suite has the key rows, with the rows by their names.")
    read: dict[str, Row] = {}
    for name, fields in rows.items():
        read[name] = _row(path, name, fields, read)
    return Suite(os.path.splitext(os.path.basename(path))[0], tuple(read.values()))


def _row(path: str, name: Any, fields: Any, above: Mapping[str, Row]) -> Row:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: rows.{name}: a row's name is that of its folder: letters, digits, _, - and . "
            "only."
        )
    where = f"{path}: rows.{name}"
    fields = {} if fields is None else fields
    if not isinstance(fields, dict):
        raise UserError(f"{where} takes keys and their values, not {fields!r}.")
    for key, value in fields.items():
        if key not in _KEYS:
            raise UserError(f"{where}.{key} does not exist; a row has {', '.join(_KEYS)}.")
        if key != "changes" and not isinstance(value, str):
            raise UserError(f"{where}.{key} must be of type str, not {value!r}.")
    decay_from = fields.get("decay_from")
    if decay_from is not None and not re.fullmatch(r".+@\d+", decay_from):
        raise UserError(f"{where}.decay_from must be ROW@STEP, not {decay_from!r}.")
    for key in ("auxiliary_of", "decay_from", "random_weights_of"):
        other = fields.get(key)
        if key == "decay_from" and other:
            other = other.rpartition("@")[0]
        source = above.get(other)
        may_be_preset = key == "random_weights_of" and source and source.preset
        if other is not None and not may_be_preset and not (source and source.is_pretrained):
            raise UserError(f"{where}.{key}: {other} is no pretrained row above this one.")
    for key in _NO_TRAINING:
        excluded = [other for other in (*_OWN_TRAINING, *_NO_TRAINING) if other != key]
        if key in fields and fields.keys() & set(excluded):
            raise UserError(
                f"{where} has {key}: it is not pretrained, so it cannot have "
                f"{', '.join(excluded[:-1])} or {excluded[-1]}."
            )
    preset = fields.get("preset", "")
    if preset:
        preset = files.absolute(files.join(os.path.dirname(path), preset))
        if not files.is_dir(preset):
            raise UserError(f"{where}.preset: {preset} is not a folder.")
    changes = fields.get("changes", [])
    changes = changes if isinstance(changes, list) else [changes]
    return Row(
        name,
        fields.get("title", name),
        fields.get("group", ""),
        tuple(_change(where, path, change) for change in changes),
        fields.get("auxiliary_of", ""),
        fields.get("decay_from", ""),
        fields.get("random_weights_of", ""),
        preset,
    )


def _change(where: str, path: str, change: Any) -> str:
    """A change as `--params_override` takes it."""
    if isinstance(change, dict):
        return json.dumps(change)
    if not isinstance(change, str):
        raise UserError(f"{where}.changes are YAML files or values by their keys, not {change!r}.")
    file = files.normal(files.join(os.path.dirname(path), change))
    if not files.is_file(file):
        raise UserError(f"{where}.changes: {file} does not exist.")
    return file


def row_overrides(suite: Suite, flags: Sequence[str]) -> dict[str, list[str]]:
    """Sorts further changes by the rows that they are for."""
    pretrained = [row.name for row in suite.rows if row.is_pretrained]
    found: dict[str, list[str]] = {}
    for flag in flags:
        name, colon, override = flag.partition(":")
        if not colon or name not in pretrained:
            raise UserError(
                f"--row_override={flag}: give ROW:OVERRIDE, where the row is one of "
                f"{', '.join(pretrained)}."
            )
        found.setdefault(name, []).append(override)
    return found

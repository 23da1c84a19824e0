"""`manifest.json`: what a dataset holds, what made it, and whether it is complete.

It is written last, so a folder without it is not a dataset.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cocolm_tf import files
from cocolm_tf.data import shards as shard_files
from cocolm_tf.data.reading import with_retries
from cocolm_tf.data.shards import COUNTS, Shard
from cocolm_tf.errors import UserError

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1


class Vocabulary(Protocol):
    """What a manifest asks of a tokenizer."""

    def vocabulary_size(self) -> int:
        """The number of ids."""

    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets."""


@dataclass(frozen=True)
class Manifest:
    """The manifest of one dataset.

    Args:
        directory: The folder of the dataset.
        sequence_length: The most tokens of a record, special tokens included.
        vocabulary_size: The number of ids of the vocabulary.
        vocabulary_fingerprint: The tokenizer's `fingerprint()`.
        parameters: What else made it: the seed, the compression, the source.
        shards: The shards, in the order of their numbers.
        cleaning: What was left out of the dataset or changed: how many bad records, duplicates,
            documents that were too short, and so on.

    Example:
    ```python
    manifest = Manifest.load("data")
    print(manifest.counts["sequences"], manifest.fill_rate)
    ```
    """

    directory: str
    sequence_length: int
    vocabulary_size: int
    vocabulary_fingerprint: str
    parameters: dict[str, Any]
    shards: tuple[Shard, ...]
    cleaning: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The sums over the shards of `documents`, `skipped_documents`, ..., `tokens`."""
        return {name: sum(getattr(shard, name) for shard in self.shards) for name in COUNTS}

    @property
    def fill_rate(self) -> float:
        """The share of a batch, padded to `sequence_length`, that is not padding."""
        counts = self.counts
        return counts["tokens"] / (counts["sequences"] * self.sequence_length)

    @property
    def is_shuffled(self) -> bool:
        """Whether neighbors in a shard are of different texts; earlier versions kept the order."""
        return "break" in self.parameters

    @property
    def replacements(self) -> dict[str, Any] | None:
        """How replacements of masked tokens were drawn beforehand; None where they were not."""
        return self.parameters.get("replacements")

    @property
    def paths(self) -> list[str]:
        """The paths of the shards, in the order of their numbers."""
        return [os.path.join(self.directory, shard.file) for shard in self.shards]

    def fingerprint(self, paths: Sequence[str] | None = None) -> str:
        """SHA-256 of the content of the dataset, or of some of its shards, wherever it lies."""
        hashes = {shard.file: shard.sha256 for shard in self.shards}
        names = map(os.path.basename, self.paths if paths is None else paths)
        content = [self.vocabulary_fingerprint, *(hashes[name] for name in names)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @classmethod
    def load(cls, path: str) -> "Manifest":
        """Reads the manifest of a dataset.

        Args:
            path: The folder of the dataset, or a path or glob of shards in it.

        Raises:
            UserError: If there is no manifest, or this version cannot read it.
        """
        directory = path if files.is_dir(path) else os.path.dirname(path)
        file = os.path.join(directory, FILE_NAME)
        if not files.exists(file):
            raise UserError(f"{file} does not exist: {directory or '.'!r} is not a built dataset.")
        try:
            fields = json.loads(with_retries(file, lambda: files.read_text(file)))
            version = fields["format_version"]
            if version != FORMAT_VERSION:
                raise UserError(f"{file} has format version {version}, not {FORMAT_VERSION}.")
            return cls(
                directory=directory,
                sequence_length=fields["sequence_length"],
                vocabulary_size=fields["vocabulary"]["size"],
                vocabulary_fingerprint=fields["vocabulary"]["fingerprint"],
                parameters=fields["parameters"],
                shards=tuple(Shard(**shard) for shard in fields["shards"]),
                # Earlier versions had none.
                cleaning=fields.get("cleaning", {}),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}): build the dataset again.") from error

    def save(self) -> None:
        """Writes the manifest into its folder, in one atomic step."""
        fields = {
            "format_version": FORMAT_VERSION,
            "sequence_length": self.sequence_length,
            "counts": self.counts,
            "vocabulary": {
                "size": self.vocabulary_size,
                "fingerprint": self.vocabulary_fingerprint,
            },
            "parameters": self.parameters,
            "cleaning": self.cleaning,
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }
        file = os.path.join(self.directory, FILE_NAME)
        files.write_text(file, json.dumps(fields, indent=2) + "\n")

    def verify(
        self,
        tokenizer: Vocabulary | None = None,
        checksums: bool = True,
        paths: Sequence[str] | None = None,
        skip_corrupt: bool = False,
    ) -> list[int]:
        """Checks that the dataset is complete and fits the vocabulary.

        Args:
            tokenizer: The tokenizer to train with; None to leave it unchecked.
            checksums: Whether to read every shard instead of comparing its size alone.
            paths: The shards to check; None for all.
            skip_corrupt: Whether a missing, truncated or corrupt shard is reported instead of
                refused.

        Returns:
            How many sequences of each shard can be read, from its first on.

        Raises:
            UserError: If a shard is missing, truncated or altered (with the number of the first
                record that cannot be read), or the vocabulary is another one.
        """
        if tokenizer is not None and tokenizer.fingerprint() != self.vocabulary_fingerprint:
            raise UserError(
                f"{self.directory} was built with another vocabulary, of {self.vocabulary_size} "
                f"ids and fingerprint {self.vocabulary_fingerprint[:12]}, than the one given, of "
                f"{tokenizer.vocabulary_size()} and {tokenizer.fingerprint()[:12]}: give that "
                "--vocabulary or build the dataset again."
            )
        shards = {shard.file: shard for shard in self.shards}
        sequences = []
        for path in self.paths if paths is None else paths:
            shard = shards[os.path.basename(path)]
            damage = with_retries(path, lambda: _damage(path, shard, checksums))  # noqa: B023
            sequences.append(damage.sequences if damage else shard.sequences)
            if damage and damage.can_be_skipped and skip_corrupt:
                left_out = shard.sequences - damage.sequences
                print(f"{path} {damage.what}: {left_out} sequences left out.", file=sys.stderr)
            elif damage:
                raise UserError(f"{path} {damage.what}: {damage.advice}.")
        return sequences


def resolve_shards(pattern: str) -> tuple[list[str], Manifest]:
    """The sorted paths of shards, by dataset folder or glob, and the manifest beside them."""
    if files.is_dir(pattern):
        trained = os.path.join(pattern, "train")
        if not _has_manifest(pattern) and _has_manifest(trained):
            raise UserError(f"{pattern} has its datasets one level below: give {trained}.")
        manifest = Manifest.load(pattern)
        return manifest.paths, manifest
    # A shard's path may have a glob's special characters.
    found = [pattern] if files.exists(pattern) else files.glob(pattern)
    paths = sorted(filter(shard_files.is_shard, found))
    if not paths:
        raise UserError(
            f"no shard matches {pattern!r}: give a folder that build_pretraining_data.py wrote, or "
            "a glob of its *.tfrecord files."
        )
    directories = sorted({os.path.dirname(path) for path in paths})
    if len(directories) > 1:
        raise UserError(f"{pattern!r} matches shards of several datasets: {directories}.")
    manifest = Manifest.load(paths[0])
    listed = {shard.file for shard in manifest.shards}
    for path in paths:
        if os.path.basename(path) not in listed:
            raise UserError(f"{path} is not a shard of the {FILE_NAME} beside it: remove it.")
    return paths, manifest


def _has_manifest(directory: str) -> bool:
    return files.exists(os.path.join(directory, FILE_NAME))


@dataclass(frozen=True)
class _Damage:
    """What is wrong with a shard, and how many sequences can be read nevertheless."""

    what: str
    sequences: int
    can_be_skipped: bool = True
    advice: str = (
        "build the dataset again, or leave out what cannot be read with data.skip_corrupt=true"
    )


def _damage(path: str, shard: Shard, checksums: bool) -> _Damage | None:
    if not files.exists(path):
        return _Damage(f"is missing, though {FILE_NAME} beside it lists it", 0)
    intact = files.size(path) == shard.bytes
    if intact and checksums:
        intact = shard_files.sha256_of(path) == shard.sha256
    if intact:
        return None
    records, whole = shard_files.readable_records(path)
    if not whole:
        what = f"is truncated or corrupt at record {records} (of {shard.sequences}, from 0)"
        return _Damage(what, min(records, shard.sequences))
    # It can be read in full, so that it is another shard, of unknown origin.
    again = {"can_be_skipped": False, "advice": "build the dataset again"}
    if records != shard.sequences:
        what = f"has {records} records and not the {shard.sequences} of {FILE_NAME}"
        return _Damage(what, records, **again)
    return _Damage(f"was altered: its checksum is not the one in {FILE_NAME}", records, **again)

"""Builds a dataset: tokenizes documents, packs them, shuffles the sequences, writes shards.

The text is read in chunks, and what a chunk gives depends only on its text, its number and the
recipe (`packing`). Processes handle the chunks in any order (`processes`); each chunk's sequences
are kept in a file until all are there, and then merged into shards in their random order
(`shuffle`). So the number of workers changes how long a build takes and not one byte of what it
writes, and an interrupted build resumes with the chunks that are not done.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.data.cleaning import Cleaning, Deduplication, DuplicateIndex, duplicates_in
from cocolm_tf.data.packing import (
    BREAKS,
    CHUNK_BYTES,
    NO_SHARD,
    TRAIN,
    VALIDATION,
    Part,
    Recipe,
    chunk_sequences,
    chunks,
    parts_of,
    text_size,
)
from cocolm_tf.data.processes import PartRead, Workers
from cocolm_tf.data.shards import (
    COUNTS,
    FILE_NAME,
    TEMPORARY_SUFFIX,
    Manifest,
    Shard,
    is_shard,
    shard_name,
    write_shard,
)
from cocolm_tf.data.shuffle import Run, Runs, merged_examples
from cocolm_tf.data.sources import Source
from cocolm_tf.errors import UserError

_SHORTEST = 8
SPILL_FOLDER = ".build"

# To be raised when the content of runs changes for the same recipe.
_RUNS_VERSION = 2
# The bytes that a build keeps at its largest for each byte of text; a compressed file has several
# times as much text as bytes, and one of JSON less.
_BYTES_KEPT = 1.0
_FEWEST_BYTES_KEPT = 0.25


def build_shards(
    documents: Source | Iterable[str],
    vocabulary_dir: str,
    sequence_length: int,
    num_shards: int,
    num_workers: int,
    output_dir: str,
    seed: int = 0,
    compress: bool = False,
    validation_fraction: float = 0.0,
    overwrite: bool = False,
    source: dict[str, Any] | None = None,
    break_at: str = "word",
    cleaning: Cleaning | None = None,
    deduplication: Deduplication | None = None,
    spill_dir: str | None = None,
) -> Manifest:
    """Builds a dataset out of documents.

    The shards have temporary names until all of them are complete, and the manifest comes last: a
    build that fails or is killed leaves no dataset. Of a `Source` it leaves a folder of finished
    chunks, from which the same call resumes.

    Args:
        documents: A source, which the workers read, or any documents, which this process reads.
        vocabulary_dir: The folder of the vocabulary.
        sequence_length: The most tokens of a record, `<s>` and `</s>` included; at least 8.
        num_shards: The number of shards, which get about equally many sequences.
        num_workers: The number of processes to tokenize with; 0 to do the work in this one.
        output_dir: The folder of the dataset, which may exist, and may be remote.
        seed: Decides which sequence goes where, and which documents are held out.
        compress: Whether to compress the shards with gzip.
        validation_fraction: The share of the documents, drawn by a hash of their text, to hold out.
            If it is above 0, two datasets are written, `output_dir/train` and
            `output_dir/validation`; the latter's number of shards is in proportion.
        overwrite: Whether to replace a dataset that is in `output_dir`.
        source: What the documents are, for the manifest; None for what a `Source` says.
        break_at: Where a sequence may end, `"token"`, `"word"` or `"document"`: see `Recipe`.
        cleaning: Limits on the documents.
        deduplication: Which documents are duplicates of earlier ones; only for a `Source`, as it
            is read twice.
        spill_dir: A local folder for finished chunks, which are about as large as the text. None
            for `output_dir`, or where that is remote the system's folder for temporary files.

    Returns:
        The manifest of the dataset to train on.

    Raises:
        UserError: If an argument is out of its range, there is a dataset already, the vocabulary
            cannot be loaded, there is too little text for the shards, or a worker dies.

    Example:
    ```python
    from cocolm_tf.data import FileSource, build_shards

    corpus = FileSource.find("corpus/*.txt")
    manifest = build_shards(corpus, "vocabulary", 512, 16, 4, "data")
    print(manifest.counts)
    ```
    """
    is_source = isinstance(documents, Source)
    if not is_source:
        documents = _not_empty(documents)
    spill_dir = _spill_folder(output_dir, spill_dir)
    plan = Plan.of(
        documents,
        vocabulary_dir,
        output_dir,
        num_workers=num_workers,
        compress=compress,
        overwrite=overwrite,
        source=source,
        deduplication=deduplication,
        spill_dir=spill_dir,
        sequence_length=sequence_length,
        num_shards=num_shards,
        seed=seed,
        validation_fraction=validation_fraction,
        break_at=break_at,
        cleaning=cleaning,
    )
    with contextlib.ExitStack() as stack:
        if not files.is_remote(output_dir):
            stack.enter_context(files.made_folders(output_dir))
        identity, read = (plan.identity, documents) if is_source else (None, None)
        runs = stack.enter_context(Runs(spill_dir, identity, plan.parts))
        workers = stack.enter_context(Workers(_useful_workers(num_workers, plan.parts), read))
        duplicates = ""
        if deduplication is not None:
            duplicates = _find_duplicates(deduplication, plan.parts, runs.folder, workers)
        _spill(plan.recipe, documents, duplicates, runs, workers)
        paths = runs.merge(workers)
        counts = runs.counts()
        try:
            plan.check_filled(counts)
        except UserError:
            runs.remove()
            raise
        with plan.shard_folders():
            write = functools.partial(_write_shard, paths, runs.folder)
            written = dict(workers.map(write, *zip(*plan.paths.items(), strict=True)))
            manifest = plan.finish(written, counts)
        runs.remove()
    return manifest


# --- Shared by the local builder and Beam's ---


@dataclass(frozen=True)
class Plan:
    """A build whose arguments and inputs are checked."""

    recipe: Recipe
    parts: list[Part]
    folders: dict[int, str]  # of the datasets to write, by their splits; the training data first
    parameters: dict[str, Any]
    deduplication: Deduplication | None
    replaced: list[str]  # the folders of datasets that are replaced

    @classmethod
    def of(
        cls,
        documents: Source | Iterable[str],
        vocabulary_dir: str,
        output_dir: str,
        *,
        num_workers: int = 0,
        compress: bool = False,
        overwrite: bool = False,
        source: dict[str, Any] | None = None,
        deduplication: Deduplication | None = None,
        spill_dir: str | None = None,
        **fields: Any,
    ) -> "Plan":
        """Checks the arguments of `build_shards`; `spill_dir` is None for builders without runs."""
        # `fields` are those of the recipe, but for the vocabulary's.
        recipe = Recipe(vocabulary_dir, "", 0, **fields)
        _check_ranges(recipe, num_workers)
        replaced = _existing_datasets(output_dir, recipe.validation_fraction, overwrite)
        files.check_writable(output_dir, "--output_dir")
        if spill_dir is not None:
            files.check_writable(spill_dir, "--spill_dir")
        parts = [Part(0, ())]
        if isinstance(documents, Source):
            parts = parts_of(documents)
            if spill_dir is not None:
                _check_room(spill_dir, parts)
            pipes = list(filter(_is_pipe, documents.parts))
            if pipes and deduplication is not None:
                raise UserError(
                    f"{pipes[0]} is a pipe, and --deduplicate reads twice: give a file."
                )
            if not pipes:
                _check_documents(documents, recipe)
            source = documents.describe() if source is None else source
        cleaning = recipe.cleaning.describe() if recipe.cleaning else {}
        parameters = {
            "seed": recipe.seed,
            "compress": compress,
            "validation_fraction": recipe.validation_fraction,
            "break": recipe.break_at,
            "source": source or {},
            "cleaning": cleaning | (deduplication.describe() if deduplication else {}),
        }
        recipe = Recipe.of(vocabulary_dir, **fields)
        folders = {TRAIN: output_dir}
        if recipe.validation_fraction:
            folders = {TRAIN: _train(output_dir), VALIDATION: _validation(output_dir)}
        return cls(recipe, parts, folders, parameters, deduplication, replaced)

    @property
    def paths(self) -> dict[tuple[int, int], str]:
        """The path of each shard, by its split and its number."""
        paths = {}
        for split, folder in self.folders.items():
            count = self.recipe.shards(split)
            for shard in range(count):
                name = shard_name(shard, count, self.parameters["compress"])
                paths[split, shard] = files.join(folder, name)
        return paths

    @property
    def identity(self) -> list[Any]:
        """What decides the content of runs besides the text of their chunks, as JSON."""
        recipe = self.recipe
        return [
            _RUNS_VERSION,
            self.parameters | {"compress": None},
            [recipe.sequence_length, recipe.num_shards, recipe.vocabulary_fingerprint],
            # Duplicates depend on all of the text.
            [part.stamp for part in self.parts if self.deduplication is not None],
        ]

    def check_filled(self, counts: Counter[tuple[int, int, str]]) -> None:
        """Refuses a build that leaves a shard without sequences."""
        for split, folder in self.folders.items():
            shards = range(self.recipe.shards(split))
            if all(counts[split, shard, "sequences"] for shard in shards):
                continue
            total = {
                name: sum(counts[split, shard, name] for shard in shards)
                for name in ("documents", "skipped_documents", "sequences")
            }
            filled = total["documents"] - total["skipped_documents"]
            raise UserError(
                f"{filled} documents with text (and {total['skipped_documents']} without) give "
                f"{total['sequences']} sequences, which do not fill the {len(shards)} shards of "
                f"{folder}: give more text, or a smaller --num_shards or another "
                "--validation_fraction."
            )

    @contextlib.contextmanager
    def shard_folders(self) -> Iterator[None]:
        """Makes the folders of the shards, and cleans up unfinished shards at the end."""
        folders = self.folders.values()
        _remove_temporaries(folders)
        with contextlib.ExitStack() as stack:
            for folder in folders:
                if files.is_remote(folder):
                    files.make_dirs(folder)
                else:
                    stack.enter_context(files.made_folders(folder))
            stack.callback(_remove_temporaries, folders)
            yield

    def finish(
        self,
        written: Mapping[tuple[int, int], tuple[int, str]],
        counts: Counter[tuple[int, int, str]],
    ) -> Manifest:
        """Gives the shards final names and writes the manifests; returns the training data's."""
        # `written` has each shard's size and SHA-256, `counts` the sums of `chunk_sequences` and of
        # sources.
        left_out = {n[2]: count for n, count in sorted(counts.items()) if n[:2] == NO_SHARD}
        manifests = []
        for split, folder in self.folders.items():
            shards = [
                Shard(
                    os.path.basename(path),
                    *(counts[*place, name] for name in COUNTS),
                    *written[place],
                )
                for place, path in self.paths.items()
                if place[0] == split
            ]
            manifests.append(
                Manifest(
                    folder,
                    self.recipe.sequence_length,
                    self.recipe.vocabulary_size,
                    self.recipe.vocabulary_fingerprint,
                    self.parameters,
                    tuple(shards),
                    left_out,
                )
            )
        for folder in self.replaced:
            _remove_dataset(folder)
        for manifest in manifests:
            for path in manifest.paths:
                files.rename(path + TEMPORARY_SUFFIX, path)
        # The training data's comes last: it says that the build is complete.
        for manifest in reversed(manifests):
            manifest.save()
        return manifests[0]


# --- From documents to runs, and from runs to shards ---


def _find_duplicates(
    deduplication: Deduplication, parts: Sequence[Part], folder: str, workers: Workers
) -> str:
    """Finds the duplicates; returns the path of the file with their ids."""
    with (
        DuplicateIndex(folder) as index,
        tqdm(desc="looking for duplicates", unit="B", unit_scale=True) as progress,
    ):
        for result in workers.over_chunks(parts, functools.partial(_chunk_keys, deduplication)):
            if not isinstance(result, PartRead):
                rows, size = result
                index.add(rows)
                progress.update(size)
        path = os.path.join(folder, "duplicates.npy")
        # Workers map it into memory: it may be large.
        np.save(path, index.duplicates())
    return path


def _chunk_keys(
    deduplication: Deduplication, part: Part, number: int, documents: Sequence[str]
) -> tuple[np.ndarray, int]:
    rows = deduplication.chunk_keys(part.number, number, documents)
    return rows, sum(map(text_size, documents))


def _spill(
    recipe: Recipe,
    documents: Source | Iterable[str],
    duplicates: str,
    runs: Runs,
    workers: Workers,
) -> None:
    """Writes a run of every chunk that has none."""
    write = functools.partial(_write_run, recipe, runs.folder, duplicates)
    if isinstance(documents, Source):
        results = workers.over_chunks(runs.unread(), write, runs.done)
    else:
        part = itertools.repeat(Part(0, ()))
        results = workers.map(write, part, itertools.count(), chunks(documents))
    with tqdm(desc="building", unit="B", unit_scale=True) as progress:
        for result in results:
            if isinstance(result, PartRead):
                runs.add_read(result)
            else:
                run, size = result
                runs.add(run)
                progress.update(size)


def _write_run(
    recipe: Recipe,
    folder: str,
    duplicates: str,
    part: Part,
    number: int,
    documents: Sequence[str],
) -> tuple[Run, int]:
    dropped = ()
    if duplicates:
        dropped = duplicates_in(np.load(duplicates, mmap_mode="r"), part.number, number)
    records, counts = chunk_sequences(recipe, part.number, number, documents, dropped)
    path = os.path.join(folder, f"{part.number:06d}-{number:06d}.run")
    run = Run.write(path, records, [(part.number, number, part.stamp)], counts)
    return run, sum(map(text_size, documents))


def _write_shard(
    runs: Sequence[str], scratch: str, place: tuple[int, int], path: str
) -> tuple[tuple[int, int], tuple[int, str]]:
    return place, write_shard(path, merged_examples(runs, *place), scratch)


def _useful_workers(num_workers: int, parts: Sequence[Part]) -> int:
    """The number of workers, at most one for each possible chunk."""
    if not all(part.bytes for part in parts):
        return num_workers
    return min(num_workers, 1 + 4 * sum(part.bytes for part in parts) // CHUNK_BYTES)


# --- What can be known before the work ---


def _check_ranges(recipe: Recipe, num_workers: int) -> None:
    length, shards = recipe.sequence_length, recipe.num_shards
    share, end = recipe.validation_fraction, recipe.break_at
    for flag, value, is_right, wanted in (
        ("sequence_length", length, length >= _SHORTEST, f"at least {_SHORTEST}"),
        ("num_shards", shards, shards >= 1, "at least 1"),
        ("num_workers", num_workers, num_workers >= 0, "at least 0"),
        ("validation_fraction", share, 0 <= share < 1, "at least 0 and below 1"),
        ("break", end, end in BREAKS, f"one of {', '.join(BREAKS)}"),
    ):
        if not is_right:
            raise UserError(f"--{flag} must be {wanted}, not {value}.")


def _is_pipe(name: str) -> bool:
    """Whether a part of a source can be read only once."""
    return not files.is_remote(name) and os.path.exists(name) and not os.path.isfile(name)


def _not_empty(documents: Iterable[str]) -> Iterator[str]:
    documents = iter(documents)
    first = next(documents, None)
    if first is None:
        raise UserError("the input has no documents.")
    return itertools.chain([first], documents)


def _check_documents(source: Source, recipe: Recipe) -> None:
    """Checks that there is a document for each split, reading no further than that takes."""
    missing = {TRAIN, VALIDATION} if recipe.validation_fraction else {TRAIN}
    number = 0
    for document in source:
        number += 1
        missing.discard(recipe.split(document))
        if not missing:
            return
    if not number:
        raise UserError("the input has no documents.")
    where = "train on" if TRAIN in missing else "hold out"
    raise UserError(
        f"of the {number} documents of the input, none is to {where} with --validation_fraction="
        f"{recipe.validation_fraction} and --seed={recipe.seed}: give more text or another of them."
    )


def _check_room(spill_dir: str, parts: Sequence[Part]) -> None:
    """Refuses a build for which the disk is too small, and warns where it may be."""
    text = sum(part.bytes for part in parts)
    folder = os.path.abspath(spill_dir)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    message = (
        f"{text / 1e6:,.0f} MB of input take about {_BYTES_KEPT * text / 1e6:,.0f} MB in "
        f"{spill_dir}, and {free / 1e6:,.0f} MB are free there"
    )
    if free < _FEWEST_BYTES_KEPT * text:
        raise UserError(f"{message}: make room, or give another --spill_dir.")
    if free < _BYTES_KEPT * text:
        tqdm.write(f"warning: {message}.", file=sys.stderr)


# --- What is there already ---


def _spill_folder(output_dir: str, spill_dir: str | None) -> str:
    """The folder for finished chunks: local, as it gets many small accesses."""
    if spill_dir is None and not files.is_remote(output_dir):
        return os.path.join(output_dir, SPILL_FOLDER)
    digest = hashlib.sha256(files.absolute(output_dir).encode()).hexdigest()[:16]
    name = f"cocolm_tf-build-{os.getuid()}-{digest}"
    folder = os.path.join(spill_dir or tempfile.gettempdir(), name)
    if spill_dir is None and os.path.exists(folder) and os.stat(folder).st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: give a --spill_dir.")
    return folder


def _train(output_dir: str) -> str:
    return files.join(output_dir, "train")


def _validation(output_dir: str) -> str:
    return files.join(output_dir, "validation")


def _existing_datasets(output_dir: str, validation_fraction: float, overwrite: bool) -> list[str]:
    """The folders of an earlier build to `output_dir`, if they may be replaced."""
    # A dataset that was built into `output_dir/validation` alone does not belong to it.
    existing = []
    for folder in (output_dir, _train(output_dir), _validation(output_dir)):
        if not files.exists(files.join(folder, FILE_NAME)):
            continue
        held_out = _held_out(folder)
        if folder != output_dir and not held_out:
            if not validation_fraction:
                continue
            raise UserError(
                f"{folder} is a dataset of its own, which no build into {output_dir} replaces: "
                "remove it, or give another --output_dir."
            )
        # A validation set alone is what a build that was killed at its very end leaves.
        is_validation = folder == _validation(output_dir)
        is_remnant = is_validation and held_out and held_out == validation_fraction
        if not overwrite and not is_remnant:
            raise UserError(
                f"{folder} is a finished dataset: give --overwrite to replace it, or another "
                "--output_dir."
            )
        existing.append(folder)
    return existing


def _held_out(folder: str) -> float:
    """The fraction that a dataset's build held out; 1 where its manifest does not say."""
    try:
        return Manifest.load(folder).parameters.get("validation_fraction", 1.0)
    except UserError:  # It is damaged, and may be replaced as any other.
        return 1.0


def _remove_dataset(folder: str) -> None:
    # The manifest goes first: what is left without it is not a dataset.
    files.remove(files.join(folder, FILE_NAME))
    for name in filter(is_shard, files.list_dir(folder)):
        files.remove(files.join(folder, name))


def _remove_temporaries(folders: Iterable[str]) -> None:
    for folder in folders:
        for name in files.list_dir(folder):
            final = name.removesuffix(TEMPORARY_SUFFIX)
            if final != name and (is_shard(final) or final == FILE_NAME):
                files.remove(files.join(folder, name))

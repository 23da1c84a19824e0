"""Builds a dataset: tokenizes documents, packs them, writes shards and their manifest.

The calling process reads the documents and deals each to a shard. Every worker process owns a
fixed set of the shards, and tokenizes, packs and writes what is dealt to them. Which documents a
shard gets, and in what order, depends on the documents and the seed alone, so the number of
workers changes how long a build takes and not one byte of what it writes.
"""

import contextlib
import glob
import heapq
import itertools
import multiprocessing
import os
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from cocolm_tf.data.manifest import FILE_NAME, Manifest
from cocolm_tf.data.shards import (
    TEMPORARY_SUFFIX,
    OpenFiles,
    Shard,
    ShardWriter,
    is_shard,
    shard_name,
)
from cocolm_tf.errors import UserError
from cocolm_tf.files import check_writable, made_folders

MIN_SEQUENCE_LENGTH = 8

# How much text goes to a worker at once, and how many such batches may wait for it: enough to
# keep it busy, little enough that reading ahead of slow workers does not fill the memory.
_BATCH_BYTES = 1 << 20
_MAX_PENDING = 4

# What a worker works with; it has one thread, which alone sees this.
_worker = threading.local()


def build_shards(
    documents: Iterable[str],
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
) -> Manifest:
    """Builds a dataset out of documents.

    The shards get temporary names until all of them are complete, and the manifest comes last: a
    build that fails or is killed leaves no dataset, and can simply be started again.

    Args:
        documents: The documents; each is dealt to one shard.
        vocabulary_dir: The folder of the vocabulary.
        sequence_length: The most tokens of a record, `<s>` and `</s>` included; at least 8.
        num_shards: The number of shards, each of about as much text as the others.
        num_workers: The number of processes to tokenize with (no more than there are shards are
            used); 0 to do the work in the calling process.
        output_dir: The folder of the dataset, which may exist.
        seed: Decides which document goes to which shard, and which are held out.
        compress: Whether to compress the shards with gzip.
        validation_fraction: The share of the documents, drawn at random, to hold out. If it is
            above 0, two datasets are written, `output_dir/train` and `output_dir/validation`; the
            latter's number of shards is in proportion.
        overwrite: Whether to replace a dataset that is in `output_dir`.
        source: What the documents are, for the manifest.

    Returns:
        The manifest of the dataset to train on.

    Raises:
        UserError: If an argument is out of its range, there is a dataset already, the vocabulary
            cannot be loaded, there are fewer documents than shards, or a worker dies.

    Example:
    ```python
    from cocolm_tf.data.sources import FileSource

    documents = FileSource.find("corpus/*.txt")
    manifest = build_shards(documents, "vocabulary", 512, 16, 4, "data")
    print(manifest.counts)
    ```
    """
    _check_ranges(sequence_length, num_shards, num_workers, validation_fraction)
    splits = _splits(output_dir, num_shards, compress, validation_fraction)
    replaced = _existing_datasets(output_dir, validation_fraction, overwrite)
    is_local = "://" not in output_dir
    if is_local:
        check_writable(output_dir, "--output_dir")
    documents = iter(documents)
    first = next(documents, None)
    if first is None:
        raise UserError("the input has no documents.")
    documents = itertools.chain([first], documents)
    _remove_temporaries(splits)
    with contextlib.ExitStack() as stack:
        if is_local:
            for split in splits:
                stack.enter_context(made_folders(split.directory))
        stack.callback(_remove_temporaries, splits)
        vocabulary, shards = _write_shards(
            _deal(documents, splits, seed),
            [path for split in splits for path in split.paths],
            vocabulary_dir,
            sequence_length,
            num_workers,
        )
        manifests = [
            Manifest(
                directory=split.directory,
                sequence_length=sequence_length,
                vocabulary_size=vocabulary.size,
                vocabulary_fingerprint=vocabulary.fingerprint,
                parameters={
                    "seed": seed,
                    "compress": compress,
                    "validation_fraction": validation_fraction,
                    "source": source or {},
                },
                shards=tuple(shards[path] for path in split.paths),
            )
            for split in splits
        ]
        for manifest in manifests:
            _check_filled(manifest)
        for folder in replaced:
            _remove_dataset(folder)
        for manifest in manifests:
            for path in manifest.paths:
                tf.io.gfile.rename(path + TEMPORARY_SUFFIX, path, overwrite=True)
        # The training data's comes last, as it is the one that says that the build is complete.
        for manifest in reversed(manifests):
            manifest.save()
    return manifests[0]


# Dealing documents to shards.


@dataclass(frozen=True)
class _Split:
    directory: str
    share: float
    paths: list[str]


def _splits(
    output_dir: str, num_shards: int, compress: bool, validation_fraction: float
) -> list[_Split]:
    """The datasets to write, the training data first."""

    def split(directory: str, share: float, count: int) -> _Split:
        names = [shard_name(index, count, compress) for index in range(count)]
        return _Split(directory, share, [os.path.join(directory, name) for name in names])

    if not validation_fraction:
        return [split(output_dir, 1.0, num_shards)]
    folders = _folders(output_dir)
    held_out_shards = max(1, round(num_shards * validation_fraction))
    return [
        split(folders["train"], 1 - validation_fraction, num_shards),
        split(folders["validation"], validation_fraction, held_out_shards),
    ]


def _deal(documents: Iterable[str], splits: list[_Split], seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (path of a shard, document): the shard of the split that has the least text yet."""
    generator = random.Random(seed)
    heaps = [[(0, generator.random(), path) for path in split.paths] for split in splits]
    for heap in heaps:
        heapq.heapify(heap)
    shares = [split.share for split in splits]
    for document in documents:
        # Half of a surrogate pair, which JSON can hold, becomes what the tokenizer replaces.
        text = document.encode("utf-8", "surrogatepass")
        (heap,) = generator.choices(heaps, shares)
        size, _, path = heap[0]
        # The random number decides between shards of equal size.
        heapq.heapreplace(heap, (size + len(text), generator.random(), path))
        yield path, text


# The calling process's side of the workers.


class _Worker:
    """An executor of one thread or process, and the batches that are under way to it."""

    def __init__(self, in_process: bool):
        self._executor: Executor = (
            ThreadPoolExecutor(max_workers=1)
            if in_process
            else ProcessPoolExecutor(
                max_workers=1,
                # A fork of a process in which TensorFlow has started hangs.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_set_up_process,
            )
        )
        self._pending: deque[Future] = deque()
        self._batch: list[tuple[str, bytes]] = []
        self._batch_bytes = 0

    def submit(self, task: Callable, *arguments: Any) -> Future:
        """Hands over a task, having waited for the oldest one if too many are under way."""
        if len(self._pending) == _MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(task, *arguments))
        return self._pending[-1]

    def add(self, path: str, text: bytes) -> None:
        """Adds a document to the batch, and hands the batch over once it is full."""
        self._batch.append((path, text))
        self._batch_bytes += len(text)
        if self._batch_bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hands over the batch."""
        self.submit(_add_documents, self._batch)
        self._batch, self._batch_bytes = [], 0

    def finish(self) -> Future:
        """Hands over what remains, and the last task; its future gives the shards."""
        self.flush()
        return self.submit(_close_shards)

    def wait(self) -> None:
        """Waits for everything that is under way."""
        while self._pending:
            self._pending.popleft().result()

    def stop(self) -> None:
        """Ends the process, without what it has not begun."""
        self._executor.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _VocabularyFacts:
    size: int
    fingerprint: str


def _write_shards(
    dealt: Iterable[tuple[str, bytes]],
    paths: list[str],
    vocabulary_dir: str,
    sequence_length: int,
    num_workers: int,
) -> tuple[_VocabularyFacts, dict[str, Shard]]:
    """Writes all shards under their temporary names."""
    count = min(max(num_workers, 1), len(paths))
    workers = [_Worker(in_process=num_workers == 0) for _ in range(count)]
    owners = {path: workers[index % count] for index, path in enumerate(paths)}
    try:
        opened = [
            worker.submit(_open_shards, vocabulary_dir, sequence_length, paths[index::count])
            for index, worker in enumerate(workers)
        ]
        vocabulary = [future.result() for future in opened][0]
        with tqdm(desc="building", unit="B", unit_scale=True) as progress:
            for path, text in dealt:
                owners[path].add(path, text)
                progress.update(len(text))
            closed = [worker.finish() for worker in workers]
            for worker in workers:
                worker.wait()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended unexpectedly, most often for want of memory: give a smaller "
            "--num_workers."
        ) from error
    finally:
        for worker in workers:
            worker.stop()
    return vocabulary, {path: shard for future in closed for path, shard in future.result().items()}


# The worker's side: tasks that run one after the other in its only thread.


def _set_up_process() -> None:
    # On Ctrl-C the calling process cleans up, and stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    # Nothing else would end a worker whose calling process was killed.
    threading.Thread(target=end_with_parent, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")  # Tokenizing would only occupy its memory.


def _open_shards(vocabulary_dir: str, sequence_length: int, paths: list[str]) -> _VocabularyFacts:
    # Slow to import, and only workers need it.
    from cocolm_tf.tokenization.vocabulary import load_vocabulary

    tokenizer = load_vocabulary(vocabulary_dir)
    for directory in {os.path.dirname(path) for path in paths}:
        tf.io.gfile.makedirs(directory)
    open_files = OpenFiles()
    # Called eagerly, a KerasHub tokenizer gives lists and not a ragged tensor.
    _worker.tokenize = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])
    _worker.writers = {
        path: ShardWriter(
            path,
            sequence_length,
            tokenizer.start_token_id,
            tokenizer.end_token_id,
            open_files,
        )
        for path in paths
    }
    return _VocabularyFacts(tokenizer.vocabulary_size(), tokenizer.fingerprint())


def _add_documents(batch: list[tuple[str, bytes]]) -> None:
    if not batch:
        return
    token_ids = _worker.tokenize(tf.constant([text for _, text in batch]))
    # One conversion for the batch, and then slices: much faster than a tensor a document.
    flat = token_ids.flat_values.numpy().tolist()
    ends = token_ids.row_splits.numpy().tolist()
    for (path, text), start, end in zip(batch, ends[:-1], ends[1:], strict=True):
        _worker.writers[path].add(flat[start:end], len(text))


def _close_shards() -> dict[str, Shard]:
    return {path: writer.close() for path, writer in _worker.writers.items()}


# Checks and the folder.


def _check_ranges(
    sequence_length: int, num_shards: int, num_workers: int, validation_fraction: float
) -> None:
    if sequence_length < MIN_SEQUENCE_LENGTH:
        raise UserError(
            f"--sequence_length must be at least {MIN_SEQUENCE_LENGTH}, not {sequence_length}."
        )
    if num_shards < 1:
        raise UserError(f"--num_shards must be at least 1, not {num_shards}.")
    if num_workers < 0:
        raise UserError(f"--num_workers must be at least 0, not {num_workers}.")
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"--validation_fraction must be at least 0 and below 1, not {validation_fraction}."
        )


def _check_filled(manifest: Manifest) -> None:
    if all(shard.sequences for shard in manifest.shards):
        return
    counts = manifest.counts
    filled = counts["documents"] - counts["skipped_documents"]
    raise UserError(
        f"{filled} documents with text (and {counts['skipped_documents']} without) do not fill "
        f"the {len(manifest.shards)} shards of {manifest.directory}: give more text, or a smaller "
        "--num_shards or another --validation_fraction."
    )


def _folders(output_dir: str) -> dict[str, str]:
    """The folders where a dataset may be, `output_dir` itself under the empty name."""
    return {
        "": output_dir,
        "train": os.path.join(output_dir, "train"),
        "validation": os.path.join(output_dir, "validation"),
    }


def _existing_datasets(output_dir: str, validation_fraction: float, overwrite: bool) -> list[str]:
    """The folders that hold what an earlier build wrote to `output_dir`, if it may be replaced.

    A dataset that was built into `output_dir/validation` alone is no part of that.
    """
    existing = []
    for name, folder in _folders(output_dir).items():
        if not tf.io.gfile.exists(os.path.join(folder, FILE_NAME)):
            continue
        held_out = _held_out(folder)
        if name and not held_out and not validation_fraction:
            continue
        # A validation set alone is what a build that was killed at its very end leaves.
        is_remnant = name == "validation" and held_out and held_out == validation_fraction
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
    tf.io.gfile.remove(os.path.join(folder, FILE_NAME))
    for path in filter(is_shard, tf.io.gfile.glob(os.path.join(glob.escape(folder), "data-*"))):
        tf.io.gfile.remove(path)


def _remove_temporaries(splits: list[_Split]) -> None:
    for folder in (split.directory for split in splits):
        for pattern in ("data-*-of-*.tfrecord*", FILE_NAME):
            for path in tf.io.gfile.glob(
                os.path.join(glob.escape(folder), pattern + TEMPORARY_SUFFIX)
            ):
                tf.io.gfile.remove(path)

"""How fast text becomes batches: the vocabulary, tokens, shards, and batches from the shards."""

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks import data_contenders
from cocolm_tf.benchmarking.alternation import (
    Contender,
    Timings,
    alternate,
    describe_spread,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.step_benchmark import describe_device, summarize
from cocolm_tf.errors import UserError
from cocolm_tf.versions import installed_versions, versions_line

NUM_SHARDS = 16

_DISTRIBUTIONS = ("tensorflow", "tensorflow-text", "sentencepiece", "tokenizers")


@dataclass(frozen=True)
class DataSizes:
    """What a benchmark of the data builds."""

    vocabulary_size: int  # Of all vocabularies
    sequence_length: int  # S
    batch_size: int  # B
    # How many the pipeline makes in each round: many more than it makes in advance.
    num_batches: int = 2000


def measure_data(
    documents: Iterable[str],
    megabytes: float,
    sizes: DataSizes,
    num_workers: Sequence[int],
    rounds: int,
) -> dict[str, Any]:
    """Times our data building beside bare SentencePiece and Hugging Face's `tokenizers`.

    Vocabularies are learned from one file, with as many threads or processes as the largest of
    `num_workers`. Tokenizers turn the same documents, from memory, into lists of ids;
    the others neither prepare text as the released tokenizer does nor look pieces up in its
    dictionary. `build_shards` besides reads the file, packs and writes.

    Args:
        documents: the text.
        megabytes: How much of it to take at most.
        sizes: what to build.
        num_workers: the numbers of processes to build shards with, 0 for the program's own; and
            the numbers of threads that the other tokenizers get.
        rounds: How often each is timed, in alternation.

    Returns:
        What JSON can hold; times in seconds:
        `device`, `versions`, `rounds`, `text_bytes` and the sizes; `left_out`: what is not
        installed, and why;
        `vocabulary` and `tokens`: from a contender's name to its `seconds` (see `summarize`),
        `megabytes_per_second`, and `times`: how many times as long it took as SentencePiece with
        as many threads (`first_quartile`, `median`, `third_quartile`). `build_shards` has
        `start_seconds` too: what one document for each shard takes, mostly the start of its
        processes. The rest are then those of the text after these, or None if it is too short to
        tell;
        `pipeline`: `seconds` and `tokens_per_second`.

    Raises:
        UserError: if there is too little text.

    Example:
    ```python
    sizes = DataSizes(vocabulary_size=8192, sequence_length=128, batch_size=32)
    result = measure_data(DocstringSource.find(), 32, sizes, num_workers=[1, 2], rounds=3)
    result["tokens"]["build_shards, 2 workers"]["megabytes_per_second"]
    ```
    """
    left_out = {}
    if not importlib.util.find_spec("tokenizers"):
        left_out["tokenizers"] = "not installed (pip install 'cocolm-tf[peers]')"
    threads = sorted({max(1, number) for number in num_workers})
    with tempfile.TemporaryDirectory() as directory:
        folder = _Folder(directory)
        text_bytes = _write_corpus(documents, megabytes * 1e6, folder.corpus)

        def measured(entries: list[_Entry]) -> dict[str, dict[str, Any]]:
            at_hand = [entry for entry in entries if entry.package not in left_out]
            return _measure(at_hand, rounds, text_bytes)

        vocabulary = measured(_vocabulary_entries(folder, sizes.vocabulary_size, threads[-1]))
        tokens = measured(
            _tokenizer_entries(folder, threads)
            + [_shards_entry(folder, sizes.sequence_length, number) for number in num_workers]
        )
        data = folder.data(num_workers[0])
        pipeline = Contender(
            "pipeline", partial(data_contenders.our_pipeline, data, **asdict(sizes))
        )
        seconds = summarize(alternate([pipeline], rounds)["pipeline"].seconds)
    tokens_read = sizes.num_batches * sizes.batch_size * sizes.sequence_length
    return {
        "device": describe_device(),
        "versions": installed_versions(*_DISTRIBUTIONS),
        "rounds": rounds,
        "text_bytes": text_bytes,
        **asdict(sizes),
        "left_out": left_out,
        "vocabulary": vocabulary,
        "tokens": tokens,
        "pipeline": {"seconds": seconds, "tokens_per_second": tokens_read / seconds["median"]},
    }


def format_data(result: dict[str, Any]) -> str:
    """Lays the result of `measure_data` out for reading."""
    lines = [
        f"device      {result['device']}",
        f"versions    {versions_line(result['versions'])}",
        f"text        {result['text_bytes'] / 1e6:.1f} MB, {result['rounds']} times each in turn: "
        "medians and quartiles",
        *(f"left out    {name}: {reason}" for name, reason in result["left_out"].items()),
    ]
    parts = {
        "vocabulary": f"a vocabulary of {result['vocabulary_size']:,}",
        "tokens": f"tokens, and sequences of {result['sequence_length']:,}",
    }
    for part, title in parts.items():
        lines += [
            "",
            f"{title:32} {'seconds':>24} {'start':>7} {'MB/s':>7}  time / SentencePiece's",
        ]
        lines += [_line(name, row) for name, row in result[part].items()]
    pipeline = result["pipeline"]
    lines += [
        "",
        f"pipeline    {pipeline['tokens_per_second']:,.0f} tokens/s in batches of "
        f"{result['batch_size']:,} x {result['sequence_length']:,}",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _line(name: str, row: dict[str, Any]) -> str:
    if row["seconds"] is None:
        seconds, rate, times = "too short to tell", "", ""
    else:
        seconds = describe_spread(row["seconds"])
        rate = f"{row['megabytes_per_second']:.3g}"
        times = describe_spread(row["times"])
    start = f"{row['start_seconds']['median']:.3g}" if "start_seconds" in row else ""
    return f"{name:32} {seconds:>24} {start:>7} {rate:>7}  {times}"


# What is timed.


@dataclass(frozen=True)
class _Folder:
    """Where the contenders find the text and what others of them made."""

    path: str

    @property
    def corpus(self) -> str:
        return os.path.join(self.path, "corpus.txt")

    @property
    def vocabulary(self) -> str:
        return os.path.join(self.path, "vocabulary")

    @property
    def sentencepiece(self) -> str:
        return os.path.join(self.path, "sentencepiece")

    @property
    def tokenizers(self) -> str:
        return os.path.join(self.path, "tokenizers.json")

    def data(self, num_workers: int) -> str:
        return os.path.join(self.path, f"data-{num_workers}")


@dataclass(frozen=True)
class _Entry:
    """A contender: whose it is, what it uses (`2 workers`), and how many threads it may use."""

    package: str
    uses: str
    threads: int
    build: partial

    @property
    def name(self) -> str:
        return f"{self.package}, {self.uses}" if self.uses else self.package

    def contender(self) -> Contender:
        # The progress bars of what is timed would be drawn over the benchmark's own.
        environment = thread_environment(self.threads) | {"TQDM_DISABLE": "1"}
        return Contender(self.name, self.build, environment)


def _vocabulary_entries(folder: _Folder, size: int, threads: int) -> list[_Entry]:
    corpus = folder.corpus
    return [
        _Entry(
            "cocolm_tf",
            _count(threads, "worker"),
            threads,
            partial(data_contenders.our_vocabulary, corpus, size, threads, folder.vocabulary),
        ),
        _with_threads(
            "sentencepiece",
            threads,
            partial(
                data_contenders.sentencepiece_vocabulary,
                corpus,
                size,
                threads,
                folder.sentencepiece,
            ),
        ),
        _with_threads(
            "tokenizers",
            threads,
            partial(data_contenders.tokenizers_vocabulary, corpus, size, folder.tokenizers),
        ),
    ]


def _tokenizer_entries(folder: _Folder, threads: Sequence[int]) -> list[_Entry]:
    ours = partial(data_contenders.our_tokenizer, folder.corpus, folder.vocabulary)
    tokenizers = partial(data_contenders.tokenizers_tokenizer, folder.corpus, folder.tokenizers)
    sentencepiece = partial(
        data_contenders.sentencepiece_tokenizer, folder.corpus, f"{folder.sentencepiece}.model"
    )
    return [
        _Entry("cocolm_tf", "", threads[0], ours),
        *(_with_threads("sentencepiece", n, partial(sentencepiece, n)) for n in threads),
        *(_with_threads("tokenizers", n, tokenizers) for n in threads),
    ]


def _with_threads(package: str, threads: int, build: partial) -> _Entry:
    return _Entry(package, _count(threads, "thread"), threads, build)


def _shards_entry(folder: _Folder, sequence_length: int, num_workers: int) -> _Entry:
    build = partial(
        data_contenders.our_shards,
        folder.corpus,
        folder.vocabulary,
        sequence_length,
        NUM_SHARDS,
        num_workers,
        folder.data(num_workers),
    )
    return _Entry("build_shards", _count(num_workers, "worker"), max(1, num_workers), build)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _measure(entries: Sequence[_Entry], rounds: int, text_bytes: int) -> dict[str, dict[str, Any]]:
    """Times the entries in alternation, and makes each a row of the result."""
    timings = alternate([entry.contender() for entry in entries], rounds, warmup_calls=0)
    references = {
        entry.threads: timings[entry.name].seconds
        for entry in entries
        if entry.package == "sentencepiece"
    }
    return {
        entry.name: _row(timings[entry.name], text_bytes, references[entry.threads])
        for entry in entries
    }


def _row(timings: Timings, text_bytes: int, reference: list[float]) -> dict[str, Any]:
    seconds, row = timings.seconds, {}
    share = 1.0
    if timings.results[0] is not None:
        starts, sizes = zip(*timings.results, strict=True)
        row["start_seconds"] = summarize(starts)
        # What was timed has two starts: one alone, and that before the whole text.
        seconds = [whole - 2 * start for whole, start in zip(seconds, starts, strict=True)]
        share -= sizes[0] / text_bytes
    if min(seconds) <= 0 or not share:
        return row | dict.fromkeys(("seconds", "megabytes_per_second", "times"))
    summary = summarize(seconds)
    return row | {
        "seconds": summary,
        "megabytes_per_second": share * text_bytes / 1e6 / summary["median"],
        "times": spread_of_ratios(seconds, [share * one for one in reference]),
    }


# The text.


def _write_corpus(documents: Iterable[str], max_bytes: float, path: str) -> int:
    """Writes documents as `FileSource` reads them; returns their bytes."""
    size = count = 0
    with open(path, "wb") as file:
        for document in documents:
            text = document.encode("utf-8", "replace")
            file.write(text + b"\n\n")
            size, count = size + len(text), count + 1
            if size >= max_bytes:
                break
    if count < NUM_SHARDS:
        raise UserError(
            f"the text has {count} documents, too few for {NUM_SHARDS} shards: give more of it, "
            "or more --megabytes."
        )
    return size

"""How fast text becomes batches: the vocabulary, tokens, shards, and batches from the shards."""

import importlib.util
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.alternation import (
    Contender,
    Timings,
    alternate,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.accelerators import describe_device
from cocolm_tf.costs.step_benchmark import summarize
from cocolm_tf.data.sources import FileSource
from cocolm_tf.errors import UserError
from cocolm_tf.versions import installed_versions

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
    """Times our data building beside bare SentencePiece and Hugging Face's `tokenizers`."""
    # Vocabularies are learned from one file, with as many threads or processes as the largest of
    # `num_workers`. Tokenizers turn the same documents, from memory, into lists of ids; the others
    # neither prepare text as the released tokenizer does nor look pieces up in its dictionary.
    # `build_shards` besides reads the file, packs and writes.
    left_out = {}
    if not importlib.util.find_spec("tokenizers"):
        left_out["tokenizers"] = "not installed (pip install 'cocolm-tf[peers]')"
    threads = sorted({max(1, number) for number in num_workers})
    length, size, most = sizes.sequence_length, sizes.vocabulary_size, threads[-1]
    with tempfile.TemporaryDirectory() as folder:
        text_bytes = write_corpus(documents, megabytes * 1e6, folder)

        def measured(contenders: list[Contender]) -> dict[str, dict[str, Any]]:
            at_hand = [one for one in contenders if _package(one) not in left_out]
            return _measure(at_hand, rounds, text_bytes)

        vocabulary = measured(
            [
                _contender("cocolm_tf", "worker", most, our_vocabulary, folder, size, most),
                _contender(
                    "sentencepiece", "thread", most, sentencepiece_vocabulary, folder, size, most
                ),
                _contender("tokenizers", "thread", most, tokenizers_vocabulary, folder, size),
            ]
        )
        tokens = measured(
            [_contender("cocolm_tf", "", threads[0], our_tokenizer, folder)]
            + [
                _contender("sentencepiece", "thread", n, sentencepiece_tokenizer, folder, n)
                for n in threads
            ]
            + [_contender("tokenizers", "thread", n, tokenizers_tokenizer, folder) for n in threads]
            + [
                _contender("build_shards", "worker", n, our_shards, folder, length, n)
                for n in num_workers
            ]
        )
        pipeline = Contender("pipeline", partial(our_pipeline, folder, num_workers[0], sizes))
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


def write_corpus(documents: Iterable[str], max_bytes: float, folder: str) -> int:
    """Writes documents as `FileSource` reads them; returns their bytes."""
    size = count = 0
    with open(os.path.join(folder, _CORPUS), "wb") as file:
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


def _contender(
    package: str, unit: str, number: int, function: Callable[..., Any], *arguments: Any
) -> Contender:
    """A contender whose name says what it uses, as `tokenizers, 2 threads`."""
    name = f"{package}, {number} {unit}{'' if number == 1 else 's'}" if unit else package
    # The progress bars of what is timed would be drawn over the benchmark's own.
    environment = thread_environment(max(1, number)) | {"TQDM_DISABLE": "1"}
    return Contender(name, partial(function, *arguments), environment)


def _package(contender: Contender) -> str:
    return contender.name.partition(",")[0]


def _measure(
    contenders: Sequence[Contender], rounds: int, text_bytes: int
) -> dict[str, dict[str, Any]]:
    """Times them in alternation, beside SentencePiece with as many threads."""
    timings = alternate(contenders, rounds, warmup_calls=0)
    threads = {one.name: one.environment["OMP_NUM_THREADS"] for one in contenders}
    references = {
        threads[one.name]: timings[one.name].seconds
        for one in contenders
        if _package(one) == "sentencepiece"
    }
    return {name: _row(timings[name], text_bytes, references[threads[name]]) for name in threads}


def _row(timings: Timings, text_bytes: int, reference: list[float]) -> dict[str, Any]:
    seconds, row = timings.seconds, {}
    share = 1.0
    if timings.results[0] is not None:
        # What one document for each shard takes: mostly the start of the processes.
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


# --- What is timed: each builds its function in a process of its own ---

_CORPUS, _VOCABULARY, _SENTENCEPIECE = "corpus.txt", "vocabulary", "sentencepiece"
_TOKENIZERS = "tokenizers.json"
# How much text a tokenizer gets at once: what `build_shards` gives its own.
_BATCH_BYTES = 1 << 20


def our_vocabulary(folder: str, size: int, num_workers: int) -> Callable[[], None]:
    """Learning a vocabulary by `train_vocabulary`."""
    from cocolm_tf.tokenization.vocabulary import train_vocabulary

    output_dir = os.path.join(folder, _VOCABULARY)

    def learn() -> None:
        train_vocabulary(
            _documents(folder), size, output_dir, num_workers=num_workers, overwrite=True
        )

    return learn


def sentencepiece_vocabulary(folder: str, size: int, threads: int) -> Callable[[], None]:
    """Learning a vocabulary by SentencePiece alone."""
    import sentencepiece

    def learn() -> None:
        sentencepiece.SentencePieceTrainer.train(
            input=os.path.join(folder, _CORPUS),
            model_prefix=os.path.join(folder, _SENTENCEPIECE),
            model_type="bpe",
            vocab_size=size,
            num_threads=threads,
            # Longer lines would be left out.
            max_sentence_length=1 << 30,
            minloglevel=2,
        )

    return learn


def tokenizers_vocabulary(folder: str, size: int) -> Callable[[], None]:
    """Learning a vocabulary by `tokenizers`, which are set up as SentencePiece is."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    def learn() -> None:
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<unk>"], show_progress=False
        )
        tokenizer.train([os.path.join(folder, _CORPUS)], trainer)
        tokenizer.save(os.path.join(folder, _TOKENIZERS))

    return learn


def our_tokenizer(folder: str) -> Callable[[], None]:
    """Tokenizing all documents by `CocoLMTokenizer`, as `build_shards` calls it."""
    import tensorflow as tf

    from cocolm_tf.tokenization.vocabulary import load_vocabulary

    batches = list(_batches(folder))
    tokenize = tf.function(
        load_vocabulary(os.path.join(folder, _VOCABULARY)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )

    def run() -> None:
        for batch in batches:
            tokenize(tf.constant(batch)).flat_values.numpy().tolist()

    return run


def sentencepiece_tokenizer(folder: str, threads: int) -> Callable[[], None]:
    """Tokenizing all documents by SentencePiece alone."""
    import sentencepiece

    batches = list(_batches(folder))
    model = os.path.join(folder, f"{_SENTENCEPIECE}.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)

    def run() -> None:
        for batch in batches:
            processor.encode(batch, num_threads=threads)

    return run


def tokenizers_tokenizer(folder: str) -> Callable[[], None]:
    """Tokenizing all documents by `tokenizers`."""
    import tokenizers

    batches = list(_batches(folder))
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, _TOKENIZERS))

    def run() -> None:
        for batch in batches:
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                encoding.ids  # noqa: B018 - a list is made of them here.

    return run


def our_shards(
    folder: str, sequence_length: int, num_workers: int
) -> Callable[[], tuple[float, int]]:
    """Building shards of one document each, then of all; the time and bytes of the former."""
    from cocolm_tf.data.build import build_shards

    first = list(itertools.islice(_documents(folder), NUM_SHARDS))
    vocabulary = os.path.join(folder, _VOCABULARY)
    output_dir = _data(folder, num_workers)

    def build(documents: Iterable[str]) -> None:
        build_shards(
            documents,
            vocabulary,
            sequence_length,
            NUM_SHARDS,
            num_workers,
            output_dir,
            overwrite=True,
        )

    def run() -> tuple[float, int]:
        started = time.perf_counter()
        build(first)
        elapsed = time.perf_counter() - started
        build(_documents(folder))
        return elapsed, sum(len(document.encode()) for document in first)

    return run


def our_pipeline(folder: str, num_workers: int, sizes: DataSizes) -> Callable[[], None]:
    """Reading, shuffling, masking and cropping some batches."""
    from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
    from cocolm_tf.data.pipeline import PretrainingData

    augmentation = Augmentation(SpecialTokens(mask=sizes.vocabulary_size - 1))
    data = PretrainingData.open(_data(folder, num_workers), sizes.sequence_length, augmentation)
    batches = iter(data.training_batches(sizes.batch_size))

    def read() -> None:
        for _ in range(sizes.num_batches):
            next(batches)

    return read


def _data(folder: str, num_workers: int) -> str:
    return os.path.join(folder, f"data-{num_workers}")


def _documents(folder: str) -> FileSource:
    return FileSource.find(os.path.join(folder, _CORPUS))


def _batches(folder: str) -> Iterator[list[str]]:
    batch, size = [], 0
    for document in _documents(folder):
        batch.append(document)
        size += len(document.encode())
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

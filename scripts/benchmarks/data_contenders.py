"""What is timed on the way from text to batches: each function here builds a contender's.

They import what they need themselves, as each runs in a process of its own.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from cocolm_tf.data.sources import FileSource

# How much text a tokenizer gets at once: what `build_shards` gives its own.
_BATCH_BYTES = 1 << 20


def our_vocabulary(corpus: str, size: int, num_workers: int, output_dir: str) -> Callable[[], None]:
    """Builds the learning of a vocabulary by `train_vocabulary`."""
    from cocolm_tf.tokenization.vocabulary import train_vocabulary

    def learn() -> None:
        train_vocabulary(
            FileSource.find(corpus), size, output_dir, num_workers=num_workers, overwrite=True
        )

    return learn


def sentencepiece_vocabulary(
    corpus: str, size: int, threads: int, output: str
) -> Callable[[], None]:
    """Builds the learning of a vocabulary by SentencePiece alone; `output` has no suffix."""
    import sentencepiece

    def learn() -> None:
        sentencepiece.SentencePieceTrainer.train(
            input=corpus,
            model_prefix=output,
            model_type="bpe",
            vocab_size=size,
            num_threads=threads,
            # Longer lines would be left out.
            max_sentence_length=1 << 30,
            minloglevel=2,
        )

    return learn


def tokenizers_vocabulary(corpus: str, size: int, output: str) -> Callable[[], None]:
    """Builds the learning of a vocabulary by `tokenizers`, which are set up as SentencePiece is."""
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
        tokenizer.train([corpus], trainer)
        tokenizer.save(output)

    return learn


def our_tokenizer(corpus: str, vocabulary: str) -> Callable[[], None]:
    """Builds the tokenizing of all documents by `CocoLMTokenizer`, as `build_shards` calls it."""
    import tensorflow as tf

    from cocolm_tf.tokenization.vocabulary import load_vocabulary

    batches = list(_batches(corpus))
    tokenize = tf.function(
        load_vocabulary(vocabulary), input_signature=[tf.TensorSpec([None], tf.string)]
    )

    def run() -> None:
        for batch in batches:
            tokenize(tf.constant(batch)).flat_values.numpy().tolist()

    return run


def sentencepiece_tokenizer(corpus: str, model: str, threads: int) -> Callable[[], None]:
    """Builds the tokenizing of all documents by SentencePiece alone."""
    import sentencepiece

    batches = list(_batches(corpus))
    processor = sentencepiece.SentencePieceProcessor(model_file=model)

    def run() -> None:
        for batch in batches:
            processor.encode(batch, num_threads=threads)

    return run


def tokenizers_tokenizer(corpus: str, path: str) -> Callable[[], None]:
    """Builds the tokenizing of all documents by `tokenizers`."""
    import tokenizers

    batches = list(_batches(corpus))
    tokenizer = tokenizers.Tokenizer.from_file(path)

    def run() -> None:
        for batch in batches:
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                encoding.ids  # noqa: B018 - a list is made of them here.

    return run


def our_shards(
    corpus: str,
    vocabulary: str,
    sequence_length: int,
    num_shards: int,
    num_workers: int,
    output_dir: str,
) -> Callable[[], tuple[float, int]]:
    """Builds the building of shards by `build_shards`: of one document each, then of all."""
    from cocolm_tf.data.build import build_shards

    first = list(itertools.islice(FileSource.find(corpus), num_shards))

    def build(documents: Iterable[str]) -> None:
        build_shards(
            documents,
            vocabulary,
            sequence_length,
            num_shards,
            num_workers,
            output_dir,
            overwrite=True,
        )

    def run() -> tuple[float, int]:
        started = time.perf_counter()
        build(first)
        elapsed = time.perf_counter() - started
        build(FileSource.find(corpus))
        return elapsed, sum(len(document.encode()) for document in first)

    return run


def our_pipeline(
    data: str, vocabulary_size: int, sequence_length: int, batch_size: int, num_batches: int
) -> Callable[[], None]:
    """Builds the reading, shuffling, masking and cropping of some batches."""
    from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
    from cocolm_tf.data.pipeline import PretrainingData

    augmentation = Augmentation(SpecialTokens(mask=vocabulary_size - 1))
    batches = iter(
        PretrainingData.open(data, sequence_length, augmentation).training_batches(batch_size)
    )

    def read() -> None:
        for _ in range(num_batches):
            next(batches)

    return read


def _batches(corpus: str) -> Iterator[list[str]]:
    batch, size = [], 0
    for document in FileSource.find(corpus):
        batch.append(document)
        size += len(document.encode())
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""Learns a vocabulary from a corpus, and loads one from its folder."""

import collections
import io
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator

import sentencepiece
import tqdm
from sentencepiece import sentencepiece_model_pb2

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.dictionary import NUM_SPECIAL_TOKENS, Dictionary
from cocolm_tf.tokenization.tokenizer import (
    ASSETS_FOLDER,
    CONFIG_FILENAME,
    DICTIONARY_FILENAME,
    CocoLMTokenizer,
)
from cocolm_tf.tokenization.tokenizer import MODEL_FILENAME as PRESET_MODEL_FILENAME
from cocolm_tf.tokenization.word_counts import CUT, RESERVED, Parts, count_corpus

MODEL_FILENAME = "sp.model"
# SentencePiece's rules for the characters of a word. "nmt" means that control characters and odd
# spaces go too, "cf" that upper and lower case become one.
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")

# The files of a vocabulary in a released checkpoint, and in a preset.
_FILES = {
    MODEL_FILENAME: os.path.join(ASSETS_FOLDER, PRESET_MODEL_FILENAME),
    DICTIONARY_FILENAME: os.path.join(ASSETS_FOLDER, DICTIONARY_FILENAME),
}
# SentencePiece counts its own unknown piece; ours is among the special tokens.
_NOT_IN_SENTENCEPIECE = NUM_SPECIAL_TOKENS - 1
_MIN_CHARACTER_COVERAGE = 0.98
# The shortfall of coverage from which on there is a warning.
_COVERAGE_TOLERANCE = 0.001
# The parts of a corpus that are sampled in parallel.
_PARTS_AT_A_TIME = 64
_WORDS_AT_A_TIME = 100_000


def train_vocabulary(
    texts: Iterable[str],
    vocabulary_size: int,
    output_dir: str | os.PathLike[str],
    lowercase: bool = False,
    character_coverage: float = 0.9995,
    byte_fallback: bool = False,
    split_digits: bool = False,
    normalization: str = "nmt_nfkc",
    sample_bytes: int | None = None,
    max_distinct_words: int = 10_000_000,
    num_workers: int = 1,
    overwrite: bool = False,
) -> CocoLMTokenizer:
    """Learns a BPE vocabulary with SentencePiece and writes it to a folder.

    The trainer gets the words that the tokenizer will see, with their counts, so that the whole
    corpus counts while only its different words are held in memory. The same texts give the same
    vocabulary, whatever `num_workers` is. The folder is a KerasHub preset of the tokenizer.

    Args:
        texts: The corpus.
        vocabulary_size: The number of ids, the five special tokens included.
        output_dir: The folder, local or remote; it appears when it is complete.
        lowercase: Whether the vocabulary is uncased.
        character_coverage: The share of all characters that get a piece, in [0.98, 1]. The rare
            rest is left to `<unk>`. The coverage that results is reported.
        byte_fallback: Whether the vocabulary has a piece for each of the 256 bytes, by which
            characters without a piece are written in UTF-8, so that nothing is unknown.
        split_digits: Whether every digit is a piece of its own.
        normalization: SentencePiece's rule for the characters of a word, one of
            `NORMALIZATIONS`. It is part of the SentencePiece model, so whoever reads that applies
            it. The released models' is `nmt_nfkc`.
        sample_bytes: About how much text to learn from, of many parts of the corpus if it has
            any, as `data.sources.Source`; None for all.
        max_distinct_words: When there are more different words than this, the rarer half is
            forgotten, and that is reported.
        num_workers: The number of processes that count words. More than one need a program whose
            main module can be imported, as `multiprocessing` says.
        overwrite: Whether to replace `output_dir` if it is not empty.

    Returns:
        The tokenizer with that vocabulary.

    Raises:
        UserError: If the corpus is too small for that many ids or has too many characters for so
            few, a value is out of its range, or `output_dir` is not empty.

    Example:
    ```python
    texts = ["The cat sat on the mat.", "It slept."]
    tokenizer = train_vocabulary(texts, 30, "/tmp/vocabulary", lowercase=True, overwrite=True)
    ```
    """
    files.check_output_folder(output_dir, overwrite)
    _check_options(character_coverage, normalization)
    if sample_bytes is not None:
        texts = _sample(texts, sample_bytes)
    counts, forgotten = count_corpus(texts, lowercase, num_workers, max_distinct_words)
    return learn_vocabulary(
        counts,
        vocabulary_size,
        output_dir,
        lowercase=lowercase,
        character_coverage=character_coverage,
        byte_fallback=byte_fallback,
        split_digits=split_digits,
        normalization=normalization,
        forgotten=forgotten,
        overwrite=overwrite,
    )


def learn_vocabulary(
    counts: collections.Counter[str],
    vocabulary_size: int,
    output_dir: str | os.PathLike[str],
    lowercase: bool = False,
    character_coverage: float = 0.9995,
    byte_fallback: bool = False,
    split_digits: bool = False,
    normalization: str = "nmt_nfkc",
    forgotten: collections.Counter[str] | None = None,
    overwrite: bool = False,
) -> CocoLMTokenizer:
    """Learns a vocabulary from the counts of words; otherwise as `train_vocabulary`."""
    # `forgotten` counts the characters of words that are left out of `counts`, so that the reported
    # coverage includes them.
    files.check_output_folder(output_dir, overwrite)
    _check_options(character_coverage, normalization)
    words = sorted((word, count) for word, count in counts.items() if RESERVED not in word)
    if not words:
        raise UserError("there is no text to learn a vocabulary from: the corpus is empty.")
    _report(f"learning {vocabulary_size} tokens from {len(words)} different words")
    proto = _train_bpe(
        words,
        vocabulary_size,
        character_coverage=character_coverage,
        byte_fallback=byte_fallback,
        split_digits=split_digits,
        normalization_rule_name=normalization,
    )
    dictionary, without_piece = _count_pieces(words, proto)
    _report_coverage(
        counts,
        collections.Counter() if forgotten is None else forgotten,
        without_piece,
        character_coverage,
        "are written in bytes" if byte_fallback else "become <unk>",
    )
    tokenizer = CocoLMTokenizer(proto, dictionary, lowercase)
    with files.new_folder(output_dir, overwrite, last=CONFIG_FILENAME) as folder:
        tokenizer.save_to_preset(folder)
    return tokenizer


def load_vocabulary(directory: str | os.PathLike[str]) -> CocoLMTokenizer:
    """Loads the tokenizer of a vocabulary folder.

    Args:
        directory: What `train_vocabulary` wrote, the preset of a model or tokenizer, or a folder
            with a released `sp.model` and `dict.txt`; local or remote.

    Returns:
        The tokenizer.

    Raises:
        UserError: If the folder or one of its files is missing or malformed, or it holds two
            vocabularies.

    Example:
    ```python
    tokenizer = load_vocabulary("/tmp/vocabulary")
    ```
    """
    directory = os.fspath(directory)
    files.check_scheme(directory)
    if not files.is_dir(directory):
        raise UserError(f"vocabulary {directory} is not a folder.")
    names = [CONFIG_FILENAME, *_FILES, *_FILES.values()]
    present = [name for name in names if files.is_file(files.join(directory, name))]
    with files.local_copy(directory, present) as folder:
        return _load_local(folder)


def _load_local(directory: str) -> CocoLMTokenizer:
    if os.path.exists(os.path.join(directory, CONFIG_FILENAME)):
        _check_one_vocabulary(directory)
        return _load_preset(directory)
    paths = [os.path.join(directory, name) for name in _FILES]
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(
                f"vocabulary {directory} has no {os.path.basename(path)}; a vocabulary is a preset "
                f"with {CONFIG_FILENAME}, or a folder with {MODEL_FILENAME} and "
                f"{DICTIONARY_FILENAME}."
            )
    return CocoLMTokenizer(*paths)


def _check_one_vocabulary(directory: str) -> None:
    """Refuses two different vocabularies; earlier versions wrote two copies of one."""
    for released, preset in _FILES.items():
        paths = [os.path.join(directory, name) for name in (released, preset)]
        if all(map(os.path.isfile, paths)) and len(set(map(files.read_bytes, paths))) > 1:
            raise UserError(
                f"vocabulary {directory}: {released} and {preset} differ; remove {released}, or "
                "put it in the other's place if it is the one that is meant."
            )


def _load_preset(directory: str) -> CocoLMTokenizer:
    try:
        tokenizer = CocoLMTokenizer.from_preset(directory)
    except FileNotFoundError as error:
        raise UserError(f"vocabulary {directory}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        advice = "."
        if _is_hugging_face(os.path.join(directory, CONFIG_FILENAME)):
            advice = (
                ": it is one of Hugging Face's tokenizers; scripts/convert_vocabulary.py makes a "
                "vocabulary of it."
            )
        raise UserError(
            f"vocabulary {directory}: {CONFIG_FILENAME} does not describe a CocoLMTokenizer{advice}"
        ) from error
    if not isinstance(tokenizer, CocoLMTokenizer):
        raise UserError(
            f"vocabulary {directory} is that of a {type(tokenizer).__name__}, "
            "not of a CocoLMTokenizer."
        )
    return tokenizer


def _is_hugging_face(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError:
        return False
    return isinstance(content, dict) and "model" in content and "pre_tokenizer" in content


# --- Learning ---


def _check_options(character_coverage: float, normalization: str) -> None:
    if not _MIN_CHARACTER_COVERAGE <= character_coverage <= 1:
        raise UserError(
            f"character_coverage is {character_coverage}; it must be in "
            f"[{_MIN_CHARACTER_COVERAGE}, 1]."
        )
    if normalization not in NORMALIZATIONS:
        raise UserError(
            f"normalization is {normalization!r}; it must be one of {', '.join(NORMALIZATIONS)}."
        )


def _sample(texts: Iterable[str], num_bytes: int) -> Iterator[str]:
    """Yields texts up to a size; of a corpus in parts, from many parts in turn."""
    size = 0
    for text in _interleaved(texts) if isinstance(texts, Parts) else texts:
        yield text
        size += len(text.encode("utf-8", "replace"))
        if size >= num_bytes:
            return


def _interleaved(corpus: Parts) -> Iterator[str]:
    # Parts are sorted by name, and neighbors alike.
    waiting = iter(sorted(corpus.parts, key=lambda part: (zlib.crc32(part.encode()), part)))
    reading = collections.deque(map(corpus.documents, itertools.islice(waiting, _PARTS_AT_A_TIME)))
    while reading:
        documents = reading.popleft()
        text = next(documents, None)
        if text is not None:
            yield text
            reading.append(documents)
        elif (part := next(waiting, None)) is not None:
            reading.append(corpus.documents(part))


def _train_bpe(words: list[tuple[str, int]], vocabulary_size: int, **options: object) -> bytes:
    """Trains a BPE model; returns it serialized."""
    model = io.BytesIO()
    if any(word.startswith(CUT) for word, _ in words):
        options["pretokenization_delimiter"] = CUT
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words),
            input_format="tsv",
            model_writer=model,
            model_type="bpe",
            vocab_size=max(1, vocabulary_size - _NOT_IN_SENTENCEPIECE),
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        if too_high := re.search(r"set it to a value <= (\d+)", str(error)):
            largest = int(too_high[1]) + _NOT_IN_SENTENCEPIECE
            raise UserError(
                f"vocabulary_size is {vocabulary_size}, but the corpus is too small for more than "
                f"{largest}; give that, or more text."
            ) from error
        if too_low := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            smallest = int(too_low[1]) + _NOT_IN_SENTENCEPIECE
            raise UserError(
                f"vocabulary_size is {vocabulary_size}, but the characters and special tokens "
                f"alone are {smallest}; a lower character_coverage leaves out rare characters."
            ) from error
        raise
    return model.getvalue()


def _count_pieces(
    words: list[tuple[str, int]], proto: bytes
) -> tuple[Dictionary, collections.Counter[str]]:
    """The model's pieces in order, with their counts; and the characters without a piece."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    # A part of a word begins where no space is.
    within = sentencepiece.SentencePieceProcessor(model_proto=_without_prefix(proto))
    pieces = processor.id_to_piece(list(range(processor.vocab_size())))
    is_byte = [processor.is_byte(id) for id in range(len(pieces))]
    counts = [0] * len(pieces)
    without_piece = collections.Counter()
    for start in range(0, len(words), _WORDS_AT_A_TIME):
        some = words[start : start + _WORDS_AT_A_TIME]
        segmented = processor.encode([word for word, _ in some])
        for (word, count), ids in zip(some, segmented, strict=True):
            if word.startswith(CUT):
                ids = within.encode(word.removeprefix(CUT))
            for id in ids:
                counts[id] += count
            if 0 in ids or any(is_byte[id] for id in ids):
                for character in _without_piece(processor, word.removeprefix(CUT)):
                    without_piece[character] += count
    return Dictionary(tuple(pieces[1:]), tuple(counts[1:])), without_piece


def _without_prefix(proto: bytes) -> bytes:
    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    model.normalizer_spec.add_dummy_prefix = False
    return model.SerializeToString()


def _without_piece(processor: sentencepiece.SentencePieceProcessor, word: str) -> Iterator[str]:
    """Yields the normalized characters of a word that are unknown or written in bytes."""
    written = bytearray()
    for piece, id in zip(processor.encode(word, out_type=str), processor.encode(word), strict=True):
        if processor.is_unknown(id):
            yield from piece
        elif processor.is_byte(id):
            written.append(int(piece[1:-1], 16))
    yield from written.decode(errors="replace")


def _report_coverage(
    counts: collections.Counter[str],
    forgotten: collections.Counter[str],
    without_piece: collections.Counter[str],
    wanted: float,
    fallback: str,
) -> None:
    """Reports the share of characters that have a piece, and warns where it is small."""
    reserved = sum(count for word, count in counts.items() if RESERVED in word)
    characters = sum(len(word.removeprefix(CUT)) * count for word, count in counts.items())
    if forgotten:
        share = forgotten.total() / (characters + forgotten.total())
        _report(
            f"warning: there were so many different words that the rarest, {share:.4%} of the "
            "text, were left out; more --max_distinct_words take more memory"
        )
    without_piece = without_piece + collections.Counter({RESERVED: reserved})
    # NFKC may have made several of one.
    covered = 1 - min(1.0, without_piece.total() / characters)
    message = f"the vocabulary covers {covered:.4%} of the characters"
    if covered < wanted - _COVERAGE_TOLERANCE:
        common = " ".join(character for character, _ in without_piece.most_common(10))
        message = f"warning: {message}, less than {wanted:.4%}; {common} {fallback}"
    _report(message)


def _report(line: str) -> None:
    tqdm.tqdm.write(line, file=sys.stderr)

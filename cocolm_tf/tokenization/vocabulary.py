"""Learning a vocabulary from a corpus, and loading one from its folder."""

import collections
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator

import sentencepiece
import tensorflow as tf
import tqdm

from cocolm_tf.errors import UserError
from cocolm_tf.files import check_output_folder, new_folder
from cocolm_tf.tokenization.dictionary import NUM_SPECIAL_TOKENS, Dictionary
from cocolm_tf.tokenization.normalization import as_string_tensor, normalize
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, DICTIONARY_FILENAME, CocoLMTokenizer

MODEL_FILENAME = "sp.model"

# SentencePiece counts its own unknown piece; ours is among the special tokens.
_NOT_IN_SENTENCEPIECE = NUM_SPECIAL_TOKENS - 1
_BATCH_CHARACTERS = 1_000_000

# The trainer drops words beyond a length, and cannot take more than 65,535 characters: longer
# ones, as of scripts that write no spaces, are cut. It rarely learns pieces across a cut.
_MAX_WORD_CHARACTERS = 1_000
# NFKC makes up to 18 characters of one, of up to 4 bytes each.
_MAX_WORD_BYTES = 18 * 4 * _MAX_WORD_CHARACTERS
# The trainer drops words with this character, which it keeps for itself.
_RESERVED = "\u2585"
_MIN_CHARACTER_COVERAGE = 0.98
# How much less than asked a vocabulary may cover until that is worth a warning.
_COVERAGE_TOLERANCE = 0.001


def train_vocabulary(
    texts: Iterable[str],
    vocabulary_size: int,
    output_dir: str | os.PathLike[str],
    lowercase: bool = False,
    character_coverage: float = 0.9995,
    max_distinct_words: int = 10_000_000,
    overwrite: bool = False,
) -> CocoLMTokenizer:
    """Learns a BPE vocabulary with SentencePiece and writes it to a folder.

    The trainer gets the words that the tokenizer will see, with the number of times each occurs,
    so the whole corpus counts while only its different words are held in memory. The same texts
    give the same vocabulary.

    The folder has `sp.model` and `dict.txt`, as a released vocabulary has, and is a preset too.

    Args:
        texts: The corpus.
        vocabulary_size: The number of ids, the five special tokens included.
        output_dir: The folder; it appears when it is complete.
        lowercase: Whether the vocabulary is uncased.
        character_coverage: The share of all characters that get a piece, in [0.98, 1]. The rare
            rest is left to `<unk>`. What the vocabulary covers is told.
        max_distinct_words: When there are more different words than this, the rarer half is
            forgotten.
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
    check_output_folder(output_dir, overwrite)
    if not _MIN_CHARACTER_COVERAGE <= character_coverage <= 1:
        raise UserError(
            f"character_coverage is {character_coverage}; it must be in "
            f"[{_MIN_CHARACTER_COVERAGE}, 1]."
        )
    counts = _count_words(texts, lowercase, max_distinct_words)
    if not counts:
        raise UserError("there is no text to learn a vocabulary from: the corpus is empty.")
    words = list(_learnable(counts).items())
    tqdm.tqdm.write(
        f"learning {vocabulary_size} tokens from {len(words)} different words", file=sys.stderr
    )
    proto = _train_bpe(words, vocabulary_size, character_coverage)
    dictionary, unknown = _count_pieces(words, proto)
    _tell_coverage(counts, unknown, character_coverage)
    tokenizer = CocoLMTokenizer(proto, dictionary, lowercase)
    with new_folder(output_dir, overwrite, CONFIG_FILENAME) as folder:
        with open(os.path.join(folder, MODEL_FILENAME), "wb") as file:
            file.write(proto)
        dictionary.write(os.path.join(folder, DICTIONARY_FILENAME))
        tokenizer.save_to_preset(folder)
    return tokenizer


def load_vocabulary(directory: str | os.PathLike[str]) -> CocoLMTokenizer:
    """Loads the tokenizer of a vocabulary folder.

    Args:
        directory: What `train_vocabulary` wrote, the preset of a model or tokenizer, or a folder
            with a released `sp.model` and `dict.txt`.

    Returns:
        The tokenizer.

    Raises:
        UserError: If the folder or one of its files is missing or is not what it should be.

    Example:
    ```python
    tokenizer = load_vocabulary("/tmp/vocabulary")
    ```
    """
    directory = os.fspath(directory)
    if not os.path.isdir(directory):
        raise UserError(f"vocabulary {directory} is not a folder.")
    if os.path.exists(os.path.join(directory, CONFIG_FILENAME)):
        return _load_preset(directory)
    paths = [os.path.join(directory, name) for name in (MODEL_FILENAME, DICTIONARY_FILENAME)]
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(
                f"vocabulary {directory} has no {os.path.basename(path)}; a vocabulary is a folder "
                f"with {MODEL_FILENAME} and {DICTIONARY_FILENAME}, or a preset with "
                f"{CONFIG_FILENAME}."
            )
    return CocoLMTokenizer(*paths)


def _load_preset(directory: str) -> CocoLMTokenizer:
    try:
        tokenizer = CocoLMTokenizer.from_preset(directory)
    except FileNotFoundError as error:
        raise UserError(f"vocabulary {directory}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"vocabulary {directory}: {CONFIG_FILENAME} does not describe a CocoLMTokenizer."
        ) from error
    if not isinstance(tokenizer, CocoLMTokenizer):
        raise UserError(
            f"vocabulary {directory} is that of a {type(tokenizer).__name__}, "
            "not of a CocoLMTokenizer."
        )
    return tokenizer


def _count_words(
    texts: Iterable[str], lowercase: bool, max_distinct_words: int
) -> collections.Counter[bytes]:
    """Counts the words of the prepared texts."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def distinct_words(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        words, _, counts = tf.unique_with_counts(
            tf.strings.split(normalize(batch, lowercase)).flat_values
        )
        return words, counts

    counts = collections.Counter()
    with tqdm.tqdm(texts, desc="counting words", unit=" texts", mininterval=1) as progress:
        for batch in _batches(progress):
            for word, count in zip(*map(_to_list, distinct_words(batch)), strict=True):
                counts[word] += count
            if len(counts) > max_distinct_words:
                counts = collections.Counter(dict(counts.most_common(max_distinct_words // 2)))
    return counts


def _batches(texts: Iterable[str]) -> Iterator[tf.Tensor]:
    """Groups texts into string tensors of about `_BATCH_CHARACTERS`."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield as_string_tensor(batch)
            batch, size = [], 0
    if batch:
        yield as_string_tensor(batch)


def _to_list(tensor: tf.Tensor) -> list[bytes] | list[int]:
    return tensor.numpy().tolist()


def _train_bpe(
    words: list[tuple[str, int]], vocabulary_size: int, character_coverage: float
) -> bytes:
    """Returns a serialized SentencePiece model."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words),
            input_format="tsv",
            model_writer=model,
            model_type="bpe",
            vocab_size=max(1, vocabulary_size - _NOT_IN_SENTENCEPIECE),
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=_MAX_WORD_BYTES,
            minloglevel=2,
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


def _learnable(counts: collections.Counter[bytes]) -> collections.Counter[str]:
    """The words as the trainer takes them, cut where it would drop them."""
    words = collections.Counter()
    for word, count in counts.items():
        for part in word.decode().split(_RESERVED):
            for start in range(0, len(part), _MAX_WORD_CHARACTERS):
                words[part[start : start + _MAX_WORD_CHARACTERS]] += count
    return words


def _count_pieces(
    words: list[tuple[str, int]], proto: bytes
) -> tuple[Dictionary, collections.Counter[str]]:
    """Returns the model's pieces, in its order, with how often each occurs in the corpus.

    And the characters that have none, likewise.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    counts = [0] * processor.vocab_size()
    unknown = collections.Counter()
    for word, count in words:
        ids = processor.encode(word)
        for piece in ids:
            counts[piece] += count
        if processor.unk_id() in ids:
            for piece, surface in zip(ids, processor.encode_as_pieces(word), strict=True):
                if piece == processor.unk_id():
                    for character in surface:
                        unknown[character] += count
    pieces = processor.id_to_piece(list(range(processor.vocab_size())))
    return Dictionary(tuple(pieces[1:]), tuple(counts[1:])), unknown


def _tell_coverage(
    counts: collections.Counter[bytes], unknown: collections.Counter[str], wanted: float
) -> None:
    """Says which share of the corpus's characters have a piece, and warns where it is small."""
    characters = sum(len(word.decode()) * count for word, count in counts.items())
    reserved = sum(word.decode().count(_RESERVED) * count for word, count in counts.items())
    if reserved:
        unknown = unknown + collections.Counter({_RESERVED: reserved})
    # NFKC may have made several of one.
    covered = 1 - min(1.0, unknown.total() / characters)
    told = f"the vocabulary covers {covered:.4%} of the characters"
    if covered < wanted - _COVERAGE_TOLERANCE:
        common = " ".join(character for character, _ in unknown.most_common(10))
        told = f"warning: {told}, less than {wanted:.4%}; <unk> becomes of {common}"
    tqdm.tqdm.write(told, file=sys.stderr)

"""Counts the words of a corpus, as learning a vocabulary needs them, without TensorFlow.

`normalization.normalize` never looks beyond a word, with one exception: an apostrophe that ends a
word may belong to a contraction that the next one begins. So the strings between spaces are counted
as they are, which is fast, and only the different ones are prepared.
"""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import re
import signal
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import tqdm

from cocolm_tf.errors import UserError

# What all parts of a word but its first begin with: a code point that Unicode keeps for programs.
CUT = "\ufdd0"
# SentencePiece's trainer drops words with this character, by which it shows unknown ones.
RESERVED = "\u2585"
# Without spaces, words are sentences, and all different. No piece has more than 16 characters or
# goes from letters to anything else: that is where longer words are cut, and then anywhere.
_MAX_WORD_CHARACTERS = 32

_BATCH_CHARACTERS = 8_000_000
_PENDING_PER_WORKER = 2
# From so many parts of a corpus on, none is large, and processes read them themselves.
_MANY_PARTS = 32
_MAX_REMEMBERED = 1 << 17

_NO_CHARACTER = re.compile(f"[\ud800-\udfff{CUT}]")
# TensorFlow lowercases by Unicode 13, Python 3.11 by Unicode 14.
_CAPITALS_OF_UNICODE_14 = re.compile("([\u2c2f\ua7c0\ua7d0\ua7d6\ua7d8\U00010570-\U00010595]+)")
_QUOTES_AND_DASHES = str.maketrans("‘’´“”—–", "'''\"\"--")
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
# Punctuation that only needs to be split off where it ends a word.
_PLAIN_ENDS = ".,;:!?)"
# Letters that Python 3.13 knows and TensorFlow does not: those of Unicode 15.1.
NEWER_CHARACTERS = "[\U0002ebf0-\U0002ee5d]"
_NO_LETTER = rf"(?!(?!{NEWER_CHARACTERS})\w)"
_SHORT_ENDING, _ENDING, _UPPER_ENDING = (
    f"({endings}){_NO_LETTER}" for endings in ("[smdtSMDT]", "ll|re|ve", "LL|RE|VE")
)
# Broader, as an underscore after them will be split off.
_PERHAPS_ENDING = re.compile(rf"(?:[smdtSMDT]|ll|re|ve|LL|RE|VE)(?!(?!{NEWER_CHARACTERS})[^\W_])")
_TORN_CONTRACTION = re.compile(rf"['‘’´]\s+{_PERHAPS_ENDING.pattern}")


def count_words(texts: Iterable[str], lowercase: bool = False) -> collections.Counter[str]:
    """Counts the words of texts as `normalization.normalize` prepares them."""
    # A pure function of the texts, so that a corpus can be counted in parts: the counts add up. A
    # word that is long, or has a character that the trainer does not take, is cut into parts; all
    # of them but the first begin with `CUT`.
    between_spaces = collections.Counter()
    for text in texts:
        if lowercase:
            text = _lower(text)
        words = text.split()
        between_spaces.update(_rejoined(words) if _TORN_CONTRACTION.search(text) else words)
    # Preparing takes longer than counting, so words that need none or little are handled apart.
    plain, other = {}, []
    for word, count in between_spaces.items():
        if word.isalnum() and len(word) <= _MAX_WORD_CHARACTERS:
            plain[word] = count
        else:
            other.append((word, count))
    counts = collections.Counter(plain)
    get = counts.get
    for word, count in other:
        stripped = word.rstrip(_PLAIN_ENDS)
        if stripped.isalnum() and len(word) <= _MAX_WORD_CHARACTERS:
            parts = stripped, word[len(stripped) :]
        else:
            parts = _parts(word)
        for part in parts:
            counts[part] = get(part, 0) + count
    return counts


@runtime_checkable
class Parts(Protocol):
    """A corpus in parts that other processes can read, such as files: `data.sources.Source`."""

    parts: tuple[str, ...]

    def documents(self, part: str) -> Iterator[str]:
        """Yields the texts of a part."""


def count_corpus(
    texts: Iterable[str], lowercase: bool, num_workers: int, max_distinct_words: int
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Counts a corpus's words, by processes unless small; and the characters of forgotten words."""
    # If the corpus has many parts, the processes read them too; the result does not depend on their
    # number. When there are more than `max_distinct_words`, the rarer half is forgotten; among
    # equals a hash decides, so that every part of the corpus keeps some.
    count = functools.partial(_count, lowercase=lowercase, max_distinct_words=max_distinct_words)
    if isinstance(texts, Parts) and len(texts.parts) >= _MANY_PARTS:
        shares = tqdm.tqdm(
            [functools.partial(texts.documents, part) for part in texts.parts],
            desc="counting words",
            unit=" parts",
        )
    else:
        shares = _batches(tqdm.tqdm(texts, desc="counting words", unit=" texts", mininterval=1))
    counts, forgotten = collections.Counter(), collections.Counter()
    for some_counts, some_forgotten in _in_order(count, iter(shares), num_workers):
        counts.update(some_counts)
        forgotten.update(some_forgotten)
        if len(counts) > max_distinct_words:
            _forget(counts, max_distinct_words // 2, forgotten)
    return counts, forgotten


def _count(
    texts: list[str] | Callable[[], Iterator[str]], lowercase: bool, max_distinct_words: int
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Counts a batch, or a part that the process reads itself."""
    counts, forgotten = collections.Counter(), collections.Counter()
    for batch in [texts] if isinstance(texts, list) else _batches(texts()):
        counts.update(count_words(batch, lowercase))
        if len(counts) > max_distinct_words:
            _forget(counts, max_distinct_words // 2, forgotten)
    return counts, forgotten


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(
    function: Callable[[Any], Any], arguments: Iterator[Any], num_workers: int
) -> Iterator[Any]:
    """Yields a function's results in the order of its arguments."""
    first = list(itertools.islice(arguments, 2))
    arguments = itertools.chain(first, arguments)
    if num_workers <= 1 or len(first) < 2:
        yield from map(function, arguments)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # The parent reports the interruption.
    )
    try:
        pending = collections.deque()
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) > _PENDING_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a process that counts words was killed, perhaps for want of memory; "
            "give fewer --num_workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _forget(
    counts: collections.Counter[str], keep: int, forgotten: collections.Counter[str]
) -> None:
    """Keeps the most frequent words; the characters of the others are added to `forgotten`."""

    def rank(word: str) -> tuple[int, int, str]:
        return -counts[word], zlib.crc32(word.encode()), word

    for word in sorted(counts, key=rank)[keep:]:
        count = counts.pop(word)
        for character in word.removeprefix(CUT):
            forgotten[character] += count


def _lower(text: str) -> str:
    """Lowercases as `normalization.lower` does."""
    parts = _CAPITALS_OF_UNICODE_14.split(text.replace("\x00", "\ufffd"))
    # At odd places is what separates the parts.
    return "".join(part if index % 2 else part.lower() for index, part in enumerate(parts))


def _rejoined(words: list[str]) -> Iterator[str]:
    """Yields words; those that a contraction may reach across as one, with a space between."""
    unit = words[0]
    for word in words[1:]:
        if unit[-1] in "'‘’´" and _PERHAPS_ENDING.match(word):
            unit = f"{unit} {word}"
        else:
            yield unit
            unit = word
    yield unit


@functools.lru_cache(_MAX_REMEMBERED)
def _parts(unit: str) -> tuple[str, ...]:
    """Prepares a string without spaces, and cuts it into words and parts of words."""
    unit = _NO_CHARACTER.sub("\ufffd", unit).replace("``", '"').replace("''", '"')
    unit = unit.translate(_QUOTES_AND_DASHES)
    unit = " ".join(part for word in unit.split() for part in _without_edges(word))
    if "' " in unit:
        unit = re.sub(f"' {_SHORT_ENDING}", r"'\1", unit)
        unit = re.sub(f"' {_ENDING}", r"'\1", unit)
        unit = re.sub(f"' {_UPPER_ENDING}", r"'\1 ", unit)
    return tuple(part for word in unit.split() for part in _cut(word))


def _without_edges(word: str) -> list[str]:
    """Splits off the punctuation that begins and ends a word, unless it is nothing else."""
    if word.isalnum():
        return [word]
    start, end = 0, len(word)
    while start < end and _is_punctuation(word[start]):
        start += 1
    if start == end:
        return [word]
    while _is_punctuation(word[end - 1]):
        end -= 1
    return [part for part in (word[:start], word[start:end], word[end:]) if part]


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return character in _ASCII_PUNCTUATION
    return unicodedata.category(character).startswith("P")


def _cut(word: str) -> list[str]:
    if len(word) <= _MAX_WORD_CHARACTERS and RESERVED not in word:
        return [word]
    parts = [
        run[start : start + _MAX_WORD_CHARACTERS]
        for run in _runs().findall(word)
        for start in range(0, len(run), _MAX_WORD_CHARACTERS)
    ]
    return [parts[0], *(CUT + part for part in parts[1:])]


@functools.cache
def _runs() -> re.Pattern[str]:
    """A pattern of runs of letters with their marks, of numbers, of others, and of `CUT`."""
    letters, numbers = (_ranges(categories) for categories in ("LM", "N"))
    return re.compile(f"{RESERVED}|[{letters}]+|[{numbers}]+|[^{RESERVED}{letters}{numbers}]+")


def _ranges(categories: str) -> str:
    """The characters of some Unicode categories, as ranges of a regular expression."""
    groups = itertools.groupby(
        map(chr, range(sys.maxunicode + 1)),
        lambda character: unicodedata.category(character)[0] in categories,
    )
    found = [list(characters) for matches, characters in groups if matches]
    return "".join(f"{characters[0]}-{characters[-1]}" for characters in found)

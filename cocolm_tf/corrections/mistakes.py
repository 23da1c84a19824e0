"""Synthetic mistakes, as people make them: by a dictionary of misspellings and by rule."""

import collections
import dataclasses
import os
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from cocolm_tf import files
from cocolm_tf.corrections.texts import Edit, MarkedText
from cocolm_tf.errors import UserError

# How often each kind is made. Where a text has no place for a kind, another one is made.
WEIGHTS = {
    "spelling": 3.0,  # a misspelling that people have made: recieve
    "slip": 2.0,  # of the fingers: letters swapped, left out, doubled, or a key's neighbor
    "confusion": 2.0,  # another word that sounds or looks alike: their, there
    "ending": 2.0,  # the word with another ending: walk, walks, walked, walking
    "agreement": 1.0,  # is, are; has, have; this, these
    "preposition": 1.0,  # in, on, at
    "article": 1.0,  # a, an
    "doubling": 1.0,  # the the
    "order": 1.0,  # two neighbors swapped
}

# One in so many of the dictionary's misspellings is made in held-out text only.
_HELD_OUT = 10

_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]*[A-Z0-9])""")
_ENDINGS = ("s", "es", "d", "ed", "ing", "ly", "er", "r")
_ROWS_OF_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

_CONFUSIONS = """
accept except | advice advise | affect effect | aloud allowed | bare bear | brake break |
breath breathe | brought bought | by buy | choose chose | cite site sight | coarse course |
complement compliment | council counsel | desert dessert | device devise | ensure insure |
fair fare | form from | heal heel | hear here | hole whole | its it's | know now no | later latter |
lead led | lessen lesson | lets let's | loose lose | meat meet | of off | our are | pair pear |
passed past | peace piece | personal personnel | plain plane | precede proceed |
principal principle | quiet quite | right write | role roll | sale sail |
stationary stationery | than then | their there they're | thorough through though |
threw through | to too two | waist waste | wait weight | weak week | weather whether |
were where we're | which witch | whose who's | wonder wander | your you're
"""
_AGREEMENT = """
is are | was were | has have | does do | isn't aren't | wasn't weren't | hasn't haven't |
doesn't don't | this these | that those | am is | i me | he him | she her | they them | we us |
much many | less fewer
"""
_PREPOSITIONS = "in on at of for to with from by about into over under between among"


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """Misspellings and the words that they stand for, by the right word."""

    spelling: Mapping[str, Sequence[str]]  # wrong forms that are no words
    confusion: Mapping[str, Sequence[str]]  # wrong forms that are other words

    def part(self, held_out: bool) -> "Dictionary":
        """The tenth that is for held-out text, or the rest, for training."""
        # By the wrong form, so that no misspelling is in both.
        return Dictionary(
            {
                right: chosen
                for right, wrongs in self.spelling.items()
                if (chosen := [w for w in wrongs if _is_held_out(w) == held_out])
            },
            self.confusion,
        )


def _is_held_out(word: str) -> bool:
    return zlib.crc32(word.encode()) % _HELD_OUT == 0


def codespell_dictionary() -> Dictionary:
    """Reads the misspellings and confusions of the package `codespell`.

    Returns:
        Those of single words of letters, in lower case.

    Raises:
        UserError: If the package is not installed.

    Example:
    ```python
    codespell_dictionary().spelling["receive"]  # ["receieve", "recieve", ...]
    ```
    """
    try:
        import codespell_lib
    except ImportError as error:
        raise UserError(
            "made mistakes take the misspellings of the package codespell, which is not "
            "installed: pip install 'cocolm-tf[corrections]'."
        ) from error
    folder = os.path.join(os.path.dirname(codespell_lib.__file__), "data")
    spelling, confusion = (
        parse_codespell(files.read_text(os.path.join(folder, name)).splitlines())
        for name in ("dictionary.txt", "dictionary_rare.txt")
    )
    return Dictionary(spelling, confusion)


def parse_codespell(lines: Iterable[str]) -> dict[str, list[str]]:
    """Inverts lines `wrong->right, right,` of a dictionary: wrong forms by the right word."""
    # After several right words or a comma there may be a reason why codespell does not apply one
    # itself; it is no word.
    by_right = collections.defaultdict(list)
    for line in lines:
        wrong, arrow, rest = line.strip().lower().partition("->")
        if not arrow or not _WORD.fullmatch(wrong):
            continue
        *words, last = (part.strip() for part in rest.split(","))
        for right in words or [last]:
            if _WORD.fullmatch(right) and right != wrong:
                by_right[right].append(wrong)
    return dict(by_right)


def passages(documents: Iterable[str], longest: int, shortest: int = 4) -> Iterator[str]:
    """Cuts documents into passages of whole sentences, of `shortest` to `longest` words."""
    # Documents have a paragraph a line. A sentence of more than `longest` words is a passage of its
    # own; shorter passages than `shortest` are left out.
    texts = (text for document in documents for text in _passages_of(document, longest))
    return (text for text in texts if len(text.split()) >= shortest)


def _passages_of(document: str, longest: int) -> Iterator[str]:
    gathered, size = [], 0
    for paragraph in document.split("\n"):
        for sentence in _SENTENCE_END.split(paragraph.strip()):
            words = len(sentence.split())
            if gathered and size + words > longest:
                yield " ".join(gathered)
                gathered, size = [], 0
            gathered += [sentence] if words else []
            size += words
    if gathered:
        yield " ".join(gathered)


class MistakeMaker:
    """Puts mistakes into texts.

    Args:
        dictionary: Misspellings and confusions.
        words: The words of good text: changed endings produce only these, and slips none of them.
        rate: The mean share of a text's words that are mistaken.
        weights: The relative frequency of each kind of mistake, as in `WEIGHTS`.

    Example:
    ```python
    maker = MistakeMaker(codespell_dictionary(), {"cats", "cat"}, rate=0.2)
    maker("The cats will receive a mouse.", seed=7).text
    ```
    """

    def __init__(
        self,
        dictionary: Dictionary,
        words: Iterable[str],
        rate: float = 0.05,
        weights: Mapping[str, float] = WEIGHTS,
    ) -> None:
        self._words = set(words)
        self._rate = rate
        self._weights = {kind: weight for kind, weight in weights.items() if weight}
        sets = [_sets(_CONFUSIONS), _sets(_AGREEMENT), _sets(_PREPOSITIONS)]
        self._others = dict(zip(("confusion", "agreement", "preposition"), sets, strict=True))
        self._others["article"] = {"a": ["an"], "an": ["a"]}
        for right, wrongs in dictionary.confusion.items():
            self._others["confusion"].setdefault(right, []).extend(wrongs)
        self._makers: dict[str, Callable[[str, random.Random], str]] = {
            "spelling": lambda word, draw: _drawn(dictionary.spelling.get(word, ()), draw),
            "slip": self._slip,
            "ending": self._other_ending,
        }

    def __repr__(self) -> str:
        return f"MistakeMaker(rate={self._rate}, weights={self._weights})"

    def __call__(self, text: str, seed: int | str) -> MarkedText:
        """Makes mistakes in a text, the same for the same seed; each is an edit with a kind."""
        draw = random.Random(seed)
        spans = [found.span() for found in _WORD.finditer(text)]
        free = set(range(len(spans)))
        changes = []
        for _ in range(sum(draw.random() < self._rate for _ in spans)):
            if change := self._change(text, spans, free, draw):
                changes.append(change)
        return _with_changes(text, sorted(changes))

    def _change(
        self, text: str, spans: Sequence[tuple[int, int]], free: set[int], draw: random.Random
    ) -> tuple[int, int, str, str] | None:
        """A mistake in a free place: start and end of the right text, the wrong text, the kind."""
        weights = dict(self._weights)
        while weights and free:
            kind = draw.choices(list(weights), list(weights.values()))[0]
            for index in draw.sample(sorted(free), len(free)):
                start, end = spans[index]
                word = text[start:end]
                taken = {index}
                if kind == "doubling":
                    change = (end, end, f" {word}", kind)
                elif kind == "order":
                    if index + 1 not in free or text[end : spans[index + 1][0]] != " ":
                        continue
                    end = spans[index + 1][1]
                    taken.add(index + 1)
                    second = text[spans[index + 1][0] : end]
                    if second.lower() == word.lower():
                        continue
                    first, second = _like(word, second), _like(second, word)
                    change = (start, end, f"{first} {second}", kind)
                else:
                    wrong = self._wrong(kind, word.lower(), draw)
                    if not wrong or wrong == word.lower():
                        continue
                    change = (start, end, _like(word, wrong), kind)
                # Never beside another mistake, so that each is an edit of its own.
                free -= {near + step for near in taken for step in (-1, 0, 1)}
                return change
            del weights[kind]
        return None

    def _wrong(self, kind: str, word: str, draw: random.Random) -> str:
        if kind in self._makers:
            return self._makers[kind](word, draw)
        return _drawn(self._others[kind].get(word, ()), draw)

    def _slip(self, word: str, draw: random.Random) -> str:
        """A typing slip that makes no other word, in a word of some length."""
        if len(word) < 4 or not word.isalpha():
            return ""
        place = draw.randrange(1, len(word) - 1)
        before, letter, behind = word[:place], word[place], word[place + 1 :]
        wrong = draw.choice(
            (
                before + behind[0] + letter + behind[1:],
                before + behind,
                before + 2 * letter + behind,
                before + _neighboring_key(letter, draw) + behind,
            )
        )
        return "" if wrong in self._words else wrong

    def _other_ending(self, word: str, draw: random.Random) -> str:
        stems = {word} | {word.removesuffix(ending) for ending in _ENDINGS}
        forms = {stem + ending for stem in stems if len(stem) > 2 for ending in ("", *_ENDINGS)}
        return _drawn(sorted(forms & self._words - {word}), draw)


def _drawn(options: Sequence[str], draw: random.Random) -> str:
    return draw.choice(options) if options else ""


def _neighboring_key(letter: str, draw: random.Random) -> str:
    for row in _ROWS_OF_KEYS:
        if (place := row.find(letter)) >= 0:
            return draw.choice(row[max(0, place - 1) : place] + row[place + 1 : place + 2])
    return letter


def _sets(table: str) -> dict[str, list[str]]:
    """For each word of sets of confusable words, the others."""
    others = collections.defaultdict(list)
    for group in table.split("|"):
        words = group.split()
        for word in words:
            others[word] += [other for other in words if other != word]
    return dict(others)


def _like(word: str, other: str) -> str:
    """Another word with a word's capitalization."""
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


def _with_changes(text: str, changes: Sequence[tuple[int, int, str, str]]) -> MarkedText:
    parts, edits, end, size = [], [], 0, 0
    for start, next_end, wrong, kind in changes:
        parts += [text[end:start], wrong]
        size += start - end
        edits.append(Edit(size, size + len(wrong), text[start:next_end], kind))
        size += len(wrong)
        end = next_end
    return MarkedText("".join([*parts, text[end:]]), (tuple(edits),))


def frequent_words(texts: Iterable[str], least: int = 3) -> set[str]:
    """The frequent words of texts, in lower case."""
    counts = collections.Counter(word.lower() for text in texts for word in _WORD.findall(text))
    return {word for word, count in counts.items() if count >= least}

"""The tokenizer's rules in plain Python, character by character, to compare the graph with."""

import re
import sys
import unicodedata
from collections.abc import Iterable

import sentencepiece
from hypothesis import strategies as st

REPLACEMENTS = [("``", '"'), ("''", '"')] + [
    (character, plain)
    for characters, plain in (("‘’´", "'"), ("“”", '"'), ("—–", "-"))
    for character in characters
]

# Texts in which the rules meet: quotes, contractions, punctuation runs, every kind of space.
FRAGMENTS = [
    *"abstdmSTDM019",
    *" '\"`-.,!?()[]{}<>@#$%^&*_~|\\/:;",
    *"‘’´“”—–…¡¿«»",
    *"\t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff",
    *"\x00\x01\x7f\x91\ufffd",
    *"éßİıςΣ日本語αЖ½²€+=\u0301\u0308",
    "'s",
    "' s",
    "'ll",
    "'LL",
    "' LL-",
    "'re",
    "'VE",
    "' ve",
    "n't",
    "''",
    "``",
    "the",
    "cat",
    "...",
    " ",
    "▁",
    "<unk>",
    "<mask>",
]


def all_characters() -> list[str]:
    """Every assigned character, but of the letters without case, which are all alike, some."""
    # Those of Unicode 15.1, 2ebf0 to 2ee5d, are known to Python 3.13 and not to TensorFlow.
    return [
        character
        for number in range(sys.maxunicode + 1)
        if (category := unicodedata.category(character := chr(number))) not in ("Cs", "Cn", "Co")
        and (category != "Lo" or number % 50 == 0 and not 0x2EBF0 <= number <= 0x2EE5D)
    ]


def odd_texts() -> st.SearchStrategy[str]:
    """Texts made of fragments that matter, and of any characters Python's Unicode version has."""
    characters = st.characters(exclude_categories=("Cs", "Cn", "Co"))
    return st.lists(st.sampled_from(FRAGMENTS) | characters, max_size=30).map("".join)


def is_punctuation(character: str) -> bool:
    ascii_sign = "!" <= character <= "~" and not character.isalnum()
    return ascii_sign or unicodedata.category(character).startswith("P")


def reference_normalize(text: str) -> str:
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    words = [part for word in text.split() for part in _without_edges(word)]
    text = " ".join(words)
    text = re.sub(r"' ([smdSMDtT])\b", r"'\1", text)
    text = re.sub(r"' (ll|re|ve)\b", r"'\1", text)
    text = re.sub(r"' (LL|RE|VE)\b", r"'\1 ", text)
    return " ".join(text.split())


def _without_edges(word: str) -> list[str]:
    flags = [is_punctuation(character) for character in word]
    if all(flags):
        return [word]
    start = flags.index(False)
    end = len(word) - flags[::-1].index(False)
    return [part for part in (word[:start], word[start:end], word[end:]) if part]


def reference_pieces(
    processor: sentencepiece.SentencePieceProcessor, normalized: str
) -> Iterable[str]:
    # By words: of rules without "nmt", two "▁" that stand in a text are not one.
    pieces = [
        piece for word in normalized.split() for piece in processor.encode(word, out_type=str)
    ]
    for index, piece in enumerate(pieces):
        is_last = index + 1 == len(pieces)
        if piece != "▁" or not (is_last or begins_with_punctuation(processor, pieces[index + 1])):
            yield piece


def begins_with_punctuation(processor: sentencepiece.SentencePieceProcessor, piece: str) -> bool:
    is_byte = processor.is_byte(processor.piece_to_id(piece))  # <0x2C>, whatever the byte is
    return not is_byte and is_punctuation(piece[0])

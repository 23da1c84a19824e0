"""Texts to ask models about: ordinary, odd, and hostile ones; and what is asked."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.signature import Settings

# The most tokens that the tests' models take.
MAX_LENGTH = 24

WORDS = ("The", "cat", "sat", "on", "the", "mat", "some", "others", "didn't", "in", "1984", ".")

ODD_TEXTS = [
    "",
    " \t\n ",
    "\x00\x01\x02",
    "a\x00b",
    "\u200b\u200c",
    "“He’ll  say “no” (twice).”",
    "½ ™ oﬃce №5 ﬁnd …",
    "İstanbul ΣΑΣ DŽ",
    "日本 the日本cat ▁ ▁▁a▁b",
    "\U0001f600\u200d\U0001f525 \ufeff \ufffd",
    "e\u0301e\u0301 a\u0300\u0301\u0302",
    "<s> </s> <mask> <pad> <unk>",
    "...!!! ``'' -- ''",
    "he ' ll go 's 's",
    "x" * 300,
    "the " * 200,
    "\u202eright to left\u202c",
    b"the\xff\xfecat\xc3",
    b"\xed\xa0\x80 half a pair",
    b"\xf0\x9f\x94",
]


# What parsers stumble over.
NASTY = [
    b"\x00",
    b"\xff",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"<s>",
    b"</s>",
    b"''",
    b"``",
    b"' ll",
    b"\r\n",
    b"\x1b[31m",
    b"." * 40,
    *(text.encode() for text in ("▁", "\u202e", "\ufeff", "e\u0301", "İ", "\u3000", "\U0010ffff")),
]


def random_texts(count: int, seed: int) -> list[bytes]:
    """Texts of words, of any characters, and of any bytes; most are short, some long."""
    rng = random.Random(seed)
    return [_random_text(rng) for _ in range(count)]


def long_texts(count: int, seed: int) -> list[bytes]:
    """Texts of up to 200,000 bytes, of few long words: letters, keys, accents, joiners, nothing."""
    rng = random.Random(seed)
    alphabets = [[chr(_character(rng)) for _ in range(5)] for _ in range(20)] + [
        ["a"],
        list("abcXYZ0189+/"),
        ["e\u0301", "a\u0300\u0301\u0302"],
        ["\U0001f468\u200d", "\U0001f469", "\u200d"],
        list("０１９，（"),
        list("½ﬃ™"),
        ["a\u200bb"],
        ["\x00"],
        ["שלום", "مرحبا"],
        ["''", "``", "."],
    ]
    texts = []
    for _ in range(count):
        size = 2 ** rng.uniform(8, 17.6)
        units = rng.choice(alphabets)
        text = "".join(rng.choices(units, k=int(size / len("".join(units).encode()) * len(units))))
        texts.append(rng.choice([b"", b"The cat ", b"\xff"]) + text.encode())
    return texts


def mutated_texts(count: int, seed: int) -> list[bytes]:
    """Sentences after some accidents: bytes lost, doubled, turned around, hit or put in."""
    rng = random.Random(seed)
    return [_mutated(rng) for _ in range(count)]


def _mutated(rng: random.Random) -> bytes:
    text = bytearray(" ".join(rng.choices(WORDS, k=rng.choice([2, 8, 25]))).encode())
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(text) + 1)
        change = rng.randrange(6)
        if change == 0:
            text[at:at] = rng.choice(NASTY)
        elif change == 1:
            del text[at : at + rng.randrange(1, 9)]
        elif change == 2 and text:
            text[at % len(text)] = rng.randrange(256)
        elif change == 3:
            text[at:at] = text[at : at + rng.randrange(1, 40)]
        elif change == 4:
            text[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            text[at : at + 4] = text[at : at + 4][::-1]
    return bytes(text)


def _random_text(rng: random.Random) -> bytes:
    size = rng.choice([0, 1, 2, 3, 5, 8, 13, 21, 34, 80])
    kind = rng.randrange(4)
    if kind == 0:
        return " ".join(rng.choices(WORDS, k=size)).encode()
    if kind == 1:
        return rng.randbytes(size)
    if kind == 2:
        return "".join(map(chr, (_character(rng) for _ in range(size)))).encode()
    odd = (
        text if isinstance(text, bytes) else text.encode() for text in rng.choices(ODD_TEXTS, k=3)
    )
    return b" ".join([*odd, *(word.encode() for word in rng.choices(WORDS, k=size))])


def _character(rng: random.Random) -> int:
    code = rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)])
    return code if not 0xD800 <= code < 0xE000 else 0xFFFD


def examples(first: Sequence[bytes], second: Sequence[bytes] | None = None) -> list[bytes]:
    found = []
    for row, text in enumerate(first):
        example = tf.train.Example()
        example.features.feature["first"].bytes_list.value.append(text)
        if second:
            example.features.feature["second"].bytes_list.value.append(second[row])
        found.append(example.SerializeToString())
    return found


def signatures_of(kind: type, model: Any, **settings: Any) -> Any:
    """The `SignatureGroup` of a fine-tuned model that is in no preset."""
    parts = SimpleNamespace(tokenizer=model.preprocessor.tokenizer, task=lambda _: model)
    encoder = Encoder(InferenceEncoder(model.backbone), (8, 16))
    return kind(parts, encoder, Settings(**settings))

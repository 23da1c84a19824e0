"""The text preparation of the released COCO-LM models, as TensorFlow string operations.

Subword segmentation sees words that stand apart from their punctuation, with plain quotes and
dashes. The rules are those of the released tokenizer, quirks included: ids that differ from the
ones a checkpoint was trained with would silently cost accuracy.
"""

import re
from typing import Any

import tensorflow as tf

# RE2 character classes, without their brackets so that they combine. Punctuation is every ASCII
# sign that is no letter, digit, space or control character, and Unicode's category P.
PUNCTUATION = r"!-/:-@\[-`{-~\pP"
# What `str.split()` splits on, besides the plain space.
OTHER_SPACE = (
    r"\x09-\x0d\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
)
# The complement of Unicode's \w: RE2's \b knows ASCII words only.
_NON_WORD = r"[^\pL\pN_]|$"

# Pairs of characters that become one.
QUOTE_PAIRS = r"``|''"
_QUOTES_AND_DASHES = (
    (QUOTE_PAIRS, '"'),
    (r"[‘’´]", "'"),
    (r"[“”]", '"'),
    (r"[—–]", "-"),
)
# Cheap, as a lone plain space, by far the most frequent white space, does not match.
_SPACES = ((rf"[ {OTHER_SPACE}]{{2,}}|[{OTHER_SPACE}]", " "),)
# A word of nothing but punctuation matches neither pattern, and stays whole.
_EDGE_PUNCTUATION = (
    (rf"(^| )([{PUNCTUATION}]+)([^{PUNCTUATION} ])", r"\1\2 \3"),
    (rf"([^{PUNCTUATION} ])([{PUNCTUATION}]+)( |$)", r"\1 \2\3"),
)
# Only the upper case endings of two letters are cut off from what follows them.
_CONTRACTIONS = (
    (rf"' ([smdtSMDT]|ll|re|ve)({_NON_WORD})", r"'\1\2"),
    (rf"' (LL|RE|VE)({_NON_WORD})", r"'\1 \2"),
    (r" {2,}", " "),
)


def normalize(texts: tf.Tensor, lowercase: bool = False) -> tf.Tensor:
    """Prepares string tensors of any shape for segmentation: words between single spaces."""
    # In this order: invalid UTF-8 becomes U+FFFD; typographic quotes and dashes become plain ones;
    # white space becomes single spaces; the runs of punctuation that begin and end a word become
    # words of their own; the English contractions that this tore apart ("' s") are rejoined ("'s").
    # So "He’ll  say “no” (twice)." becomes "He'll say \" no \" ( twice ).".
    texts = valid_utf8(texts)
    if lowercase:
        texts = lower(texts)
    texts = _replace(texts, _QUOTES_AND_DASHES + _SPACES)
    texts = tf.strings.strip(texts)
    texts = _replace(texts, _EDGE_PUNCTUATION + _CONTRACTIONS)
    # A contraction at the very end has left a space behind it.
    return tf.strings.strip(texts)


def valid_utf8(texts: tf.Tensor) -> tf.Tensor:
    """Replaces invalid UTF-8 by U+FFFD, as `bytes.decode(errors="replace")` does."""
    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")


def lower(texts: tf.Tensor) -> tf.Tensor:
    """Lowercases valid UTF-8 by Unicode's rules; NUL becomes U+FFFD."""
    # tf.strings.lower drops whatever follows a NUL.
    texts = tf.strings.regex_replace(texts, r"\x00", "\ufffd")
    return tf.strings.lower(texts, encoding="utf-8")


def as_string_tensor(texts: Any) -> tf.Tensor:
    """Makes a tensor of strings in any form, whatever is in them; ValueError for anything else."""
    try:
        return tf.convert_to_tensor(texts, tf.string)
    except ValueError:
        # Half of a surrogate pair, as careless JSON has them, has no UTF-8 encoding: it becomes
        # U+FFFD, one character for one.
        if isinstance(texts, str):
            return tf.constant(_without_surrogates(texts))
        if not all(isinstance(text, str) for text in texts):
            raise
        return tf.constant([_without_surrogates(text) for text in texts])


def _without_surrogates(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _replace(texts: tf.Tensor, rules: tuple[tuple[str, str], ...]) -> tf.Tensor:
    for pattern, rewrite in rules:
        texts = tf.strings.regex_replace(texts, pattern, rewrite)
    return texts

"""Prompts: templates that turn texts into sentences with a word left out."""

import dataclasses
import re

import tensorflow as tf

from cocolm_tf.errors import UserError

_FIELD = re.compile(r"\{([^{}]*)\}")
_TEXTS = ("first", "second")
_MASK = "mask"
_CHANGES = ("open", "lower")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a template.

    Args:
        words: What is written there; empty where a text or the mask stands.
        text: int. Which text stands there, 0 or 1; None where none does.
        change: `open` for the text without its final punctuation, `lower` for the text with a
            small first letter, or nothing.

    Example:
    ```python
    Part(text=0, change="open")
    ```
    """

    words: str = ""
    text: int | None = None
    change: str = ""

    @property
    def is_mask(self) -> bool:
        """Whether the mask, or a label word in its place, stands there."""
        return not self.words and self.text is None


@dataclasses.dataclass(frozen=True)
class Template:
    """A template, as LM-BFF's manual ones (Gao et al., 2021).

    Args:
        source: Words, and in braces `first` and `second` for the texts and `mask` for the word
            that is left out. `{first|open}` is the text without its final punctuation,
            `{second|lower}` the text with a small first letter.

    Raises:
        UserError: If it has not exactly one mask, or something else in braces.

    Example:
    ```python
    Template("{first|open} ? {mask} , {second|lower}").num_texts  # 2
    ```
    """

    source: str

    def __post_init__(self) -> None:
        texts = [part.text for part in self.parts if part.text is not None]
        masks = sum(part.is_mask for part in self.parts)
        if masks != 1 or sorted(texts) not in ([0], [0, 1]):
            raise UserError(
                f"template {self.source!r} must have {{mask}} once, {{first}} once, and for pairs "
                "{second} once."
            )

    @property
    def num_texts(self) -> int:
        """1, or 2 for pairs."""
        return sum(part.text is not None for part in self.parts)

    @property
    def parts(self) -> list[Part]:
        """What stands one after the other."""
        parts = []
        # Words and what is in braces alternate.
        for number, piece in enumerate(_FIELD.split(self.source)):
            if number % 2:
                parts.append(self._field(piece))
            elif piece.strip():
                parts.append(Part(words=piece.strip()))
        return parts

    def _field(self, piece: str) -> Part:
        name, _, change = piece.partition("|")
        if name == _MASK and not change:
            return Part()
        if name not in _TEXTS or (change and change not in _CHANGES):
            raise UserError(
                f"template {self.source!r}: {{{piece}}} is none of {{mask}}, {{first}}, "
                "{second}, {first|open}, {first|lower} and the like."
            )
        return Part(text=_TEXTS.index(name), change=change)


def changed(texts: tf.Tensor, change: str) -> tf.Tensor:
    """Makes texts fit into a sentence.

    Args:
        texts: [B] string.
        change: Of a `Part`.

    Returns:
        [B] string.

    Example:
    ```python
    changed(tf.constant(["It slept."]), "open")  # ["It slept"]
    ```
    """
    if change == "open":
        return tf.strings.regex_replace(texts, r"[\s.?!]+$", "")
    if change == "lower":
        first = tf.strings.substr(texts, 0, 1, unit="UTF8_CHAR")
        rest = tf.strings.regex_replace(texts, r"^(?s:.)", "")
        return tf.strings.join([tf.strings.lower(first, encoding="utf-8"), rest])
    return texts

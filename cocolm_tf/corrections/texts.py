"""Texts with mistakes and their corrections: edits, read from tables and from M2 files."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Sequence

from cocolm_tf.data.tables import read_table
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import text_lines

# Words and signs, by which texts are compared and counted.
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_UNSPACED = re.compile(r"\S+")
# The types of edits without a finer one: words replaced, missing, unnecessary. ERRANT's tiers.
REPLACED, MISSING, UNNECESSARY = "R", "M", "U"
# How M2 files mark an annotator who found nothing wrong.
_NO_EDIT = "noop"


@dataclasses.dataclass(frozen=True)
class Edit:
    """A stretch of a text and its correction.

    Args:
        start: The first character, as Python indexes a string.
        end: The one after the last.
        correction: What should stand there; "" to remove the stretch.
        kind: The kind of mistake.

    Example:
    ```python
    Edit(3, 5, "goes", "R:VERB:SVA").of("He go home.")  # (3, 5, "goes")
    ```
    """

    start: int
    end: int
    correction: str
    kind: str = ""

    def of(self, text: str) -> tuple[int, int, str]:
        """Place and correction without white space around: edits that share them are the same."""
        covered = text[self.start : self.end]
        start = self.start + len(covered) - len(covered.lstrip())
        end = self.end - len(covered) + len(covered.rstrip())
        return start, max(start, end), self.correction.strip()


@dataclasses.dataclass(frozen=True)
class MarkedText:
    """A text with its edits.

    Args:
        text: The text with its mistakes.
        references: The edits of each annotator, from left to right.

    Example:
    ```python
    MarkedText("He go home.", ((Edit(3, 5, "goes"),),)).corrected()  # "He goes home."
    ```
    """

    text: str
    references: tuple[tuple[Edit, ...], ...]

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The first annotator's."""
        return self.references[0]

    def corrected(self, annotator: int = 0) -> str:
        """The text as an annotator corrects it."""
        return apply_edits(self.text, self.references[annotator])


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """Applies edits, which do not overlap and go from left to right."""
    parts, end = [], 0
    for edit in edits:
        parts += [text[end : edit.start], edit.correction]
        end = edit.end
    return "".join([*parts, text[end:]])


def words_of(text: str) -> list[str]:
    """The words and signs of a text."""
    return _WORD.findall(text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """The places of the words and signs of a text."""
    return _spans(_WORD, text)


def _spans(pattern: re.Pattern, text: str) -> list[tuple[int, int]]:
    return [found.span() for found in pattern.finditer(text)]


def edit_of_words(
    text: str,
    words: Sequence[tuple[int, int]],
    first: int,
    last: int,
    correction: str,
    kind: str,
) -> Edit:
    """The edit that replaces the words from `first` to before `last` by a correction."""
    # A missing word follows the word before it, and a word that is removed takes a space with it.
    if first == last:
        start = end = words[first - 1][1] if first else 0
        correction = f" {correction}" if first else f"{correction} "
    else:
        start, end = words[first][0], words[last - 1][1]
        if not correction and first:
            start = words[first - 1][1]
        elif not correction and last < len(words):
            end = words[last][0]
    if _join(text[:start], correction or text[end:]):
        correction = f" {correction}"
    if correction.strip() and _join(correction, text[end:]):
        correction = f"{correction} "
    return Edit(start, end, correction, kind)


def _join(left: str, right: str) -> bool:
    """Whether two texts would make one word where they meet."""
    meeting = left[-1:] + right[:1]
    return len(meeting.strip()) == 2 and len(words_of(meeting)) == 1


def differences(text: str, corrected: str) -> tuple[Edit, ...]:
    """The edits between two texts, word by word where as many words replace as many."""
    words, right = word_spans(text), word_spans(corrected)
    matcher = difflib.SequenceMatcher(
        a=[text[slice(*span)] for span in words],
        b=[corrected[slice(*span)] for span in right],
        autojunk=False,
    )
    edits = []
    for operation, first, last, begin, stop in matcher.get_opcodes():
        if operation == "equal":
            continue
        whole = [(first, last, begin, stop)]
        parted = all(a[1] < b[0] for a, b in itertools.pairwise(words[first:last]))
        if last - first == stop - begin and parted:
            places = zip(range(first, last), range(begin, stop), strict=True)
            whole = [(i, i + 1, j, j + 1) for i, j in places]
        for i, k, j, m in whole:
            correction = corrected[right[j][0] : right[m - 1][1]] if j < m else ""
            kind = REPLACED if i < k and j < m else UNNECESSARY if i < k else MISSING
            edits.append(edit_of_words(text, words, i, k, correction, kind))
    return tuple(edits)


def single_words(text: str, edit: Edit) -> list[tuple[int, int, str | None]]:
    """The words that an edit changes: first character, the one after the last, right word."""
    # The right word is "" for none, and None where the edit turns several words into another number
    # of them, so that none has its own.
    start, end, correction = edit.of(text)
    words = [(start + a, start + b) for a, b in _spans(_UNSPACED, text[start:end])]
    right = correction.split() or [""] * len(words)
    if len(words) == 1:
        right = [correction]
    if len(words) != len(right):
        return [(a, b, None) for a, b in words]
    return [(a, b, word) for (a, b), word in zip(words, right, strict=True)]


def read_table_of_corrections(
    path: str, text_column: str, corrected_column: str, encoding: str | None = None
) -> list[MarkedText]:
    """Reads texts and their corrections from two columns of TSV, CSV or JSON lines."""
    columns = text_column, corrected_column
    table = read_table(path, columns, encoding=encoding, default_format=".tsv")
    for line, reason in table.bad_rows:
        raise UserError(f"{path}:{line} {reason}.")
    texts = []
    for line, row in zip(table.lines, table.rows, strict=True):
        for column, value in zip(columns, row, strict=True):
            if not value.strip():
                raise UserError(f"{path}:{line} has no {column}: it needs {' and '.join(columns)}.")
        texts.append(MarkedText(row[0], (differences(*row),)))
    return texts


def read_m2(path: str, encoding: str | None = None) -> list[MarkedText]:
    """Reads an M2 file, as ERRANT and the shared tasks of grammatical error correction write it."""
    # A block has `S` and the text's tokens, then a line for each edit, `A first last|||type|||
    # correction|||REQUIRED|||-NONE-|||annotator`; blank lines separate the blocks. An annotator
    # without edits in a block where others have some found it right only where the block says so
    # (`noop`).
    texts, tokens, by_annotator = [], None, {}

    def finish() -> None:
        if tokens is not None:
            edits = [tuple(sorted(found, key=lambda e: e.start)) for found in by_annotator.values()]
            texts.append(MarkedText(text, tuple(edits) or ((),)))

    for number, line in enumerate(text_lines(path, encoding), start=1):
        line = line.rstrip("\r\n")
        if line == "S" or line.startswith("S "):
            finish()
            tokens, by_annotator = line[2:].split(), {}
            text = " ".join(tokens)
            spans = _spans(_UNSPACED, text)
        elif line.startswith("A ") and tokens is not None:
            try:
                place, kind, correction, _, _, annotator = line[2:].split("|||")
                first, last = map(int, place.split())
                found = by_annotator.setdefault(int(annotator), [])
                if kind == _NO_EDIT:
                    continue
                if not 0 <= first <= last <= len(tokens):
                    raise ValueError(f"there are {len(tokens)} tokens")
            except ValueError as error:
                raise UserError(
                    f"{path}:{number} is no edit of an M2 file (A first last|||type|||correction|||"
                    f"REQUIRED|||-NONE-|||annotator): {error}."
                ) from error
            correction = "" if correction == "-NONE-" else correction
            found.append(edit_of_words(text, spans, first, last, correction, kind))
        elif line.strip():
            raise UserError(
                f"{path}:{number} is no line of an M2 file: one begins with S, or with A behind it."
            )
    finish()
    if not texts:
        raise UserError(f"{path} has no texts: no line begins with S.")
    return texts

"""The mapping from tokens to ids: the special tokens, and fairseq's `dict.txt` format."""

import dataclasses
import functools
import os
from collections.abc import Iterable

from cocolm_tf.errors import UserError

START_TOKEN, START_TOKEN_ID = "<s>", 0
PAD_TOKEN, PAD_TOKEN_ID = "<pad>", 1
END_TOKEN, END_TOKEN_ID = "</s>", 2
UNKNOWN_TOKEN, UNKNOWN_TOKEN_ID = "<unk>", 3
MASK_TOKEN = "<mask>"

_FIRST_TOKENS = (START_TOKEN, PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN)
NUM_SPECIAL_TOKENS = len(_FIRST_TOKENS) + 1  # and <mask>


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """The pieces that have an id, in the order of their ids."""

    # Ids are the released models': 0 to 3 are `<s>`, `<pad>`, `</s>` and `<unk>`, then come the
    # pieces, and `<mask>` is last. The pieces need not be those of the SentencePiece model: one
    # that is missing here is unknown, and one that is only here, such as a run of rare characters
    # that SentencePiece left whole, is known. The counts, from the corpus, are for people: no id
    # depends on them.

    pieces: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        seen = {*_FIRST_TOKENS, MASK_TOKEN}
        for piece in self.pieces:
            if piece in seen:
                raise UserError(f"the dictionary has {piece!r} twice: every token has one id.")
            seen.add(piece)

    @classmethod
    def of(cls, pieces: Iterable[str]) -> "Dictionary":
        """Makes a dictionary of pieces without known counts: each is 1."""
        pieces = tuple(pieces)
        return cls(pieces, (1,) * len(pieces))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Dictionary":
        """Reads a `dict.txt`: a piece, a space and a count on each line, in UTF-8."""
        try:
            # A piece may be a character that `str.splitlines` takes for the end of a line.
            with open(path, encoding="utf-8") as file:
                lines = file.read().removesuffix("\n").split("\n")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text.") from error
        pieces, counts = [], []
        for number, line in enumerate(lines, start=1):
            piece, _, count = line.rpartition(" ")
            if not piece or not count.isdecimal():
                raise UserError(
                    f'{path}:{number}: {line!r} is not a piece and its count, as in "▁the 23456".'
                )
            pieces.append(piece)
            counts.append(int(count))
        try:
            return cls(tuple(pieces), tuple(counts))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a `dict.txt`."""
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(
                f"{piece} {count}\n" for piece, count in zip(self.pieces, self.counts, strict=True)
            )

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every token, special ones included, at the index that is its id."""
        return (*_FIRST_TOKENS, *self.pieces, MASK_TOKEN)

    @functools.cached_property
    def token_ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: id for id, token in enumerate(self.tokens)}

import pathlib

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.dictionary import Dictionary


def test_special_tokens_have_the_released_ids():
    dictionary = Dictionary.of(["▁a", "b"])
    assert dictionary.tokens == ("<s>", "<pad>", "</s>", "<unk>", "▁a", "b", "<mask>")
    assert dictionary.token_ids == {token: id for id, token in enumerate(dictionary.tokens)}


def test_survives_a_round_trip(tmp_path: pathlib.Path):
    # Some of these end a line for `str.splitlines`, or are no more than white space.
    dictionary = Dictionary(
        ("▁a", "\x85", "\u2028", "\x1c", "\xa0", "#", "é"), (9, 1, 0, 2, 3, 4, 5)
    )
    path = tmp_path / "dict.txt"
    dictionary.write(path)
    assert Dictionary.read(path) == dictionary


def test_reads_windows_lines(tmp_path: pathlib.Path):
    path = tmp_path / "dict.txt"
    path.write_bytes("▁a 5\r\n▁b 2\r\n".encode())
    assert Dictionary.read(path) == Dictionary(("▁a", "▁b"), (5, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb\n", "dict.txt:2: 'b' is not"),
        (b"a 1\n\nb 2\n", "dict.txt:2: '' is not"),
        (b"a one\n", "dict.txt:1: 'a one' is not"),
        (b"a -1\n", "dict.txt:1: 'a -1' is not"),
        (b"", "dict.txt:1: '' is not"),
        (b"a 1\nb 1\na 1\n", "'a' twice"),
        (b"<pad> 1\n", "'<pad>' twice"),
        (b"<mask> 1\n", "'<mask>' twice"),
        (b"\xff 1\n", "dict.txt is not UTF-8"),
    ],
)
def test_names_what_is_wrong(tmp_path: pathlib.Path, content: bytes, message: str):
    path = tmp_path / "dict.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="dict.txt") as error:
        Dictionary.read(path)
    assert message in str(error.value)


def test_names_a_missing_file(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="dict.txt: No such file"):
        Dictionary.read(tmp_path / "dict.txt")

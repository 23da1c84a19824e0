import os
from pathlib import Path

import pytest
from data_stand_ins import Lists
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.data.packing import (
    TRAIN,
    VALIDATION,
    Recipe,
    SequencePacker,
    chunks,
    parts_of,
)
from cocolm_tf.data.sources import LONGEST_DOCUMENT, FileSource

START, END = 0, 2
# Ids of text never equal a special token's.
DOCUMENTS = st.lists(st.lists(st.integers(4, 99), max_size=40), max_size=20)
# Of those that begin a word.
STARTS_WORD = [id >= 40 for id in range(100)]


def pack(documents: list[list[int]], sequence_length: int, *break_at: object) -> list[list[int]]:
    packer = SequencePacker(sequence_length, START, END, *break_at)
    sequences = [sequence for document in documents for sequence in packer.add(document)]
    return sequences + packer.flush()


@given(DOCUMENTS, st.integers(3, 20))
def test_every_token_is_in_exactly_one_sequence_and_in_order(documents, sequence_length):
    packed = [id for sequence in pack(documents, sequence_length) for id in sequence]
    assert [id for id in packed if id > 3] == [id for document in documents for id in document]


@given(DOCUMENTS, st.integers(3, 20))
def test_sequences_have_the_form_and_the_length(documents, sequence_length):
    sequences = pack(documents, sequence_length)
    for sequence in sequences:
        assert sequence[0] == START and sequence[-1] == END
        assert START not in sequence[1:]
        assert (END, END) not in zip(sequence, sequence[1:], strict=False)
        assert 3 <= len(sequence) <= sequence_length
    for sequence in sequences[:-1]:
        assert len(sequence) >= sequence_length - 1


@given(DOCUMENTS, st.integers(3, 20))
def test_documents_can_be_told_apart_within_a_sequence(documents, sequence_length):
    """A `</s>` inside of a sequence stands exactly where one document ends and another begins."""
    ends, total = set(), 0
    for document in documents:
        total += len(document)
        ends.add(total)
    position = 0
    for sequence in pack(documents, sequence_length):
        for id in sequence[1:-1]:
            if id == END:
                assert position in ends
            position += id != END
    assert position == total


@given(DOCUMENTS, st.integers(3, 20), st.booleans())
def test_words_stay_whole(documents, sequence_length, one_document: bool):
    sequences = pack(documents, sequence_length, STARTS_WORD, one_document)
    text = [id for document in documents for id in document]
    packed = [id for sequence in sequences for id in sequence if id > 3]
    assert packed == text
    # Where words begin: where documents do, and where an id says so.
    starts, total = {index for index, id in enumerate(text) if STARTS_WORD[id]}, 0
    for document in documents:
        starts.add(total)
        total += len(document)
    words = sorted({*starts, total})
    longest = {start: end - start for start, end in zip(words, words[1:], strict=False)}
    position = 0
    for sequence in sequences:
        assert 3 <= len(sequence) <= sequence_length
        if position not in starts:
            begin = max(start for start in starts if start < position)
            assert longest[begin] > sequence_length - 2
        position += sum(id > 3 for id in sequence)


@given(DOCUMENTS, st.integers(3, 20))
def test_no_sequence_spans_two_documents(documents, sequence_length):
    sequences = pack(documents, sequence_length, STARTS_WORD, True)
    expected = [
        one for document in documents for one in pack([document], sequence_length, STARTS_WORD)
    ]
    assert sequences == expected


def test_a_word_goes_to_the_next_sequence_and_the_document_before_it_is_closed():
    assert pack([[50, 51], [60, 6, 7]], 6, STARTS_WORD) == [[0, 50, 51, 2], [0, 60, 6, 7, 2]]


def test_documents_that_share_a_sequence_are_separated():
    assert pack([[11, 12], [21, 22, 23]], 6) == [[0, 11, 12, 2, 21, 2], [0, 22, 23, 2]]


def test_a_long_document_continues():
    assert pack([[5, 6, 7, 8, 9]], 4) == [[0, 5, 6, 2], [0, 7, 8, 2], [0, 9, 2]]


def test_no_separator_falls_on_the_last_place():
    assert pack([[5, 6, 7], [8]], 6) == [[0, 5, 6, 7, 2], [0, 8, 2]]


@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_no_tokens_make_no_sequence(documents):
    assert pack(documents, 8) == []


def test_an_empty_document_leaves_no_trace():
    assert pack([[5], [], [6]], 8) == pack([[5], [6]], 8)


@given(st.lists(st.text(max_size=9)), st.integers(1, 40))
def test_chunks_hold_all_documents_in_order(documents: list[str], size: int):
    grouped = list(chunks(documents, size))
    assert [text for chunk in grouped for text in chunk] == documents
    sizes = [[len(text.encode()) for text in chunk] for chunk in grouped]
    assert all(sum(one) >= size for one in sizes[:-1])
    assert all(sum(one[:-1]) < size for one in sizes)


def test_a_document_without_an_end_is_cut_at_white_space():
    text = "many words " * (LONGEST_DOCUMENT // 4)
    pieces = [piece for chunk in chunks([text]) for piece in chunk]
    assert 3 <= len(pieces) <= 4
    assert max(map(len, pieces)) <= LONGEST_DOCUMENT
    assert " ".join(pieces).split() == text.split()


def test_small_files_are_read_together(tmp_path: Path):
    for name, size in {"a": 10, "b": 20, "c": 2 << 20, "d": 30}.items():
        (tmp_path / f"{name}.txt").write_text("x" * size)
    source = FileSource.find(f"{tmp_path}/*.txt")
    parts = parts_of(source)
    names = [[Path(name).stem for name in part.names] for part in parts]
    assert names == [["a", "b", "c"], ["d"]]
    assert [part.number for part in parts] == [0, 1]
    assert parts == parts_of(source)
    (tmp_path / "d.txt").write_text("y" * 30)
    os.utime(tmp_path / "d.txt", ns=(1, 1))
    changed = parts_of(source)
    assert changed[0] == parts[0] and changed[1] != parts[1]
    assert [part.names for part in parts_of(Lists.of(["a"], ["b"]))] == [("0",), ("1",)]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1), st.integers())
def test_white_space_does_not_decide_what_is_held_out(words: list[str], seed: int):
    recipe = Recipe("", "", 0, 16, 2, seed=seed, validation_fraction=0.5)
    split = recipe.split(" ".join(words))
    assert split in (TRAIN, VALIDATION)
    assert recipe.split("\n".join(["", *words, ""])) == split


def test_as_much_is_held_out_as_was_asked_for_and_growing_it_takes_none_back():
    fewer, more = (Recipe("", "", 0, 16, 2, validation_fraction=f) for f in (0.1, 0.3))
    documents = [f"document {index}" for index in range(3000)]
    held_out = [{d for d in documents if r.split(d) == VALIDATION} for r in (fewer, more)]
    assert held_out[0] < held_out[1]
    assert [round(len(one) / 3000, 1) for one in held_out] == [0.1, 0.3]

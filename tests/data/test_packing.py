import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.data.packing import SequencePacker

START, END = 0, 2
# Ids of text never equal a special token's.
DOCUMENTS = st.lists(st.lists(st.integers(4, 99), max_size=40), max_size=20)


def pack(documents: list[list[int]], sequence_length: int) -> list[list[int]]:
    packer = SequencePacker(sequence_length, START, END)
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

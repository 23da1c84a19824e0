import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cocolm_tf.data.tags import (
    SCHEMES,
    Chunk,
    TagCodes,
    chunks,
    chunks_of_numbers,
    converted,
    tag_names,
    tags_of_chunks,
)

NAMES = ["O", *(f"{prefix}-{label}" for prefix in "BIES" for label in ("X", "Y-1"))]
TAGS = st.lists(st.sampled_from(NAMES), max_size=9)


# What `seqeval.metrics.sequence_labeling.get_entities` says of the same tags.
@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-X I-X O B-Y", [(0, 2, "X"), (3, 4, "Y")]),
        ("B-X B-X I-X", [(0, 1, "X"), (1, 3, "X")]),
        ("I-X I-X O I-X", [(0, 2, "X"), (3, 4, "X")]),  # IOB1, or no beginning
        ("B-X I-Y I-Y", [(0, 1, "X"), (1, 3, "Y")]),
        ("S-X S-X B-X E-X", [(0, 1, "X"), (1, 2, "X"), (2, 4, "X")]),
        ("E-X E-X I-X", [(0, 1, "X"), (1, 2, "X"), (2, 3, "X")]),
        ("B-X O E-X", [(0, 1, "X"), (2, 3, "X")]),
        ("S-X I-X E-X", [(0, 1, "X"), (1, 3, "X")]),
        ("B-Y-1 I-Y-1", [(0, 2, "Y-1")]),
    ],
)
def test_chunks_are_those_of_seqeval(tags, found):
    assert chunks(tags.split()) == [Chunk(*chunk) for chunk in found]


@hypothesis.given(st.lists(TAGS, min_size=1, max_size=4))
def test_the_chunks_of_all_sequences_are_those_of_each(sequences):
    codes = TagCodes.of(NAMES)
    lengths = np.array([len(tags) for tags in sequences])
    numbers = np.array([NAMES.index(tag) for tags in sequences for tag in tags], int)
    expected = [
        [start + offset, end + offset, codes.labels.index(label)]
        for tags, offset in zip(sequences, np.cumsum(lengths) - lengths, strict=True)
        for start, end, label in chunks(tags)
    ]
    assert chunks_of_numbers(numbers, lengths, codes).tolist() == expected


@hypothesis.given(TAGS, st.sampled_from(SCHEMES))
def test_a_scheme_keeps_the_chunks_and_has_its_own_tags(tags, scheme):
    written = converted(tags, scheme)
    assert chunks(written) == chunks(tags)
    assert set(written) <= set(tag_names(["X", "Y-1"], scheme))
    assert converted(written, scheme) == written


def test_schemes():
    found = [Chunk(0, 1, "X"), Chunk(1, 4, "Y")]
    assert tags_of_chunks(found, 5, "BIO") == ["B-X", "B-Y", "I-Y", "I-Y", "O"]
    assert tags_of_chunks(found, 5, "BIOES") == ["S-X", "B-Y", "I-Y", "E-Y", "O"]
    assert tag_names(["X", "Y"], "BIO") == ["O", "B-X", "I-X", "B-Y", "I-Y"]
    with pytest.raises(ValueError, match="a scheme is one of BIO, BIOES, not 'IOB'"):
        tag_names(["X"], "IOB")


@pytest.mark.parametrize("tag", ["", "NOUN", "B", "X-LOC", "B-", "b-LOC", "BI-LOC"])
def test_what_is_no_tag(tag):
    with pytest.raises(ValueError, match="is no tag of a chunk"):
        chunks(["O", tag])

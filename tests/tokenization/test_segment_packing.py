import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.tokenization.segment_packing import overlapping_windows, pack_segments, to_ragged

ROWS = st.lists(
    st.tuples(st.lists(st.integers(4, 99), max_size=12), st.lists(st.integers(4, 99), max_size=12)),
    min_size=1,
    max_size=5,
)


def packed_in_python(first: list[int], second: list[int] | None, length: int) -> list[int]:
    first, second = list(first), None if second is None else list(second)
    if second is None:
        row = [0, *first[: length - 2], 2]
    else:
        while len(first) + len(second) > length - 4:
            (first if len(first) > len(second) else second).pop()
        row = [0, *first, 2, 2, *second, 2]
    return row + [1] * (length - len(row))


@settings(max_examples=20)
@given(ROWS, st.integers(6, 32))
def test_pairs_equal_popping_from_the_longer(rows: list[tuple[list[int], list[int]]], length: int):
    features = pack_segments(
        tf.ragged.constant([a for a, _ in rows], dtype=tf.int32, ragged_rank=1),
        tf.ragged.constant([b for _, b in rows], dtype=tf.int32, ragged_rank=1),
        sequence_length=length,
    )
    expected = np.array([packed_in_python(a, b, length) for a, b in rows])
    np.testing.assert_array_equal(features["token_ids"], expected)
    np.testing.assert_array_equal(features["padding_mask"], expected != 1)


@settings(max_examples=20)
@given(ROWS, st.integers(3, 32))
def test_single_texts(rows: list[tuple[list[int], list[int]]], length: int):
    features = pack_segments(
        tf.ragged.constant([a for a, _ in rows], dtype=tf.int32, ragged_rank=1),
        sequence_length=length,
    )
    expected = np.array([packed_in_python(a, None, length) for a, _ in rows])
    np.testing.assert_array_equal(features["token_ids"], expected)
    np.testing.assert_array_equal(features["padding_mask"], expected != 1)


def test_types_and_shapes():
    features = pack_segments([[7, 8], [9, 10]], sequence_length=6)
    assert features["token_ids"].dtype == tf.int32
    assert features["padding_mask"].dtype == tf.bool
    assert features["token_ids"].shape == features["padding_mask"].shape == [2, 6]


def test_a_single_text_has_no_batch_axis():
    features = pack_segments(tf.constant([7, 8], tf.int64), [9], sequence_length=8)
    assert features["token_ids"].numpy().tolist() == [0, 7, 8, 2, 2, 9, 2, 1]
    assert features["padding_mask"].shape == [8]


def test_runs_in_a_pipeline():
    dataset = tf.data.Dataset.from_tensors(tf.ragged.constant([[7, 8, 9], [5]], dtype=tf.int32))
    (features,) = dataset.map(lambda ids: pack_segments(ids, ids, sequence_length=8))
    assert features["token_ids"].numpy().tolist() == [
        [0, 7, 8, 2, 2, 7, 8, 2],
        [0, 5, 2, 2, 5, 2, 1, 1],
    ]


@pytest.mark.parametrize(("second", "length"), [(None, 2), ([[5]], 5), (None, 0)])
def test_too_short_a_sequence_is_refused(second: list[list[int]] | None, length: int):
    with pytest.raises(ValueError, match=f"sequence_length is {length}"):
        pack_segments([[4]], second, sequence_length=length)


def test_ragged_tensors_of_other_types():
    ids = tf.RaggedTensor.from_row_splits(
        tf.constant([5, 6], tf.int64), tf.constant([0, 2], tf.int32)
    )
    ragged, is_batched = to_ragged(ids)
    assert is_batched
    assert (ragged.dtype, ragged.row_splits.dtype) == (tf.int32, tf.int64)


def test_higher_ranks_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 1\)"):
        to_ragged(tf.zeros([1, 1, 1], tf.int32))


# --- Windows ---


@pytest.mark.parametrize(("room", "overlap"), [(6, 2), (10, 0), (8, 7)])
@pytest.mark.parametrize("lengths", [[], [0], [3], [100], [6, 0, 7, 20, 5, 33, 10]], ids=str)
def test_every_token_is_wanted_once_where_it_has_most_context(
    lengths: list[int], room: int, overlap: int
):
    windows = overlapping_windows(np.int64(lengths), room, overlap)
    tokens = windows.tokens.to_list()
    assert all(len(window) <= room for window in tokens)
    wanted, first_token = [], 0
    pieces = zip(tokens, windows.first_wanted.numpy(), windows.num_wanted.numpy(), strict=True)
    chosen = [(window, window[first : first + number]) for window, first, number in pieces]
    for length in lengths:
        text = range(first_token, first_token + length)
        own = [window for window in tokens if window and window[0] in text]
        assert sorted(set(sum(own, []))) == list(text)
        assert len(own) == 1 or all(len(window) == room for window in own)
        first_token += length
    for window, part in chosen:
        wanted += part
        for token in part:
            context = min(token - window[0], window[-1] - token)
            others = [
                min(token - other[0], other[-1] - token)
                for other in tokens
                if other and other[0] <= token <= other[-1]
            ]
            # Halves of an odd overlap differ by one.
            assert context >= max(others) - 1
    assert wanted == list(range(sum(lengths)))


def test_the_example():
    windows = overlapping_windows(np.int64([3, 10]), room=6, overlap=2)
    assert windows.tokens.row_lengths().numpy().tolist() == [3, 6, 6]
    assert windows.first_wanted.numpy().tolist() == [0, 0, 1]
    assert windows.num_wanted.numpy().tolist() == [3, 5, 5]

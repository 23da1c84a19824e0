import numpy as np
import pytest

from cocolm_tf.tokenization.segment_packing import overlapping_windows


@pytest.mark.parametrize(("room", "overlap"), [(6, 2), (10, 0), (8, 7), (5, 1)])
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

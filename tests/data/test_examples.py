import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.examples import Examples, stratified
from cocolm_tf.errors import UserError


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
)
def test_every_class_keeps_its_share(labels, fraction, seed):
    labels = np.int32(labels)
    drawn = stratified(labels, fraction, seed)
    assert (np.diff(drawn) > 0).all()
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert (labels[drawn] == label).sum() == max(1, round(fraction * count))


def test_the_draw_is_the_seeds():
    labels = np.int32([0, 1] * 50)
    first, again, other = (stratified(labels, 0.2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_numbers_are_drawn_evenly_from_their_range():
    numbers = np.float32(np.random.default_rng(0).normal(size=500))
    drawn = numbers[stratified(numbers, 0.1, seed=0)]
    edges = np.quantile(numbers, [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_array_equal(np.bincount(np.searchsorted(edges, drawn)), [10] * 5)


def test_select_takes_all_parts_along():
    whole = Examples(["a", "b", "c"], ["x", "y", "z"], np.int32([3, 4, 5]), "file", ["line 2"])
    part = whole.select([2, 0])
    assert (part.first, part.second, list(part.labels)) == (["c", "a"], ["z", "x"], [5, 3])
    assert (part.source, part.left_out, len(part)) == ("file", ["line 2"], 2)
    assert Examples(["a", "b"]).select([1]) == Examples(["b"])


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_no_fraction_is_refused(fraction):
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        stratified(np.int32([0, 1]), fraction, 0)

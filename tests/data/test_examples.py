import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.examples import Examples, TaskData, classes_of, few_shot_split, stratified
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


# A few examples of each class.


def task(labels, label_names=("a", "b"), bounds=None) -> TaskData:
    examples = Examples([f"text {number}" for number in range(len(labels))], None, labels, "file")
    return TaskData("T", label_names, examples, {}, {}, bounds=bounds)


def test_both_sets_have_so_many_of_each_class_and_share_none():
    data = task(np.int32([0, 1, 0, 0] * 20))
    train, dev = few_shot_split(data, shots=4, seed=0)
    for part in (train, dev):
        np.testing.assert_array_equal(part.labels, [0] * 4 + [1] * 4)
    assert not set(train.first) & set(dev.first)


def test_the_few_shots_are_the_seeds():
    data = task(np.int32([0, 1] * 40))
    first, again, other = (few_shot_split(data, 5, seed)[0].first for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("seed", [13, 100])
def test_the_draw_is_that_of_lm_bff(seed):
    """The lines of a file are shuffled, and the first of each label taken in their order."""
    labels = np.random.default_rng(0).integers(0, 2, 200)
    data = task(labels.astype(np.int32))
    lines = list(zip(data.train.first, labels.tolist(), strict=True))
    np.random.RandomState(seed).shuffle(lines)
    train, dev = few_shot_split(data, 5, seed)
    for number, part in ((0, train), (5, dev)):
        expected = [
            [text for text, label in lines if label == one][number : number + 5] for one in (0, 1)
        ]
        assert part.first == [*expected[0], *expected[1]]


def test_numbers_have_a_low_and_a_high_class():
    data = task(np.float32(np.arange(40) / 8), None, (0.0, 5.0))
    np.testing.assert_array_equal(classes_of(data.train, data), [0] * 20 + [1] * 20)
    train, _ = few_shot_split(data, 3, seed=0)
    assert (train.labels[:3] < 2.5).all() and (train.labels[3:] >= 2.5).all()


def test_too_few_examples_are_named():
    with pytest.raises(UserError, match="file has 3 examples of 'b', too few to draw 2 to learn"):
        few_shot_split(task(np.int32([0] * 9 + [1] * 3)), 2, seed=0)

"""The courses' augmentations against what plain Python makes of the same choices."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.data.mcl_augmentation import MCLAugmentation, insert_masks, swap_tokens

START, PAD, END, MASK = 0, 1, 2, 99
SPECIAL = SpecialTokens(mask=MASK)


@st.composite
def batches(draw) -> np.ndarray:
    """Sequences of different tokens, in which documents may end, then padding."""
    length = draw(st.integers(1, 20))
    rows = []
    for real in draw(st.lists(st.integers(0, length), min_size=1, max_size=4)):
        row = [START, *range(3, real + 1), END][:real] + [PAD] * (length - real)
        for column in draw(st.lists(st.integers(1, length), max_size=2)):
            if column < real - 1:
                row[column] = END
        rows.append(row)
    return np.array(rows, np.int32)


fractions = st.sampled_from([0.05, 0.15, 0.3, 0.5, 1.0])
seeds = st.integers(0, 1000).map(lambda number: tf.constant([number, 1]))


def used(positions, weights) -> list[int]:
    """The used positions of a row, which must be distinct and in order."""
    found = [int(p) for p, weight in zip(positions, weights, strict=True) if weight]
    assert found == sorted(set(found)) and set(np.unique(weights)) <= {0, 1}
    return found


def counts_that_fit(row, fraction: float) -> set[int]:
    expected = np.float32(sum(token > END for token in row)) * np.float32(fraction)
    return {math.floor(expected), math.floor(expected) + 1}


@settings(max_examples=30)
@given(batches(), fractions, seeds, st.booleans())
def test_swapping_reorders_ordinary_tokens_among_themselves(batch, fraction, seed, fixed_points):
    found = swap_tokens(tf.constant(batch), fraction, SPECIAL, seed, fixed_points)
    found = {name: value.numpy() for name, value in found.items()}
    shape = (len(batch), math.ceil(batch.shape[1] * fraction))
    assert {value.shape for value in found.values()} == {shape}
    for row, positions, weights, tokens in zip(batch, *found.values(), strict=True):
        chosen = used(positions, weights)
        standing = {place: row[place] for place in chosen}
        assert all(token > END and token != MASK for token in standing.values())
        assert len(chosen) in counts_that_fit(row, fraction)
        assert (tokens[weights == 0] == row[positions[weights == 0]]).all()
        arriving = dict(zip(chosen, tokens[weights == 1], strict=True))
        assert sorted(arriving.values()) == sorted(standing.values())
        if not fixed_points and chosen:
            # Where each came from, where that came from, and so on: back after all of them.
            sources = {place: list(row).index(token) for place, token in arriving.items()}
            place, cycle = chosen[0], []
            while place not in cycle:
                cycle.append(place)
                place = sources[place]
            assert sorted(cycle) == chosen


def test_any_order_is_as_likely_as_any_other():
    batch = tf.constant([[START, 3, 4, 5, END]] * 6000)
    for fixed_points, orders in ((True, 6), (False, 2)):
        found = swap_tokens(batch, 1.0, SPECIAL, tf.constant([3, 5]), fixed_points)
        tokens = found["swapped_tokens"].numpy()[found["swapped_weights"].numpy() == 1]
        _, counts = np.unique(tokens.reshape(-1, 3), axis=0, return_counts=True)
        assert len(counts) == orders
        assert counts == pytest.approx(6000 / orders, rel=0.12)


@settings(max_examples=30)
@given(batches(), fractions, seeds)
def test_inserting_keeps_length_order_and_both_ends(batch, fraction, seed):
    found = insert_masks(tf.constant(batch), fraction, SPECIAL, seed)
    token_ids, is_real, positions, weights = (value.numpy() for value in found.values())
    assert token_ids.shape == is_real.shape == batch.shape
    assert positions.shape == weights.shape == (len(batch), math.ceil(batch.shape[1] * fraction))
    length = batch.shape[1]
    for row, *of_row in zip(batch, token_ids, is_real, positions, weights, strict=True):
        found, real, places, row_weights = of_row
        inserted = used(places, row_weights)
        tokens = [int(token) for token in row if token != PAD]
        assert len(inserted) in counts_that_fit(row, fraction) | {max(len(tokens) - 2, 0)}
        # As a list is inserted into, place by place from the left.
        expected = list(tokens)
        for place in inserted:
            expected.insert(place, MASK)
        if len(expected) > length:
            expected = [*expected[: length - 1], tokens[-1]]
        assert list(found) == expected + [PAD] * (length - len(expected))
        assert list(real) == [True] * len(expected) + [False] * (length - len(expected))
        if tokens:
            assert found[0] == tokens[0] and found[len(expected) - 1] == tokens[-1]
        assert [place for place in range(length) if found[place] == MASK] == inserted


@pytest.mark.parametrize("ordinary", [1, 5, 18, 38])
def test_insertions_meet_their_share_whatever_the_length(ordinary: int):
    batch = tf.constant([[START, *range(3, 3 + ordinary), END] + [PAD] * (38 - ordinary)] * 4000)
    weights = insert_masks(batch, 0.15, SPECIAL, tf.constant([3, 5]))["inserted_weights"]
    assert float(tf.reduce_sum(weights)) / 4000 == pytest.approx(0.15 * ordinary, abs=0.04)


def test_every_place_between_the_ends_is_as_likely():
    batch = tf.constant([[START, *range(3, 13), END]] * 8000)
    found = insert_masks(batch, 0.1, SPECIAL, tf.constant([3, 5]))
    places = found["inserted_positions"].numpy()[found["inserted_weights"].numpy() == 1]
    _, counts = np.unique(places, return_counts=True)
    assert len(counts) == 10 and counts == pytest.approx(len(places) / 10, rel=0.15)


def test_courses_have_the_same_slots_and_views_of_their_own():
    batch = tf.constant([[START, *range(3, 21), END]] * 3)
    found = MCLAugmentation(SPECIAL, 0.2, 0.1, 0.4)(batch, tf.constant([1, 2]))
    for name in ("masked", "swapped", "inserted"):
        assert found[f"{name}_positions"].shape == found[f"{name}_weights"].shape == (3, 8)
    assert found["swapped_tokens"].shape == (3, 8)
    assert found["padding_mask"].numpy().all()
    used = {name: found[f"{name}_weights"].numpy().sum(axis=1) for name in ("masked", "swapped")}
    assert set(used["masked"]) <= {3, 4} and set(used["swapped"]) <= {1, 2}
    # A course that is not taken has no entries.
    few = MCLAugmentation(SPECIAL, 0.2, 0.0, 0.0)(batch, tf.constant([1, 2]))
    assert few.keys() == {"token_ids", "padding_mask", "masked_positions", "masked_weights"}
    assert few["masked_positions"].shape == (3, 4)


def test_augmentations_are_a_function_of_the_seed():
    batch = tf.constant([[START, *range(3, 21), END, PAD, PAD]] * 3)
    first, again, other = (
        MCLAugmentation(SPECIAL)(batch, tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3])
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert (first["swapped_tokens"] != other["swapped_tokens"]).numpy().any()


def test_augmentations_compile_with_static_shapes():
    batch = tf.constant([[START, *range(3, 21), END, PAD, PAD]] * 3)
    compiled = tf.function(
        MCLAugmentation(SPECIAL).__call__,
        [tf.TensorSpec([3, 22], tf.int32), tf.TensorSpec([2], tf.int32)],
        jit_compile=True,
        autograph=False,
    )
    traced = compiled.get_concrete_function()
    assert all(shape.is_fully_defined() for shape in traced.output_shapes.values())
    # XLA's random numbers are others.
    found = compiled(batch, tf.constant([1, 2]))
    for name in ("masked", "swapped", "inserted"):
        for positions, weights in zip(
            found[f"{name}_positions"].numpy(), found[f"{name}_weights"].numpy(), strict=True
        ):
            assert used(positions, weights)
